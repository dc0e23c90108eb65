# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as (..., 4, 4) matrices `target_from_source`.

Tangent vectors are [translation, rotation], perturbations are on the right: T exp(xi).
Source: Barfoot, State Estimation for Robotics, ch. 7, whose order of the tangent is ours.
"""

from __future__ import annotations

from math import factorial

import torch

from mv_matcher_ros.geometry.quaternion import (
    constant,
    matrix_from_quaternion_xyzw,
    quaternion_xyzw_from_matrix,
)
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.so3 import (
    exp_and_left_jacobian,
    hat,
    nearest_rotation,
    normalise_rotation,
    rotation_angle,
    series,
    small_angle,
    so3_exp,
    so3_left_jacobian,
    so3_left_jacobian_inverse,
    so3_log,
    so3_right_jacobian,
    so3_right_jacobian_inverse,
    vee,
)

__all__ = [
    'adjoint',
    'compose_matrix',
    'exp',
    'hat',
    'interpolate',
    'inverse',
    'left_jacobian',
    'left_jacobian_inverse',
    'log',
    'matrix_from_quaternion_xyzw',
    'nearest_rotation',
    'normalise_rotation',
    'quaternion_xyzw_from_matrix',
    'right_jacobian',
    'right_jacobian_inverse',
    'rotation_angle',
    'so3_exp',
    'so3_left_jacobian',
    'so3_left_jacobian_inverse',
    'so3_log',
    'so3_right_jacobian',
    'so3_right_jacobian_inverse',
    'transform',
    'vee',
]

# Series in x = angle^2 of Barfoot's coefficients, to machine precision for angles below 2 rad:
# (-1)^k divided by (2k+3)!, (2k+4)!, and by (2k+5)! with the factor k+1.
_CORNER_SERIES = tuple(
    (
        (-1.0) ** k / factorial(2 * k + 3),
        (-1.0) ** k / factorial(2 * k + 4),
        (-1.0) ** k * (k + 1) / factorial(2 * k + 5),
    )
    for k in range(9)
)


def compose_matrix(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """Transform [[R, t], [0, 1]].

    Args:
        rotation: (..., 3, 3), for Sim(3) times the scale.
        translation: (..., 3), leading dimensions broadcast with those of `rotation`.

    Returns:
        (..., 4, 4).
    """
    check('rotation', rotation, 3, 3)
    check('translation', translation, 3)
    if rotation.shape[:-2] != translation.shape[:-1]:
        lead = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
        rotation, translation = rotation.expand(*lead, 3, 3), translation.expand(*lead, 3)
    top = torch.cat((rotation, translation[..., None]), -1)
    bottom = constant(((0, 0, 0, 1),), top.dtype, top.device)
    return torch.cat((top, bottom.expand(*top.shape[:-2], 1, 4)), -2)


def exp(xi: torch.Tensor) -> torch.Tensor:
    """Exponential map of SE(3).

    Args:
        xi: (..., 6) [translation, rotation], m and rad.

    Returns:
        (..., 4, 4). Source: Barfoot eq. 7.85.

    Raises:
        GeometryError: wrong shape.
    """
    check('xi', xi, 6)
    rotation, jacobian = exp_and_left_jacobian(xi[..., 3:])
    return compose_matrix(rotation, (jacobian @ xi[..., :3, None]).squeeze(-1))


def log(target_from_source: torch.Tensor) -> torch.Tensor:
    """Logarithm of SE(3), rotation angle in [0, pi].

    Args:
        target_from_source: (..., 4, 4).

    Returns:
        (..., 6) [translation, rotation].

    Raises:
        GeometryError: wrong shape.
    """
    check('target_from_source', target_from_source, 4, 4)
    omega = so3_log(target_from_source[..., :3, :3])
    inverse_jacobian = so3_left_jacobian_inverse(omega)
    translation = (inverse_jacobian @ target_from_source[..., :3, 3:]).squeeze(-1)
    return torch.cat((translation, omega), -1)


def inverse(target_from_source: torch.Tensor) -> torch.Tensor:
    """`source_from_target` of a rigid transform; (..., 4, 4) → (..., 4, 4)."""
    check('target_from_source', target_from_source, 4, 4)
    transposed = target_from_source[..., :3, :3].mT
    translation = -(transposed @ target_from_source[..., :3, 3:]).squeeze(-1)
    return compose_matrix(transposed, translation)


def normalise(target_from_source: torch.Tensor) -> torch.Tensor:
    """(..., 4, 4) with rounding taken out of the rotation.

    `inverse` transposes: a chain that multiplies by an inverse doubles what is not orthogonal.
    """
    rotation = normalise_rotation(target_from_source[..., :3, :3])
    return compose_matrix(rotation, target_from_source[..., :3, 3])


def transform(target_from_source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Points of `source` seen from `target`.

    Args:
        target_from_source: (..., 4, 4) rigid or with scale.
        points: (..., N, 3) in source; leading dimensions broadcast.

    Returns:
        (..., N, 3) in target.

    Raises:
        GeometryError: wrong shape, or types that differ.
    """
    check('target_from_source', target_from_source, 4, 4)
    check('points', points, -1, 3)
    check_same_type(target_from_source=target_from_source, points=points)
    linear = target_from_source[..., :3, :3]
    return points @ linear.mT + target_from_source[..., None, :3, 3]


def adjoint(target_from_source: torch.Tensor) -> torch.Tensor:
    """Adjoint: T exp(xi) T^-1 = exp(Ad xi); [[R, hat(t) R], [0, R]].

    Args:
        target_from_source: (..., 4, 4) = T.

    Returns:
        (..., 6, 6): tangent vectors of `source` in `target`, order [translation, rotation].
    """
    check('target_from_source', target_from_source, 4, 4)
    rotation = target_from_source[..., :3, :3]
    return _blocks(rotation, hat(target_from_source[..., :3, 3]) @ rotation)


def _blocks(diagonal: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """[[D, C], [0, D]] of 3x3 blocks."""
    top = torch.cat((diagonal, corner), -1)
    bottom = torch.cat((torch.zeros_like(corner), diagonal), -1)
    return torch.cat((top, bottom), -2)


def left_jacobian(xi: torch.Tensor) -> torch.Tensor:
    """Left Jacobian: exp(xi + d) = exp(J d) exp(xi) to first order.

    Args:
        xi: (..., 6) [translation, rotation].

    Returns:
        (..., 6, 6). Source: Barfoot eq. 7.85 and 7.86.
    """
    check('xi', xi, 6)
    return _blocks(so3_left_jacobian(xi[..., 3:]), _jacobian_corner(xi))


def left_jacobian_inverse(xi: torch.Tensor) -> torch.Tensor:
    """Inverse of the left Jacobian, angle below 2 pi; (..., 6) → (..., 6, 6). Barfoot eq. 7.95."""
    check('xi', xi, 6)
    inverse_block = so3_left_jacobian_inverse(xi[..., 3:])
    return _blocks(inverse_block, -inverse_block @ _jacobian_corner(xi) @ inverse_block)


def right_jacobian(xi: torch.Tensor) -> torch.Tensor:
    """Right Jacobian: exp(xi + d) = exp(xi) exp(J d) to first order; (..., 6) → (..., 6, 6)."""
    return left_jacobian(-xi)


def right_jacobian_inverse(xi: torch.Tensor) -> torch.Tensor:
    """Inverse of the right Jacobian: log(exp(xi) exp(d)) = xi + J^-1 d; (..., 6) → (..., 6, 6)."""
    return left_jacobian_inverse(-xi)


def _jacobian_corner(xi: torch.Tensor) -> torch.Tensor:
    """Q(translation, rotation) of Barfoot eq. 7.86b, (..., 3, 3)."""
    v, w = hat(xi[..., :3]), hat(xi[..., 3:])
    x, small, safe, angle = small_angle(xi[..., 3:], 4.0)
    sine, cosine = angle.sin(), angle.cos()
    first = (angle - sine) / (safe * angle)
    second = (0.5 * safe + cosine - 1.0) / (safe * safe)
    third = (2.0 * angle + angle * cosine - 3.0 * sine) / (2.0 * safe * safe * angle)
    closed = torch.cat((first, second, third), -1)
    factors = torch.where(small, series(x, _CORNER_SERIES), closed)
    c1, c2, c3 = factors[..., None, None, :].unbind(-1)
    wv, vw = w @ v, v @ w
    wvw = w @ vw
    return (
        0.5 * v
        + c1 * (wv + vw + wvw)
        + c2 * (w @ wv + vw @ w - 3.0 * wvw)
        + c3 * (wvw @ w + w @ wvw)
    )


def interpolate(
    target_from_a: torch.Tensor, target_from_b: torch.Tensor, alpha: torch.Tensor | float
) -> torch.Tensor:
    """Pose on the screw motion from `a` (alpha 0) to `b` (alpha 1), and beyond.

    Args:
        target_from_a, target_from_b: (..., 4, 4).
        alpha: number or (...).

    Returns:
        (..., 4, 4).
    """
    step = log(inverse(target_from_a) @ target_from_b)
    factor = torch.as_tensor(alpha, dtype=step.dtype, device=step.device)
    return target_from_a @ exp(factor[..., None] * step)
