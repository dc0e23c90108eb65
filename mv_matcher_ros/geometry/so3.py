# SPDX-License-Identifier: Apache-2.0
"""Rotations: exponential, logarithm, Jacobians, quaternions, nearest rotation.

All functions take any leading dimensions. Values and gradients are exact and finite at angle 0
and at angle pi: below a threshold the coefficients are Taylor series in the squared angle, and the
untaken branch of every `where` is evaluated at a harmless argument so that no NaN enters the
gradient. The logarithm goes over the unit quaternion, which is regular on the whole of SO(3) but
for the sign at exactly pi.

Sources: Barfoot, State Estimation for Robotics, ch. 7; Bar-Itzhack, J. Guidance 23(6), 2000.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.quaternion import constant, quaternion_xyzw_from_matrix
from mv_matcher_ros.geometry.shapes import check

# Taylor coefficients in x = angle^2, lowest order first, one column a function.
_EXP_SERIES = tuple(  # sin a / a, (1 - cos a) / a^2, (a - sin a) / a^3
    tuple((-1.0) ** k / factorial(2 * k + first) for first in (1, 2, 3)) for k in range(5)
)
_INVERSE_SERIES = ((1 / 12,), (1 / 720,), (1 / 30240,), (1 / 1209600,), (1 / 47900160,))
_LOG_SERIES = ((2.0,), (-2 / 3,), (2 / 5,), (-2 / 7,))
_EYE = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def series(x: torch.Tensor, coefficients: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """Polynomials in x (..., 1), one a column of `coefficients` (order, F) → (..., F)."""
    *rest, top = constant(coefficients, x.dtype, x.device).unbind(0)
    value = top
    for row in reversed(rest):
        value = torch.addcmul(row, value, x)
    return value


def small_angle(
    omega: torch.Tensor, limit: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared angle x (..., 1), mask x < limit, and a safe x and angle for the closed forms."""
    x = (omega * omega).sum(-1, keepdim=True)
    small = x < limit
    safe = torch.where(small, 1.0, x)
    return x, small, safe, safe.sqrt()


def _limit(omega: torch.Tensor) -> float:
    # Where cancellation in the closed form costs more than the first dropped term of the series.
    return 0.0625 if omega.dtype == torch.float64 else 1.0


def hat(vector: torch.Tensor) -> torch.Tensor:
    """Cross-product matrix: hat(a) @ b = a x b.

    Args:
        vector: (..., 3).

    Returns:
        (..., 3, 3) skew-symmetric.

    Raises:
        GeometryError: wrong shape.
    """
    check('vector', vector, 3)
    x, y, z = vector.unbind(-1)
    nx, ny, nz = (-vector).unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, nz, y, z, zero, nx, ny, x, zero), -1).unflatten(-1, (3, 3))


def vee(matrix: torch.Tensor) -> torch.Tensor:
    """Vector of the skew-symmetric part of a matrix, the inverse of `hat`.

    Args:
        matrix: (..., 3, 3).

    Returns:
        (..., 3).
    """
    check('matrix', matrix, 3, 3)
    skew = (matrix - matrix.mT) * 0.5
    return torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1)


def so3_exp(omega: torch.Tensor) -> torch.Tensor:
    """Rotation matrix of a rotation vector (Rodrigues).

    Args:
        omega: (..., 3) axis times angle, rad.

    Returns:
        (..., 3, 3) rotation.

    Raises:
        GeometryError: wrong shape.
    """
    return exp_and_left_jacobian(omega, with_jacobian=False)[0]


def exp_and_left_jacobian(
    omega: torch.Tensor, with_jacobian: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation and left Jacobian, which share every intermediate value; (..., 3) → (..., 3, 3)."""
    k = hat(omega)
    x, small, safe, angle = small_angle(omega, _limit(omega))
    sine, half = angle.sin(), (0.5 * angle).sin()
    # 2 sin^2(a / 2) = 1 - cos(a) without the cancellation.
    closed = torch.cat((sine / angle, 2.0 * half * half / safe, (angle - sine) / angle / safe), -1)
    factors = torch.where(small, series(x, _EXP_SERIES), closed)
    sinc, cosc, cubic = factors[..., None, None, :].unbind(-1)
    k2 = k @ k
    eye = constant(_EYE, omega.dtype, omega.device)
    rotation = torch.addcmul(torch.addcmul(eye, sinc, k), cosc, k2)
    if not with_jacobian:
        return rotation, rotation
    return rotation, torch.addcmul(torch.addcmul(eye, cosc, k), cubic, k2)


def so3_log(rotation: torch.Tensor) -> torch.Tensor:
    """Rotation vector of a rotation matrix, angle in [0, pi].

    At exactly pi both signs of the axis are right; one of them is returned.

    Args:
        rotation: (..., 3, 3).

    Returns:
        (..., 3) rad.

    Raises:
        GeometryError: wrong shape.
    """
    return _quaternion_log(quaternion_xyzw_from_matrix(rotation))


def _quaternion_log(quaternion: torch.Tensor) -> torch.Tensor:
    """Rotation vector of unit quaternions with w >= 0."""
    vector, w = quaternion[..., :3], quaternion[..., 3:]
    limit = 1e-4 if vector.dtype == torch.float64 else 4e-3
    x, small, _, norm = small_angle(vector, limit)
    w_safe = torch.where(small, w, 1.0)
    tangent2 = torch.where(small, x, 0.0) / (w_safe * w_safe)
    near = series(tangent2, _LOG_SERIES) / w_safe
    return vector * torch.where(small, near, 2.0 * torch.atan2(norm, w) / norm)


def so3_left_jacobian(omega: torch.Tensor) -> torch.Tensor:
    """Left Jacobian: exp(omega + d) = exp(J d) exp(omega) to first order.

    Args:
        omega: (..., 3) rad.

    Returns:
        (..., 3, 3). Source: Barfoot eq. 7.77.
    """
    return exp_and_left_jacobian(omega)[1]


def so3_right_jacobian(omega: torch.Tensor) -> torch.Tensor:
    """Right Jacobian: exp(omega + d) = exp(omega) exp(J d); (..., 3) → (..., 3, 3)."""
    return so3_left_jacobian(omega).mT


def so3_left_jacobian_inverse(omega: torch.Tensor) -> torch.Tensor:
    """Inverse of the left Jacobian; regular for angles below 2 pi.

    Args:
        omega: (..., 3) rad.

    Returns:
        (..., 3, 3). Source: Barfoot eq. 7.76.
    """
    k = hat(omega)
    x, small, safe, angle = small_angle(omega, _limit(omega))
    half = 0.5 * angle
    closed = (1.0 - half * half.cos() / half.sin()) / safe
    factor = torch.where(small, series(x, _INVERSE_SERIES), closed)[..., None]
    eye = constant(_EYE, omega.dtype, omega.device)
    return torch.addcmul(eye - 0.5 * k, factor, k @ k)


def so3_right_jacobian_inverse(omega: torch.Tensor) -> torch.Tensor:
    """Inverse of the right Jacobian; (..., 3) → (..., 3, 3)."""
    return so3_left_jacobian_inverse(omega).mT


def rotation_angle(rotation: torch.Tensor) -> torch.Tensor:
    """Angle of a rotation in [0, pi], accurate at both ends.

    At 0 and pi, where the angle has a kink, the gradient is zero.

    Args:
        rotation: (..., 3, 3).

    Returns:
        (...) rad.
    """
    sine_axis = vee(rotation)
    x = (sine_axis * sine_axis).sum(-1)
    still = x == 0
    sine = torch.where(still, torch.zeros_like(x), torch.where(still, 1.0, x).sqrt())
    cosine = 0.5 * (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0)
    return torch.atan2(sine, cosine)


class _NearestRotation(torch.autograd.Function):
    """argmax over rotations R of trace(R^T M), with the derivative of the polar factor."""

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(matrix)
        sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(s.dtype)
        sign = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), -1)
        rotation = (u * sign[..., None, :]) @ vh
        ctx.save_for_backward(rotation, vh, s * sign)
        return rotation

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        rotation, vh, p = ctx.saved_tensors
        basis = rotation @ vh.mT
        y = basis.mT @ gradient @ vh.mT
        gap = p[..., :, None] + p[..., None, :]
        # An undetermined rotation has a gap of zero: the floor keeps its gradient finite.
        floor = 1e-6 * p[..., :1, None].abs() + torch.finfo(p.dtype).tiny ** 0.5
        return basis @ ((y - y.mT) * gap / (gap * gap + floor * floor)) @ vh


def nearest_rotation(matrix: torch.Tensor) -> torch.Tensor:
    """Rotation that maximises trace(R^T M): the nearest one in the Frobenius norm (Procrustes).

    The gradient is that of the polar factor, 1 / (s_i + s_j), finite also for equal singular
    values, where the gradient of the SVD is not; where the rotation is undetermined it is damped.
    First derivatives only.

    Args:
        matrix: (..., 3, 3), finite.

    Returns:
        (..., 3, 3) rotation. Source: Kabsch 1976; Umeyama, PAMI 13(4), 1991, lemma.

    Raises:
        GeometryError: wrong shape or values that are not finite.
    """
    check('matrix', matrix, 3, 3)
    if not bool(matrix.isfinite().all()):
        raise GeometryError('nearest_rotation: the matrix has values that are not finite')
    result: torch.Tensor = _NearestRotation.apply(matrix)
    return result


def normalise_rotation(rotation: torch.Tensor) -> torch.Tensor:
    """Remove the drift of a product of rotations; (..., 3, 3) → the nearest rotation."""
    return nearest_rotation(rotation)
