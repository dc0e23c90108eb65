# SPDX-License-Identifier: Apache-2.0
"""Umeyama alignment: known answers, evo as oracle, degenerate point sets, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import se3, sim3
from mv_matcher_ros.geometry.alignment import align_points


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


POSE = se3.exp(torch.tensor([1.0, -2.0, 0.5, 0.4, -1.2, 2.0], dtype=torch.float64))


@pytest.mark.parametrize('with_scale', [False, True])
@pytest.mark.parametrize('count', [3, 4, 100])
def test_exact_data_give_the_exact_transform(count: int, with_scale: bool) -> None:
    scale = 2.5 if with_scale else 1.0
    tangent = torch.cat((se3.log(POSE), torch.tensor([np.log(scale)], dtype=torch.float64)))
    expected = sim3.exp(tangent)
    source = cloud(2, count, 3)
    result = align_points(source, se3.transform(expected, source), with_scale=with_scale)
    assert result.determined.all()
    assert (result.target_from_source - expected).abs().max() < 1e-12
    assert (result.scale - scale).abs().max() < 1e-12
    assert result.rmse.max() < 1e-12


@pytest.mark.parametrize('with_scale', [False, True])
def test_noisy_data_equal_evo(with_scale: bool) -> None:
    from evo.core import geometry

    source = cloud(60, 3)
    target = 1.7 * se3.transform(POSE, source) + 0.3 * cloud(60, 3, seed=1)
    rotation, translation, scale = geometry.umeyama_alignment(
        source.numpy().T, target.numpy().T, with_scale
    )
    result = align_points(source, target, with_scale=with_scale)
    assert abs(scale - float(result.scale)) < 1e-12
    assert np.abs(result.target_from_source[:3, 3].numpy() - translation).max() < 1e-12
    linear = result.target_from_source[:3, :3].numpy()
    assert np.abs(linear - scale * rotation).max() < 1e-12


def test_a_mirror_image_still_gets_a_rotation() -> None:
    source = cloud(20, 3)
    mirrored = source * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    rotation = align_points(source, mirrored).target_from_source[:3, :3]
    assert abs(float(torch.linalg.det(rotation)) - 1) < 1e-12


def test_weights_count_like_repetition_and_zero_like_absence() -> None:
    source = cloud(10, 3)
    target = se3.transform(POSE, source) + 0.2 * cloud(10, 3, seed=2)
    weights = torch.ones(10, dtype=torch.float64)
    weights[0], weights[1] = 3.0, 0.0
    broken = target.clone()
    broken[1] = torch.nan
    result = align_points(source, broken, weights, with_scale=True)
    index = [0, 0, 0, 2, 3, 4, 5, 6, 7, 8, 9]
    expected = align_points(source[index], target[index], with_scale=True)
    assert (result.target_from_source - expected.target_from_source).abs().max() < 1e-12
    assert abs(float(result.rmse - expected.rmse)) < 1e-12


@pytest.mark.parametrize('with_scale', [False, True])
def test_degenerate_sets_are_defined_and_flagged(with_scale: bool) -> None:
    line = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None] * cloud(3)
    same = cloud(1, 3).expand(5, 3) + 1e3
    for source, count in ((line, 10), (same, 5), (line[:2], 2), (line[:1], 1), (line[:0], 0)):
        source = source.clone().requires_grad_()
        target = se3.transform(POSE, source.detach())
        result = align_points(source, target, with_scale=with_scale)
        assert not result.determined
        assert result.target_from_source.isfinite().all()
        assert result.rmse < 1e-6
        turn = se3.rotation_angle(result.target_from_source[:3, :3])
        # A line fixes two of three angles: of the rotations left the smallest one is taken.
        assert turn < se3.rotation_angle(POSE[:3, :3])
        if count in (0, 1, 5):
            assert turn < 1e-9
        (result.target_from_source.sum() + result.rmse).backward()
        assert source.grad is not None
        assert source.grad.isfinite().all()
    plane = cloud(10, 3)
    plane[:, 2] = 0.0
    assert align_points(plane, se3.transform(POSE, plane)).determined


def test_gradients_against_finite_differences() -> None:
    source, noise = cloud(6, 3), 0.3 * cloud(6, 3, seed=3)
    target = se3.transform(POSE, source) + noise
    weights = cloud(6, seed=4).abs() + 0.1
    inputs = tuple(t.requires_grad_() for t in (source, target, weights))
    for with_scale in (False, True):
        assert torch.autograd.gradcheck(
            lambda s, t, w, flag=with_scale: align_points(s, t, w, flag).target_from_source, inputs
        )


def test_float32_and_wrong_shapes() -> None:
    source = cloud(30, 3).float()
    result = align_points(source, se3.transform(POSE.float(), source))
    assert result.target_from_source.dtype == torch.float32
    assert (result.target_from_source - POSE).abs().max() < 1e-5
    with pytest.raises(GeometryError, match='point sets disagree'):
        align_points(source, source[:5])
    with pytest.raises(GeometryError, match=r'target is torch\.float64'):
        align_points(source, source.double())
