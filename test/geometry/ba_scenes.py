# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment problems with a known answer."""

from __future__ import annotations

import torch

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.reprojection import Problem


def window_problem(
    poses: int,
    points: int,
    views_per_point: int,
    *,
    noise: float = 1e-3,
    start_noise: float = 0.02,
    depth: bool = False,
    stereo_baseline: float = 0.0,
    batch: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    kernel: str = 'none',
) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """A camera that moves sideways past a cloud 4..10 m ahead: problem, true poses, true points.

    Each point is seen by `views_per_point` consecutive poses. `noise` is in units of the
    normalised plane.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    steps = torch.zeros(batch, poses, 6, dtype=torch.float64)
    steps[..., 0] = torch.linspace(0, 0.3 * poses, poses, dtype=torch.float64)
    true_poses = se3.exp(steps) @ se3.exp(0.05 * normal(batch, poses, 6))
    first = torch.randint(0, poses - views_per_point + 1, (batch, points), generator=generator)
    centre = steps[..., 0].gather(1, first + views_per_point // 2)
    true_points = torch.stack(
        [
            centre + 1.5 * normal(batch, points),
            1.2 * normal(batch, points),
            7.0
            + 3.0 * (torch.rand(batch, points, generator=generator, dtype=torch.float64) * 2 - 1),
        ],
        dim=-1,
    )
    pose_index = (first[:, :, None] + torch.arange(views_per_point)).reshape(batch, -1)
    point_index = torch.arange(points).repeat_interleave(views_per_point).expand(batch, -1)
    camera_from_body, camera_index = None, None
    if stereo_baseline:
        camera_from_body = torch.eye(4, dtype=torch.float64).repeat(batch, 2, 1, 1)
        camera_from_body[:, 1, 0, 3] = -stereo_baseline
        count = pose_index.shape[1]
        camera_index = torch.arange(2).repeat_interleave(count).expand(batch, -1)
        pose_index, point_index = pose_index.repeat(1, 2), point_index.repeat(1, 2)
    rows = torch.arange(batch)[:, None]
    local = (
        se3.inverse(true_poses)[rows, pose_index]
        @ torch.cat(
            [
                true_points[rows, point_index],
                torch.ones(batch, pose_index.shape[1], 1, dtype=torch.float64),
            ],
            -1,
        )[..., None]
    )
    seen = local[..., :3, 0]
    if camera_from_body is not None and camera_index is not None:
        seen = seen + camera_from_body[rows, camera_index][..., :3, 3]
    measured = torch.cat([seen[..., :2] / seen[..., 2:], 1.0 / seen[..., 2:]], -1)[
        ..., : 3 if depth else 2
    ]
    measured = measured + noise * normal(*measured.shape)
    fixed = torch.zeros(batch, poses, dtype=torch.bool)
    fixed[:, 0] = True
    if not (depth or stereo_baseline):
        fixed[:, -1] = True  # holds the scale
    start = true_poses @ se3.exp(start_noise * normal(batch, poses, 6) * (~fixed)[..., None])
    problem = Problem(
        start.to(dtype),
        (true_points + 5 * start_noise * normal(batch, points, 3)).to(dtype),
        pose_index,
        point_index.contiguous(),
        measured.to(dtype),
        torch.full_like(measured, 1.0 / noise if noise else 1.0).to(dtype),
        fixed,
        camera_from_body=None if camera_from_body is None else camera_from_body.to(dtype),
        camera_index=camera_index,
        kernel=kernel,  # type: ignore[arg-type]
        kernel_width=2.0,
    )
    return problem, true_poses, true_points
