# SPDX-License-Identifier: Apache-2.0
"""Eight-point, decomposition, errors: known answers, OpenCV as oracle, degenerate scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import epipolar, se3, spectral

Builder = Callable[..., Any]
EYE = np.eye(3)


def up_to_sign(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.minimum((a - b).abs().max(), (a + b).abs().max()))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('count', [8, 9, 200])
def test_exact_matches_give_the_exact_pose(two_views: Builder, count: int, seed: int) -> None:
    scene = two_views(count=count, seed=seed)
    result = epipolar.eight_point(scene.xy_a, scene.xy_b)
    assert not result.degenerate
    expected = epipolar.essential_from_pose(scene.b_from_a)
    assert up_to_sign(result.essential, expected) < 1e-6
    pose = epipolar.pose_from_essential(result.essential, scene.xy_a, scene.xy_b)
    assert (pose.b_from_a - scene.b_from_a).abs().max() < 1e-6
    assert pose.in_front.all()
    assert pose.support == pytest.approx(1.0)
    assert pose.runner_up < 0.9


def test_essential_from_pose_has_its_defining_properties(two_views: Builder) -> None:
    scene = two_views(baseline=0.3)
    essential = epipolar.essential_from_pose(scene.b_from_a)
    assert (torch.linalg.svdvals(essential) - torch.tensor([1.0, 1.0, 0.0])).abs().max() < 1e-12
    assert epipolar.sampson_error(essential, scene.xy_a, scene.xy_b).abs().max() < 1e-12
    assert epipolar.essential_from_pose(torch.eye(4)).abs().max() == 0


def test_decomposition_equals_opencv(two_views: Builder) -> None:
    for seed in range(10):
        pose = two_views(seed=seed).b_from_a
        essential = epipolar.essential_from_pose(pose)
        rotations, translation = epipolar.decompose_essential(-3.0 * essential)
        first, second, direction = cv2.decomposeEssentialMat(essential.numpy())
        theirs = [torch.from_numpy(first), torch.from_numpy(second)]
        for ours in rotations:
            assert min(float((ours - t).abs().max()) for t in theirs) < 1e-9
            assert abs(float(torch.linalg.det(ours)) - 1) < 1e-12
        assert up_to_sign(translation, torch.from_numpy(direction[:, 0])) < 1e-9


def test_errors_equal_opencv_and_do_not_depend_on_scale(two_views: Builder) -> None:
    scene = two_views(noise=0.01)
    essential = epipolar.essential_from_pose(scene.b_from_a)
    ours = epipolar.sampson_error(essential, scene.xy_a, scene.xy_b)
    for i in range(10):
        a = np.append(scene.xy_a[i].numpy(), 1.0)
        b = np.append(scene.xy_b[i].numpy(), 1.0)
        theirs = cv2.sampsonDistance(a, b, essential.numpy())
        assert float(ours[i]) ** 2 == pytest.approx(theirs, rel=1e-9)
    scaled = epipolar.sampson_error(7.0 * essential, scene.xy_a, scene.xy_b)
    assert (scaled - ours).abs().max() < 1e-13
    symmetric = epipolar.symmetric_epipolar_error(essential, scene.xy_a, scene.xy_b)
    a, b = (epipolar.homogeneous(xy) for xy in (scene.xy_a, scene.xy_b))
    line_b, line_a = a @ essential.T, b @ essential
    direct = ((b * line_b).sum(1) / line_b[:, :2].norm(dim=1)) ** 2
    direct = direct + ((a * line_a).sum(1) / line_a[:, :2].norm(dim=1)) ** 2
    assert (symmetric - direct).abs().max() < 1e-15
    epipole = torch.zeros(1, 2, dtype=torch.float64)
    forward = epipolar.essential_from_pose(se3.exp(torch.tensor([0, 0, 1.0, 0, 0, 0]).double()))
    assert epipolar.sampson_error(forward, epipole, epipole).abs().max() == 0


def test_weights_switch_outliers_off(two_views: Builder) -> None:
    scene = two_views(count=60)
    weights = torch.ones(60, dtype=torch.float64)
    broken = scene.xy_b.clone()
    broken[:20] += 0.3
    broken[20] = torch.nan
    weights[:20] = 0.0
    result = epipolar.eight_point(scene.xy_a, broken, weights)
    expected = epipolar.essential_from_pose(scene.b_from_a)
    assert up_to_sign(result.essential, expected) < 1e-6
    pose = epipolar.pose_from_essential(result.essential, scene.xy_a, broken, weights)
    assert (pose.b_from_a - scene.b_from_a).abs().max() < 1e-6
    assert not pose.in_front[:21].any()
    unweighted = epipolar.eight_point(scene.xy_a, broken)
    assert up_to_sign(unweighted.essential, expected) > 0.05
    doubled = epipolar.eight_point(scene.xy_a, broken, 5.0 * weights)
    assert up_to_sign(doubled.essential, result.essential) < 1e-9


@pytest.mark.parametrize('noise', [0.0, 1e-3])
@pytest.mark.parametrize('kind', ['plane', 'rotation'])
def test_degenerate_scenes_are_flagged_and_have_finite_gradients(
    two_views: Builder, kind: str, noise: float
) -> None:
    for seed in range(10):
        scene = two_views(kind, noise=noise, seed=seed)
        a, b = scene.xy_a.clone().requires_grad_(), scene.xy_b.clone().requires_grad_()
        weights = torch.ones(100, dtype=torch.float64, requires_grad=True)
        result = epipolar.eight_point(a, b, weights)
        assert result.degenerate
        assert result.degeneracy > 0.7
        singular = torch.linalg.svdvals(result.essential.detach())
        assert (singular - torch.tensor([1.0, 1.0, 0.0])).abs().max() < 1e-12
        pose = epipolar.pose_from_essential(result.essential, a, b, weights)
        pose.b_from_a.square().sum().add(pose.b_from_a[0, 3]).backward()
        for tensor in (a, b, weights):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert tensor.grad.abs().max() < 1e4


def test_general_scenes_are_not_flagged(two_views: Builder) -> None:
    flagged = [
        bool(epipolar.eight_point(s.xy_a, s.xy_b).degenerate)
        for s in (two_views(noise=1e-3, baseline=0.5, seed=seed) for seed in range(20))
    ]
    assert sum(flagged) <= 1


@pytest.mark.parametrize('count', range(8))
def test_too_few_matches_are_flagged(two_views: Builder, count: int) -> None:
    scene = two_views(count=count)
    a = scene.xy_a.clone().requires_grad_()
    result = epipolar.eight_point(a, scene.xy_b)
    assert result.degenerate
    assert result.degeneracy == 1
    assert result.essential.isfinite().all()
    pose = epipolar.pose_from_essential(result.essential, a, scene.xy_b)
    assert pose.b_from_a.isfinite().all()
    assert (pose.support == 0) == (count == 0) or pose.support > 0
    pose.b_from_a.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_gradients_against_finite_differences(two_views: Builder) -> None:
    scene = two_views(count=15, noise=2e-3)
    weights = torch.linspace(0.5, 1.0, 15, dtype=torch.float64)
    inputs = tuple(t.clone().requires_grad_() for t in (scene.xy_a, scene.xy_b, weights))

    def pose(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        essential = epipolar.eight_point(a, b, w, gap_floor=1e-12).essential
        return epipolar.pose_from_essential(essential, a, b, w).b_from_a

    assert torch.autograd.gradcheck(pose, inputs, eps=1e-7, atol=1e-4)
    essential = epipolar.essential_from_pose(scene.b_from_a).requires_grad_()
    for error in (epipolar.sampson_error, epipolar.symmetric_epipolar_error):
        assert torch.autograd.gradcheck(error, (essential, *inputs[:2]), atol=1e-6)


def test_spectral_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: spectral.project_essential(m, 1e-9), (matrix,))
    # Equal singular values: the gradient of the SVD is 0/0, that of the projection is not.
    equal = torch.diag(torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: spectral.project_essential(m, 1e-9), (equal,))

    def smallest(m: torch.Tensor) -> torch.Tensor:
        return spectral.smallest_eigenvector(m + m.mT, 1e-12)[0]

    assert torch.autograd.gradcheck(smallest, (matrix,))
    double = torch.eye(3, dtype=torch.float64, requires_grad=True)
    spectral.smallest_eigenvector(double)[0].sum().backward()
    assert double.grad is not None
    assert double.grad.isfinite().all()


def test_batches_and_float32(two_views: Builder) -> None:
    scenes = [two_views(seed=seed, count=50) for seed in range(6)]
    a = torch.stack([s.xy_a for s in scenes]).reshape(2, 3, 50, 2)
    b = torch.stack([s.xy_b for s in scenes]).reshape(2, 3, 50, 2)
    for dtype, limit in ((torch.float64, 1e-7), (torch.float32, 2e-3)):
        result = epipolar.eight_point(a.to(dtype), b.to(dtype))
        pose = epipolar.pose_from_essential(result.essential, a.to(dtype), b.to(dtype))
        expected = torch.stack([s.b_from_a for s in scenes]).reshape(2, 3, 4, 4)
        assert pose.b_from_a.dtype == dtype
        assert (pose.b_from_a - expected).abs().max() < limit
        assert pose.in_front.shape == (2, 3, 50)


def test_wrong_input_is_named() -> None:
    xy = torch.zeros(9, 2)
    with pytest.raises(GeometryError, match='matches disagree'):
        epipolar.eight_point(xy, xy[:8])
    with pytest.raises(GeometryError, match='xy_b is'):
        epipolar.eight_point(xy, xy.double())
    with pytest.raises(GeometryError, match='not finite'):
        spectral.project_essential(torch.full((3, 3), torch.nan))
