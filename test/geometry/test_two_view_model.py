# SPDX-License-Identifier: Apache-2.0
"""Homography, rotation, model selection and refinement of the relative pose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import epipolar, se3
from mv_matcher_ros.geometry.homography import (
    homography_dlt,
    homography_sampson_error,
    rotation_from_matches,
)
from mv_matcher_ros.geometry.relative_pose import refine_relative_pose, tangent_basis
from mv_matcher_ros.geometry.two_view_model import TwoViewKind, select_two_view_model

Builder = Callable[..., Any]


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    """Angle of two translation directions, degrees."""
    return float(torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(), a @ b)))


def turn_between(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.rad2deg(se3.rotation_angle(a[:3, :3].mT @ b[:3, :3])))


def test_homography_of_a_plane_is_exact_and_equals_opencv(two_views: Builder) -> None:
    scene = two_views('plane', count=40)
    # n^T X = 1 for X on the plane, so x_b ~ (R + t n^T) x_a.
    normal = torch.tensor([-0.3, -0.1, 1.0], dtype=torch.float64) / 6.0
    pose = scene.b_from_a
    expected = pose[:3, :3] + pose[:3, 3:] * normal
    expected = expected / expected.norm() * 3**0.5
    result = homography_dlt(scene.xy_a, scene.xy_b)
    assert not result.degenerate
    assert (result.b_from_a - expected).abs().max() < 1e-9
    assert homography_sampson_error(expected, scene.xy_a, scene.xy_b).max() < 1e-20
    noisy = two_views('plane', count=40, noise=1e-3)
    ours = homography_dlt(noisy.xy_a, noisy.xy_b).b_from_a
    theirs, _ = cv2.findHomography(noisy.xy_a.numpy(), noisy.xy_b.numpy(), 0)
    assert np.abs(ours.numpy() / float(ours[2, 2]) - theirs).max() < 1e-2


def test_homography_error_is_in_units_of_the_noise(two_views: Builder) -> None:
    sigma = 1e-3
    clean, noisy = two_views('plane', count=4000), two_views('plane', count=4000, noise=sigma)
    homography = homography_dlt(clean.xy_a, clean.xy_b).b_from_a
    squared = homography_sampson_error(homography, noisy.xy_a, noisy.xy_b)
    assert float(squared.mean() / sigma**2) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize('count', range(5))
def test_few_or_collinear_points_do_not_determine_a_homography(
    two_views: Builder, count: int
) -> None:
    scene = two_views('plane', count=count)
    a = scene.xy_a.clone().requires_grad_()
    result = homography_dlt(a, scene.xy_b)
    assert bool(result.degenerate) == (count < 4)
    line = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None].repeat(1, 2)
    assert homography_dlt(line, 0.5 * line).degenerate
    result.b_from_a.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_homography_gradient(two_views: Builder) -> None:
    scene = two_views('plane', count=8, noise=1e-2)
    inputs = (scene.xy_a.requires_grad_(), scene.xy_b.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: homography_dlt(a, b, gap_floor=1e-12).b_from_a, inputs, atol=1e-4
    )


def test_rotation_from_matches(two_views: Builder) -> None:
    scene = two_views('rotation', count=30)
    rotation = rotation_from_matches(scene.xy_a, scene.xy_b)
    assert (rotation - scene.b_from_a[:3, :3]).abs().max() < 1e-10
    for count in (0, 1):
        few = rotation_from_matches(scene.xy_a[:count], scene.xy_b[:count])
        assert abs(float(torch.linalg.det(few)) - 1) < 1e-9
        if count == 0:
            assert (few - torch.eye(3)).abs().max() < 1e-9
        else:
            ray = torch.nn.functional.normalize(epipolar.homogeneous(scene.xy_b[:1]), dim=-1)
            turned = epipolar.homogeneous(scene.xy_a[:1]) @ few.mT
            assert torch.linalg.cross(ray, turned).norm() < 1e-6


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('general', TwoViewKind.ESSENTIAL),
        ('plane', TwoViewKind.PLANE),
        ('rotation', TwoViewKind.ROTATION),
    ],
)
@pytest.mark.parametrize('noise', [2e-4, 1e-3])
def test_model_selection_tells_the_three_cases_apart(
    two_views: Builder, kind: str, expected: TwoViewKind, noise: float
) -> None:
    right = 0
    for seed in range(8):
        scene = two_views(kind, count=150, noise=noise, baseline=0.6, seed=seed)
        right += select_two_view_model(scene.xy_a, scene.xy_b, noise).kind == expected
    assert right >= 7


def test_model_selection_bears_some_outliers(two_views: Builder) -> None:
    for kind, expected in (('plane', TwoViewKind.PLANE), ('rotation', TwoViewKind.ROTATION)):
        scene = two_views(kind, count=200, noise=1e-3, seed=3)
        broken = scene.xy_b.clone()
        broken[:20] += (
            0.2 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
        )
        model = select_two_view_model(scene.xy_a, broken, 1e-3)
        assert model.kind == expected
        assert model.inliers[expected, 20:].float().mean() > 0.8
        assert model.inliers[expected, :20].float().mean() < 0.2


def test_far_scene_counts_as_rotation_and_nothing_counts_as_something(two_views: Builder) -> None:
    scene = two_views(noise=1e-3, baseline=0.004)
    assert select_two_view_model(scene.xy_a, scene.xy_b, 1e-3).kind == TwoViewKind.ROTATION
    model = select_two_view_model(scene.xy_a[:0], scene.xy_b[:0], 1e-3)
    assert model.scores.isfinite().all()
    with pytest.raises(GeometryError, match='sigma must be positive'):
        select_two_view_model(scene.xy_a, scene.xy_b, 0.0)


def test_refinement_beats_the_eight_point(two_views: Builder) -> None:
    before, after = [], []
    for seed in range(10):
        scene = two_views(count=120, noise=1e-3, baseline=0.5, seed=seed)
        essential = epipolar.eight_point(scene.xy_a, scene.xy_b).essential
        start = epipolar.pose_from_essential(essential, scene.xy_a, scene.xy_b).b_from_a
        result = refine_relative_pose(start, scene.xy_a, scene.xy_b, sigma=1e-3)
        assert result.converged
        truth = scene.b_from_a[:3, 3]
        before.append(angle_between(start[:3, 3], truth))
        after.append(angle_between(result.b_from_a[:3, 3], truth))
        assert turn_between(result.b_from_a, scene.b_from_a) < 0.5
        assert abs(float(result.b_from_a[:3, 3].norm()) - 1) < 1e-12
    assert np.median(after) < 0.8 * np.median(before)


def test_refinement_is_robust_weighted_batched_and_never_worse(two_views: Builder) -> None:
    scenes = [two_views(count=80, noise=5e-4, seed=seed) for seed in range(3)]
    a, b = torch.stack([s.xy_a for s in scenes]), torch.stack([s.xy_b for s in scenes])
    b[:, :10] += 0.05
    b[:, 10] = torch.nan
    truth = torch.stack([s.b_from_a for s in scenes])
    xi = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = se3.exp(0.05 * xi) @ truth
    settings = {'sigma': 5e-4, 'kernel': 'cauchy', 'iterations': 60}
    result = refine_relative_pose(start, a, b, **settings)
    assert result.converged.all()
    for i in range(3):
        assert turn_between(result.b_from_a[i], truth[i]) < 0.1
        assert angle_between(result.b_from_a[i, :3, 3], truth[i, :3, 3]) < 0.3
        alone = refine_relative_pose(start[i], a[i], b[i], **settings)
        assert (alone.b_from_a - result.b_from_a[i]).abs().max() < 1e-4
    wrong = refine_relative_pose(se3.exp(xi) @ truth, a, b, sigma=5e-4, iterations=3)
    fixed = refine_relative_pose(se3.exp(xi) @ truth, a, b, sigma=5e-4, iterations=0)
    assert (wrong.cost <= fixed.cost).all()


def test_refinement_hears_how_exact_each_match_is(two_views: Builder) -> None:
    errors: dict[str, list[float]] = {'one': [], 'each': []}
    for seed in range(10):
        scene = two_views(count=120, noise=2e-4, seed=seed)
        noise = torch.full((120,), 2e-4, dtype=torch.float64)
        noise[::2] = 5e-3
        generator = torch.Generator().manual_seed(seed)
        extra = torch.randn(60, 2, generator=generator, dtype=torch.float64)
        b = scene.xy_b.index_add(0, torch.arange(0, 120, 2), 5e-3 * extra)
        for name, sigma in (('one', 2e-4), ('each', noise)):
            found = refine_relative_pose(
                scene.b_from_a, scene.xy_a, b, sigma=sigma, kernel='none', iterations=30
            )
            errors[name].append(angle_between(found.b_from_a[:3, 3], scene.b_from_a[:3, 3]))
    assert np.median(errors['each']) < 0.2 * np.median(errors['one'])


@pytest.mark.parametrize('share', [0.2, 0.4])
def test_what_is_let_go_of_does_not_pull(two_views: Builder, share: float) -> None:
    scene = two_views(count=200, noise=5e-4)
    wrong = int(200 * share)
    b = scene.xy_b.clone()
    b[:wrong] = b[:wrong].roll(1, 0)
    turn = torch.tensor([0, 0, 0, 0, 0.002, 0], dtype=torch.float64)
    settings = {'sigma': 5e-4, 'kernel': 'geman_mcclure', 'kernel_width': 1.0, 'iterations': 30}
    found = refine_relative_pose(se3.exp(turn) @ scene.b_from_a, scene.xy_a, b, **settings)
    clean = refine_relative_pose(
        scene.b_from_a, scene.xy_a[wrong:], b[wrong:], sigma=5e-4, kernel='none'
    )
    truth = scene.b_from_a
    assert turn_between(found.b_from_a, truth) < 3.0 * turn_between(clean.b_from_a, truth) + 0.01


def test_refinement_is_defined_where_nothing_is_known(two_views: Builder) -> None:
    start = se3.exp(torch.tensor([1.0, 0, 0, 0, 0, 0.1], dtype=torch.float64))
    for kind, count in (('rotation', 50), ('plane', 50), ('general', 3), ('general', 0)):
        scene = two_views(kind, count=count)
        result = refine_relative_pose(start, scene.xy_a, scene.xy_b, iterations=20)
        assert result.b_from_a.isfinite().all()
        assert result.information.isfinite().all()
    scene = two_views('rotation', count=50)
    result = refine_relative_pose(start, scene.xy_a, scene.xy_b, iterations=40)
    assert turn_between(result.b_from_a, scene.b_from_a) < 1e-3
    with pytest.raises(GeometryError, match='start with a translation'):
        refine_relative_pose(torch.eye(4), scene.xy_a.float(), scene.xy_b.float())


def test_gradient_through_the_refinement(two_views: Builder) -> None:
    scene = two_views(count=12, noise=1e-3)
    a, b = scene.xy_a.requires_grad_(), scene.xy_b.requires_grad_()
    start = scene.b_from_a / scene.b_from_a[:3, 3].norm()

    def refine(xy_a: torch.Tensor, xy_b: torch.Tensor) -> torch.Tensor:
        # Tolerances of convergence are met long before; the rest of the steps do no harm.
        return refine_relative_pose(start, xy_a, xy_b, kernel='none', iterations=15).b_from_a

    gradient = torch.autograd.functional.vjp(refine, (a, b), torch.ones(4, 4).double())[1]
    step = 1e-6
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        direction = torch.randn(12, 2, generator=generator, dtype=torch.float64)
        moved = [
            (a + s * direction, b) if i == 0 else (a, b + s * direction) for s in (step, -step)
        ]
        with torch.no_grad():
            slope = (refine(*moved[0]) - refine(*moved[1])).sum() / (2 * step)
        assert float((gradient[i] * direction).sum()) == pytest.approx(float(slope), rel=2e-2)


def test_tangent_basis_is_orthonormal_in_every_direction() -> None:
    directions = torch.cat((torch.eye(3), -torch.eye(3), torch.randn(50, 3))).double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    frame = torch.cat((tangent_basis(directions), directions[..., None]), -1)
    assert (frame.mT @ frame - torch.eye(3)).abs().max() < 1e-12
