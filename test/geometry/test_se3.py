# SPDX-License-Identifier: Apache-2.0
"""Laws of SO(3) and SE(3), and exactness at angle 0 and pi."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import quaternion, se3

TYPES = (torch.float64, torch.float32)
ANGLES = (0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 0.1, 0.249, 0.251, 0.999, 1.001, 1.999, 2.001)
ANGLES += (3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi - 1e-9, math.pi)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-13 if dtype == torch.float64 else 2e-6


def axis(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(3, generator=generator, dtype=torch.float64)
    return (vector / vector.norm()).to(dtype)


def tangents(count: int, dtype: torch.dtype = torch.float64, angle: float = 3.0) -> torch.Tensor:
    """Random tangent vectors with rotation angles below `angle`."""
    generator = torch.Generator().manual_seed(1)
    xi = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    length = xi[:, 3:].norm(dim=1, keepdim=True)
    target = angle * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    xi[:, 3:] *= target / length
    return xi.to(dtype)


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('angle', ANGLES)
def test_so3_exp_equals_scipy_and_log_is_its_inverse_at_every_angle(
    angle: float, dtype: torch.dtype
) -> None:
    for seed in range(4):
        omega = axis(seed, dtype) * angle
        rotation = se3.so3_exp(omega)
        expected = Rotation.from_rotvec(omega.double().numpy()).as_matrix()
        assert np.abs(rotation.double().numpy() - expected).max() < tolerance(dtype)
        back = se3.so3_log(rotation)
        # At pi the axis is known up to sign.
        wrapped = -back if angle > 3.14 and torch.dot(back, omega) < 0 else back
        assert (wrapped - omega).norm() < 4 * tolerance(dtype)
        # Small angles keep their relative accuracy, not only the absolute one.
        assert (wrapped - omega).norm() <= 1e-5 * angle + 1e-300


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('angle', ANGLES)
def test_gradient_of_log_exp_is_the_identity_at_every_angle(
    angle: float, dtype: torch.dtype
) -> None:
    xi = torch.cat((torch.tensor([0.3, -0.2, 0.5], dtype=dtype), axis(3, dtype) * angle))
    jacobian = torch.autograd.functional.jacobian(lambda x: se3.log(se3.exp(x)), xi)
    assert jacobian.isfinite().all()
    if torch.dot(se3.log(se3.exp(xi))[3:], xi[3:]) < 0:
        return  # beyond pi the logarithm is on its other branch; finite is what is asked
    assert (jacobian - torch.eye(6, dtype=dtype)).abs().max() < 20 * tolerance(dtype)


@pytest.mark.parametrize('angle', [0.0, 1e-9, 1e-4, 0.25, 1.0, 2.0, math.pi - 1e-4])
def test_gradients_against_finite_differences(angle: float) -> None:
    xi = torch.cat((torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), axis(5) * angle))
    xi = xi.requires_grad_()
    for function in (se3.exp, se3.left_jacobian, se3.left_jacobian_inverse):
        assert torch.autograd.gradcheck(function, (xi,), atol=1e-6)
    pose = se3.exp(xi.detach()).requires_grad_()
    for function in (se3.log, se3.inverse, se3.adjoint):
        assert torch.autograd.gradcheck(function, (pose,), atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x: se3.log(se3.exp(x)), (xi,), atol=1e-5)


def test_se3_exp_equals_the_matrix_exponential() -> None:
    xi = tangents(200, angle=6.0)
    generator = torch.zeros(200, 4, 4, dtype=torch.float64)
    generator[:, :3, :3] = se3.hat(xi[:, 3:])
    generator[:, :3, 3] = xi[:, :3]
    assert (se3.exp(xi) - torch.matrix_exp(generator)).abs().max() < 1e-13


@pytest.mark.parametrize('dtype', TYPES)
def test_adjoint_identity(dtype: torch.dtype) -> None:
    pose, xi = se3.exp(tangents(50, dtype)), 0.3 * tangents(50, dtype).flip(0)
    left = pose @ se3.exp(xi) @ se3.inverse(pose)
    right = se3.exp((se3.adjoint(pose) @ xi[..., None]).squeeze(-1))
    assert (left - right).abs().max() < 100 * tolerance(dtype)
    product = se3.adjoint(pose) @ se3.adjoint(se3.exp(xi))
    assert (product - se3.adjoint(pose @ se3.exp(xi))).abs().max() < 20 * tolerance(dtype)


@pytest.mark.parametrize('angle', [0.0, 1e-8, 0.1, 1.0, 1.999, 2.001, 3.1])
def test_jacobians_are_the_derivatives_they_claim_to_be(angle: float) -> None:
    xi = torch.cat((torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64), axis(7) * angle))
    inverse = se3.inverse(se3.exp(xi))
    zero = torch.zeros(6, dtype=torch.float64)
    right = torch.autograd.functional.jacobian(lambda d: se3.log(inverse @ se3.exp(xi + d)), zero)
    left = torch.autograd.functional.jacobian(lambda d: se3.log(se3.exp(xi + d) @ inverse), zero)
    eye = torch.eye(6, dtype=torch.float64)
    assert (right - se3.right_jacobian(xi)).abs().max() < 1e-12
    assert (left - se3.left_jacobian(xi)).abs().max() < 1e-12
    assert (se3.right_jacobian(xi) @ se3.right_jacobian_inverse(xi) - eye).abs().max() < 1e-13
    assert (se3.left_jacobian(xi) @ se3.left_jacobian_inverse(xi) - eye).abs().max() < 1e-13
    omega = xi[3:]
    turn = se3.so3_left_jacobian(omega) @ se3.so3_left_jacobian_inverse(omega)
    assert (turn - eye[:3, :3]).abs().max() < 1e-13
    assert (se3.so3_right_jacobian(omega) - se3.right_jacobian(xi)[:3, :3]).abs().max() < 1e-14


def test_transform_composes_and_inverts() -> None:
    a, b = se3.exp(tangents(5)), se3.exp(tangents(5).flip(0))
    points = torch.randn(5, 11, 3, generator=torch.Generator().manual_seed(0)).double()
    chained = se3.transform(a, se3.transform(b, points))
    assert (chained - se3.transform(a @ b, points)).abs().max() < 1e-13
    assert (se3.transform(se3.inverse(a), se3.transform(a, points)) - points).abs().max() < 1e-13
    assert se3.transform(a, points[:, :0]).shape == (5, 0, 3)


@pytest.mark.parametrize('dtype', TYPES)
def test_quaternions_equal_scipy_in_all_four_branches(dtype: torch.dtype) -> None:
    near_pi = torch.eye(3, dtype=torch.float64) * (math.pi - 1e-7)
    omega = torch.cat((tangents(200)[:, 3:], near_pi, torch.zeros(1, 3).double()))
    rotation = se3.so3_exp(omega.to(dtype))
    quaternion_xyzw = se3.quaternion_xyzw_from_matrix(rotation)
    expected = torch.from_numpy(Rotation.from_matrix(rotation.double().numpy()).as_quat())
    expected = expected * torch.where(expected[:, 3:] < 0, -1.0, 1.0)
    difference = (quaternion_xyzw.double() - expected).abs().amax(1)
    assert difference.max() < 10 * tolerance(dtype)
    back = se3.matrix_from_quaternion_xyzw(quaternion_xyzw * 3.0)
    assert (back - rotation).abs().max() < 10 * tolerance(dtype)


def test_a_quaternion_without_length_is_refused() -> None:
    with pytest.raises(GeometryError, match='length zero'):
        se3.matrix_from_quaternion_xyzw(torch.zeros(4))
    with pytest.raises(GeometryError, match='not finite'):
        se3.matrix_from_quaternion_xyzw(torch.tensor([0.0, 0.0, torch.nan, 1.0]))


@pytest.mark.parametrize('angle', ANGLES)
def test_rotation_angle_is_accurate_at_both_ends(angle: float) -> None:
    rotation = se3.so3_exp(axis(2) * angle).requires_grad_()
    measured = se3.rotation_angle(rotation)
    assert abs(measured.item() - angle) < 1e-15 + 1e-12 * min(angle, 1.0) + 2e-15 * (angle > 3)
    measured.backward()
    assert rotation.grad is not None
    assert rotation.grad.isfinite().all()


def test_nearest_rotation_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    rotation = se3.nearest_rotation(matrix)
    eye = torch.eye(3, dtype=torch.float64)
    assert (rotation @ rotation.mT - eye).abs().max() < 1e-14
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-14
    score = (rotation * matrix).sum((-2, -1))
    for other in se3.so3_exp(tangents(50)[:, 3:]):
        assert ((other * matrix).sum((-2, -1)) <= score + 1e-12).all()
    # Here the gradient of the SVD would be 0/0: all three singular values are equal.
    drifted = se3.so3_exp(tangents(5)[:, 3:]).requires_grad_()
    assert torch.autograd.gradcheck(se3.normalise_rotation, (drifted,))
    assert torch.autograd.gradcheck(se3.nearest_rotation, (matrix[:5].requires_grad_(),))
    undetermined = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    se3.nearest_rotation(undetermined).sum().backward()
    assert undetermined.grad is not None
    assert undetermined.grad.isfinite().all()


def test_interpolation_ends_and_is_constant_speed() -> None:
    a, b = se3.exp(tangents(5)), se3.exp(tangents(5).flip(0))
    assert (se3.interpolate(a, b, 0.0) - a).abs().max() < 1e-14
    assert (se3.interpolate(a, b, 1.0) - b).abs().max() < 1e-13
    third = se3.interpolate(a, b, 1 / 3)
    step = se3.log(se3.inverse(a) @ third)
    rest = se3.log(se3.inverse(third) @ b)
    assert (rest - 2 * step).abs().max() < 1e-12


def test_shapes_and_types_are_checked() -> None:
    with pytest.raises(GeometryError, match=r'xi must have shape \(\.\.\., 6\), got \(5,\)'):
        se3.exp(torch.zeros(5))
    with pytest.raises(GeometryError, match='float32 or float64'):
        se3.log(torch.eye(4, dtype=torch.int64))
    with pytest.raises(GeometryError, match='torch tensor'):
        se3.inverse(np.eye(4))  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match=r'points is torch\.float32'):
        se3.transform(torch.eye(4, dtype=torch.float64), torch.zeros(2, 3))


def test_batches_of_any_shape_also_empty() -> None:
    xi = tangents(24).reshape(2, 3, 4, 6)
    assert (se3.log(se3.exp(xi)) - xi).abs().max() < 1e-12
    empty = torch.zeros(0, 6)
    assert se3.log(se3.exp(empty)).shape == (0, 6)
    assert se3.left_jacobian_inverse(empty).shape == (0, 6, 6)


def test_constants_made_inside_a_transform_stay_usable() -> None:
    quaternion.constant.cache_clear()
    zero = torch.zeros(2, 6, dtype=torch.float64)
    hessian = torch.func.vmap(torch.func.hessian(lambda x: se3.log(se3.exp(x)).square().sum()))
    assert (hessian(zero) - 2 * torch.eye(6, dtype=torch.float64)).abs().max() < 1e-12
    quaternion.constant.cache_clear()
    with torch.inference_mode():
        se3.exp(zero)
    xi = zero.clone().requires_grad_()
    se3.log(se3.exp(xi)).sum().backward()
    assert xi.grad is not None


def test_normalise_takes_rounding_out_of_a_chain_that_would_double_it() -> None:
    step = se3.exp(torch.tensor([0.3, -0.1, 0.2, 0.4, 0.2, -0.3], dtype=torch.float64))
    rough = step.clone()
    rough[:3, :3] *= 1.001
    good = se3.normalise(rough)
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(good[:3, :3].T @ good[:3, :3], identity, atol=1e-14)
    assert torch.allclose(good, step, atol=1e-12)
    assert torch.equal(good[:3, 3], rough[:3, 3])
