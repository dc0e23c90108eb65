# SPDX-License-Identifier: Apache-2.0
"""Laws of Sim(3), with GTSAM as an oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mv_matcher_ros.geometry import se3, sim3


def tangents(count: int = 50, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 7, generator=generator, dtype=torch.float64).to(dtype) * 0.8


# Which of angle and log scale vanish decides among four closed forms; all must agree.
CASES = [(a, s) for a in (0.0, 1e-9, 1e-4, 0.5, 3.0) for s in (0.0, 1e-9, 1e-4, -0.7, 1.5)]


@pytest.mark.parametrize(('angle', 'log_scale'), CASES)
def test_log_is_the_inverse_of_exp(angle: float, log_scale: float) -> None:
    axis = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    tangent = torch.tensor([1.0, -2.0, 0.5, 0, 0, 0, log_scale], dtype=torch.float64)
    tangent[3:6] = axis * angle
    assert (sim3.log(sim3.exp(tangent)) - tangent).abs().max() < 1e-12
    generator = torch.zeros(4, 4, dtype=torch.float64)
    generator[:3, :3] = se3.hat(tangent[3:6]) + log_scale * torch.eye(3, dtype=torch.float64)
    generator[:3, 3] = tangent[:3]
    assert (sim3.exp(tangent) - torch.matrix_exp(generator)).abs().max() < 1e-12
    assert torch.autograd.gradcheck(sim3.exp, (tangent.requires_grad_(),), atol=1e-6)
    pose = sim3.exp(tangent.detach()).requires_grad_()
    assert torch.autograd.gradcheck(sim3.log, (pose,), atol=1e-6)


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_group_laws(dtype: torch.dtype, limit: float) -> None:
    a, b = sim3.exp(tangents(dtype=dtype)), sim3.exp(tangents(dtype=dtype).flip(0))
    eye = torch.eye(4, dtype=dtype)
    assert (a @ sim3.inverse(a) - eye).abs().max() < limit
    assert (sim3.scale(a @ b) - sim3.scale(a) * sim3.scale(b)).abs().max() < limit * 10
    assert (sim3.adjoint(a @ b) - sim3.adjoint(a) @ sim3.adjoint(b)).abs().max() < limit * 20
    xi = 0.2 * tangents(dtype=dtype)
    left = a @ sim3.exp(xi) @ sim3.inverse(a)
    right = sim3.exp((sim3.adjoint(a) @ xi[..., None]).squeeze(-1))
    assert (left - right).abs().max() < limit * 100


def test_without_scale_it_is_se3() -> None:
    xi = torch.cat((tangents()[:, :6], torch.zeros(50, 1, dtype=torch.float64)), 1)
    assert (sim3.exp(xi) - se3.exp(xi[:, :6])).abs().max() < 1e-13
    adjoint = sim3.adjoint(sim3.exp(xi))[:, :6, :6]
    assert (adjoint - se3.adjoint(se3.exp(xi[:, :6]))).abs().max() < 1e-13


def test_similarity_equals_gtsam() -> None:
    gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(2)).double()
    for tangent in tangents(10):
        pose = sim3.exp(tangent)
        scale = float(sim3.scale(pose))
        rotation = gtsam.Rot3((pose[:3, :3] / scale).numpy())
        # GTSAM's similarity maps p to s (R p + t).
        other = gtsam.Similarity3(rotation, pose[:3, 3].numpy() / scale, scale)
        inverse = other.inverse()
        ours = sim3.inverse(pose)
        assert abs(inverse.scale() - float(sim3.scale(ours))) < 1e-12
        for point in points:
            expected = other.transformFrom(point.numpy())
            moved = se3.transform(pose, point[None])[0].numpy()
            assert np.abs(moved - expected).max() < 1e-12
