# SPDX-License-Identifier: Apache-2.0
"""Similarities as (..., 4, 4) matrices [[s R, t], [0, 1]].

Tangent vectors are [translation, rotation, log scale]. The translation part of the exponential has
four closed forms for the four ways in which angle and log scale may vanish; the matrix exponential
of the generator has none of these cases and is used instead.
Source: Strasdat, Local accuracy and global consistency for efficient visual SLAM, 2012, ch. 2.
"""

from __future__ import annotations

import torch

from mv_matcher_ros.geometry.se3 import compose_matrix
from mv_matcher_ros.geometry.shapes import check
from mv_matcher_ros.geometry.so3 import hat, so3_exp, so3_log


def _rate(tangent: torch.Tensor) -> torch.Tensor:
    """Generator of rotation and scale: hat(omega) + sigma I, (..., 3, 3)."""
    eye = torch.eye(3, dtype=tangent.dtype, device=tangent.device)
    return hat(tangent[..., 3:6]) + tangent[..., 6, None, None] * eye


def _translation_factor(tangent: torch.Tensor) -> torch.Tensor:
    """W with t = W v: the integral over [0, 1] of exp(tau (hat(omega) + sigma I)), (..., 3, 3)."""
    rate = _rate(tangent)
    eye = torch.eye(3, dtype=rate.dtype, device=rate.device).expand_as(rate)
    top = torch.cat((rate, eye), -1)
    block = torch.cat((top, torch.zeros_like(top)), -2)
    return torch.linalg.matrix_exp(block)[..., :3, 3:]


def scale(target_from_source: torch.Tensor) -> torch.Tensor:
    """Scale of a similarity, (..., 4, 4) → (...)."""
    check('target_from_source', target_from_source, 4, 4)
    # The first column of s R has length s; averaging over the columns is kinder to rounding.
    return target_from_source[..., :3, :3].pow(2).sum((-2, -1)).div(3.0).sqrt()


def exp(tangent: torch.Tensor) -> torch.Tensor:
    """Exponential map of Sim(3).

    Args:
        tangent: (..., 7) [translation (3), rotation (3), log scale].

    Returns:
        (..., 4, 4).

    Raises:
        GeometryError: wrong shape.
    """
    check('tangent', tangent, 7)
    linear = tangent[..., 6].exp()[..., None, None] * so3_exp(tangent[..., 3:6])
    translation = (_translation_factor(tangent) @ tangent[..., :3, None]).squeeze(-1)
    return compose_matrix(linear, translation)


def log(target_from_source: torch.Tensor) -> torch.Tensor:
    """Logarithm of Sim(3), rotation angle in [0, pi]; (..., 4, 4) → (..., 7)."""
    s = scale(target_from_source)
    omega = so3_log(target_from_source[..., :3, :3] / s[..., None, None])
    rest = torch.cat((omega, s.log()[..., None]), -1)
    padded = torch.cat((torch.zeros_like(omega), rest), -1)
    # Never singular: W has eigenvalues (exp(z) - 1) / z at z = sigma +- i angle with angle <= pi.
    factor = _translation_factor(padded)
    translation = torch.linalg.solve(factor, target_from_source[..., :3, 3:]).squeeze(-1)
    return torch.cat((translation, rest), -1)


def inverse(target_from_source: torch.Tensor) -> torch.Tensor:
    """`source_from_target` of a similarity; (..., 4, 4) → (..., 4, 4)."""
    s = scale(target_from_source)[..., None, None]
    linear = target_from_source[..., :3, :3].mT / (s * s)
    return compose_matrix(linear, -(linear @ target_from_source[..., :3, 3:]).squeeze(-1))


def adjoint(target_from_source: torch.Tensor) -> torch.Tensor:
    """Adjoint: T exp(x) T^-1 = exp(Ad x); [[s R, hat(t) R, -t], [0, R, 0], [0, 0, 1]].

    Args:
        target_from_source: (..., 4, 4) = T.

    Returns:
        (..., 7, 7), order [translation, rotation, log scale].
    """
    s = scale(target_from_source)[..., None, None]
    linear, translation = target_from_source[..., :3, :3], target_from_source[..., :3, 3]
    rotation = linear / s
    top = torch.cat((linear, hat(translation) @ rotation, -translation[..., None]), -1)
    zeros = torch.zeros_like(rotation)
    middle = torch.cat((zeros, rotation, zeros[..., :1]), -1)
    bottom = top.new_tensor((0.0,) * 6 + (1.0,)).expand(*top.shape[:-2], 1, 7)
    return torch.cat((top, middle, bottom), -2)
