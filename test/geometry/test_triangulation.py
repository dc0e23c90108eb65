# SPDX-License-Identifier: Apache-2.0
"""N-view triangulation: known answers, OpenCV as oracle, degenerate views, gradients."""

from __future__ import annotations

from math import radians

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.triangulation import triangulate


def scene(
    points: int = 60, views: int = 5, noise: float = 0.0, step: float = 0.3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (P, 3), camera_from_world (V, 4, 4), measurements (P, V, 2)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    xi = 0.1 * normal(views, 6)
    xi[:, 0] += step * torch.arange(views)
    poses = se3.inverse(se3.exp(xi))
    world = normal(points, 3) * 2.0
    world[:, 2] = (world[:, 2] + 8.0).clamp_min(3.0)
    camera = se3.transform(poses, world.expand(views, points, 3)).transpose(0, 1)
    return world, poses, camera[..., :2] / camera[..., 2:] + noise * normal(points, views, 2)


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize('views', [2, 5])
def test_exact_measurements_give_exact_points(
    views: int, dtype: torch.dtype, limit: float
) -> None:
    world, poses, xy = scene(views=views, step=1.0)
    result = triangulate(xy.to(dtype), poses.to(dtype))
    assert result.valid.all()
    assert (result.points - world).abs().max() < limit
    assert result.points.dtype == dtype
    depth = se3.transform(poses, world.expand(views, *world.shape))[..., 2].T
    assert (result.depths - depth).abs().max() < limit
    assert result.residuals.abs().max() < 1e-5


def test_two_views_start_like_opencv() -> None:
    world, poses, xy = scene(views=2, noise=1e-3, step=1.0)
    result = triangulate(xy, poses)
    a, b = (poses[i, :3].numpy() for i in range(2))
    theirs = cv2.triangulatePoints(a, b, xy[:, 0].T.numpy(), xy[:, 1].T.numpy())
    theirs = (theirs[:3] / theirs[3]).T
    ours_error = (result.points - world).norm(dim=1).median()
    their_error = np.median(np.linalg.norm(theirs - world.numpy(), axis=1))
    assert np.median(np.linalg.norm(theirs - result.points.numpy(), axis=1)) < 0.1 * their_error
    assert float(ours_error) < 1.1 * their_error


def test_the_result_is_the_least_squares_optimum() -> None:
    _, poses, xy = scene(noise=2e-3)
    weights = torch.rand(60, 5, generator=torch.Generator().manual_seed(1)).double() + 0.1
    result = triangulate(xy, poses, weights, iterations=6)

    def cost(points: torch.Tensor) -> torch.Tensor:
        camera = se3.transform(poses, points.expand(5, 60, 3)).transpose(0, 1)
        residual = camera[..., :2] / camera[..., 2:] - xy
        return (weights[..., None] * residual.square()).sum()

    points = result.points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(points), points)
    scale = result.information.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert (gradient.norm(dim=1) / scale)[result.valid].max() < 1e-6
    default = triangulate(xy, poses, weights)
    assert (default.points - result.points)[result.valid].abs().max() < 1e-3


def test_masks_and_missing_values_are_absence() -> None:
    world, poses, xy = scene()
    mask = torch.rand(60, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    broken = torch.where(mask[..., None], xy, 1e3)
    broken[3, :2] = torch.nan
    mask[3] = torch.tensor([True, True, True, True, False])
    result = triangulate(broken, poses, mask)
    views = (mask & broken.isfinite().all(-1)).sum(1)
    assert not result.valid[views < 2].any()
    assert result.valid[views >= 3].float().mean() > 0.9
    assert (result.points - world)[result.valid].abs().max() < 1e-9
    assert result.points.isfinite().all()
    assert (result.residuals[~mask] == 0).all()
    subset = triangulate(xy[:10, :3], poses[:3])
    same = torch.cat((torch.ones(10, 3), torch.zeros(10, 2)), 1).bool()
    assert (triangulate(xy[:10], poses, same).points - subset.points).abs().max() < 1e-9


def test_parallax_is_the_largest_ray_angle() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[1, 0, 3], poses[2, 0, 3] = -0.1, -1.0
    world = torch.tensor([[0.5, 0.0, 10.0]], dtype=torch.float64)
    camera = se3.transform(poses, world.expand(3, 1, 3)).transpose(0, 1)
    xy = camera[..., :2] / camera[..., 2:]
    result = triangulate(xy, poses)
    assert float(result.parallax_rad) == pytest.approx(2 * np.arctan(0.05), rel=1e-9)
    seen = torch.tensor([[True, True, False]])
    pair = triangulate(xy, poses, seen)
    expected = np.arctan(0.05) - np.arctan(0.04)
    assert float(pair.parallax_rad) == pytest.approx(expected, rel=1e-7)
    assert pair.condition > result.condition
    assert triangulate(xy, poses, seen, min_parallax_rad=radians(0.5)).valid.all()
    assert not triangulate(xy, poses, seen, min_parallax_rad=radians(1.0)).valid.any()
    assert not triangulate(xy, poses, max_condition=1.0).valid.any()


def test_condition_is_the_ratio_of_uncertainties() -> None:
    _, poses, xy = scene(noise=0.0)
    result = triangulate(xy, poses)
    values = torch.linalg.eigvalsh(result.information)
    exact = (values[:, 2] / values[:, 0]).sqrt()
    ratio = result.condition / exact
    assert (ratio > 0.99).all()
    assert (ratio < 3.0).all()


def test_degenerate_views_are_not_valid_and_finite() -> None:
    world, poses, xy = scene()
    still = poses[:1].repeat(5, 1, 1)
    same = xy[:, :1].repeat(1, 5, 1)
    behind = poses.clone()
    behind[:, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]).double()) @ poses[:, :3, :3]
    turned = se3.transform(behind, world.expand(5, 60, 3)).transpose(0, 1)
    cases = {
        'no translation': (same, still),
        'rays that part behind the cameras': (turned[..., :2] / turned[..., 2:], behind),
        'unseen': (torch.full_like(xy, torch.nan), poses),
        'one view': (xy[:, :1], poses[:1]),
        'no view': (xy[:, :0], poses[:0]),
        'no point': (xy[:0], poses),
    }
    for name, (measured, cameras) in cases.items():
        inputs = measured.clone().requires_grad_()
        result = triangulate(inputs, cameras)
        assert not result.valid.any(), name
        assert result.points.isfinite().all(), name
        assert not result.condition.isnan().any(), name
        result.points.sum().backward()
        assert inputs.grad is not None, name
        assert inputs.grad.isfinite().all(), name


def test_gradients_against_finite_differences() -> None:
    _, poses, xy = scene(points=4, noise=1e-4, step=1.0)
    weights = torch.rand(4, 5, generator=torch.Generator().manual_seed(3)).double() + 0.5
    inputs = tuple(t.requires_grad_() for t in (xy, poses, weights))
    assert torch.autograd.gradcheck(
        lambda x, t, w: triangulate(x, t, w, iterations=4).points, inputs, atol=1e-4
    )


def test_poses_per_point_and_leading_dimensions() -> None:
    world, poses, xy = scene()
    each = poses.expand(60, 5, 4, 4)
    assert (triangulate(xy, each).points - triangulate(xy, poses).points).abs().max() < 1e-12
    batch = triangulate(xy.expand(2, 3, 60, 5, 2), poses.expand(2, 3, 5, 4, 4))
    assert batch.points.shape == (2, 3, 60, 3)
    assert batch.residuals.shape == (2, 3, 60, 5, 2)
    assert (batch.points - world).abs().max() < 1e-9
    far = torch.eye(4, dtype=torch.float64)
    far[:3, 3] = -1e6
    moved = triangulate(xy, poses @ far)
    assert (moved.points - world - 1e6).abs().max() < 1e-6


def test_wrong_input_is_named() -> None:
    _, poses, xy = scene()
    with pytest.raises(GeometryError, match='views disagree'):
        triangulate(xy, poses[:3])
    with pytest.raises(GeometryError, match='camera_from_world is'):
        triangulate(xy, poses.float())
