# SPDX-License-Identifier: Apache-2.0
"""Views of random points with known poses, and matches between them, some of them wrong."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3

NOISE = 1.0 / 600.0  # one pixel at a focal length of 600


@dataclass(frozen=True)
class MatchScene:
    """plane_xy (V, N, 2), sigma (V, N), matches of all pairs, true (V, 4, 4) world_from_camera."""

    plane_xy: Tensor
    sigma: Tensor
    matches: Matches
    world_from_camera: Tensor


def match_scene(
    seed: int = 0,
    views: int = 5,
    points: int = 200,
    noise: float = NOISE,
    outliers: float = 0.0,
    wrong_confidence: float = 0.02,
    dropped: float = 0.0,
    step: float = 0.3,
    planar: bool = False,
    poses: Tensor | None = None,
) -> MatchScene:
    """Cameras that move `step` each (random direction), in front of points 4 to 9 away."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if poses is None:
        motion = torch.cat([step * normal(views, 3).cumsum(0), 0.1 * normal(views, 3)], dim=1)
        motion[0] = 0.0
        poses = se3.exp(motion)
    views = len(poses)
    cube = torch.rand(points, 3, generator=generator, dtype=torch.float64)
    world = cube * torch.tensor([6.0, 4.0, 5.0]) + torch.tensor([-3.0, -2.0, 4.0])
    if planar:
        world[:, 2] = 7.0 + 0.5 * world[:, 0]
    local = se3.transform(se3.inverse(poses), world.expand(views, points, 3))
    plane = local[..., :2] / local[..., 2:] + noise * normal(views, points, 2)
    pairs, keypoints, confidences = [], [], []
    for a, b in combinations(range(views), 2):
        here = torch.arange(points)[torch.rand(points, generator=generator) >= dropped]
        there = here.clone()
        wrong = torch.rand(len(here), generator=generator) < outliers
        there[wrong] = torch.randint(points, (int(wrong.sum()),), generator=generator)
        pairs.append(torch.tensor([[a, b]]).expand(len(here), 2))
        keypoints.append(torch.stack([here, there], dim=1))
        jitter = 0.8 + 0.2 * torch.rand(len(here), generator=generator)
        confidences.append(torch.where(wrong, wrong_confidence, 1.0) * jitter)
    matches = Matches(torch.cat(pairs), torch.cat(keypoints), torch.cat(confidences))
    sigma = torch.full((views, points), noise, dtype=torch.float64)
    return MatchScene(plane, sigma, matches, poses)


def only(matches: Matches, chosen: Tensor) -> Matches:
    """The chosen (M,) bool matches."""
    return Matches(matches.views[chosen], matches.keypoints[chosen], matches.confidence[chosen])


def pose_errors(estimate: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """Largest rotation error and error of the direction from the first view, degrees; spread of
    the scale as log of largest over smallest."""
    found, wanted = (se3.inverse(poses[:1]) @ poses for poses in (estimate, truth))
    turn = found[:, :3, :3].mT @ wanted[:, :3, :3]
    cosine = (0.5 * (turn.diagonal(dim1=1, dim2=2).sum(1) - 1.0)).clamp(-1.0, 1.0)
    a, b = found[1:, :3, 3], wanted[1:, :3, 3]
    length = a.norm(dim=1) / b.norm(dim=1)
    direction = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angles = [torch.rad2deg(torch.arccos(c.clamp(-1.0, 1.0))).max() for c in (cosine, direction)]
    return float(angles[0]), float(angles[1]), float((length.max() / length.min()).log())
