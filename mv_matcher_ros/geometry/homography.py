# SPDX-License-Identifier: Apache-2.0
"""Homographies and rotations between two views: what planes and turning cameras do to matches.

All coordinates are normalised (x/z, y/z), so that a turning camera's homography is its rotation.
Source: Hartley and Zisserman, Multiple View Geometry, 2nd edition, ch. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mv_matcher_ros.geometry.epipolar import (
    check_pair,
    condition,
    homogeneous,
    null_space_ratio,
    weight_share,
)
from mv_matcher_ros.geometry.shapes import check
from mv_matcher_ros.geometry.so3 import nearest_rotation
from mv_matcher_ros.geometry.spectral import smallest_eigenvector


@dataclass(frozen=True)
class Homography:
    """Result of the direct linear transform.

    Attributes:
        b_from_a: (..., 3, 3), Frobenius norm sqrt(3) like a rotation's, positive for points in
            front of both views.
        degeneracy: (...) in [0, 1], ratio of the two smallest singular values of the system.
        degenerate: (...) bool: the matches (fewer than four, on a line) do not determine it.
    """

    b_from_a: torch.Tensor
    degeneracy: torch.Tensor
    degenerate: torch.Tensor


def homography_dlt(
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    weights: torch.Tensor | None = None,
    gap_floor: float = 1e-6,
) -> Homography:
    """Homography that minimises the weighted squared algebraic error, in float64.

    Args:
        xy_a, xy_b: (..., N, 2) matched normalised coordinates; pairs not finite count as absent.
        weights: (..., N), multiply the squared residuals; None is ones.
        gap_floor: damping of the gradient, see `smallest_eigenvector`.

    Returns:
        Homography; where degenerate one of many, with a finite gradient.

    Raises:
        GeometryError: shapes or types disagree.
    """
    a, b, w = check_pair(xy_a, xy_b, weights)
    dtype = a.dtype
    a, b, w = a.double(), b.double(), w.double()
    share = weight_share(w)
    a_conditioned, condition_a = condition(a, share)
    b_conditioned, condition_b = condition(b, share)
    source = homogeneous(a_conditioned)
    zero = torch.zeros_like(source)
    u, v = b_conditioned[..., :1], b_conditioned[..., 1:]
    rows = torch.stack(
        (
            torch.cat((source, zero, -u * source), -1),
            torch.cat((zero, source, -v * source), -1),
        ),
        -2,
    ).flatten(-3, -2)
    twice = share.repeat_interleave(2, -1)
    vector, values = smallest_eigenvector(rows.mT @ (rows * twice[..., None]), gap_floor)
    matrix = torch.linalg.inv(condition_b) @ vector.unflatten(-1, (3, 3)) @ condition_a
    ahead = (share * (homogeneous(b) * (homogeneous(a) @ matrix.mT)).sum(-1)).sum(-1)
    size = matrix.flatten(-2).norm(dim=-1) * torch.where(ahead < 0, -1.0, 1.0) / 3.0**0.5
    ratio, degenerate = null_space_ratio(values, (w > 0).sum(-1), needed=4)
    return Homography((matrix / size[..., None, None]).to(dtype), ratio.to(dtype), degenerate)


def rotation_from_matches(
    xy_a: torch.Tensor, xy_b: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotation that best turns the viewing rays of a into those of b (Kabsch).

    Args:
        xy_a, xy_b: (..., N, 2) matched normalised coordinates.
        weights: (..., N) or None.

    Returns:
        (..., 3, 3) `b_from_a`; the identity without matches, the smallest rotation for one.

    Raises:
        GeometryError: shapes or types disagree.
    """
    a, b, w = check_pair(xy_a, xy_b, weights)
    ray_a, ray_b = (torch.nn.functional.normalize(homogeneous(xy), dim=-1) for xy in (a, b))
    correlation = ray_b.mT @ (ray_a * weight_share(w)[..., None])
    # Too small to move a determined rotation, enough to choose the smallest among undetermined.
    eye = torch.eye(3, dtype=a.dtype, device=a.device)
    return nearest_rotation(correlation + 10.0 * torch.finfo(a.dtype).eps * eye)


def homography_sampson_error(
    b_from_a: torch.Tensor, xy_a: torch.Tensor, xy_b: torch.Tensor
) -> torch.Tensor:
    """SQUARED first-order distance of matches from a homography, over both views.

    Args:
        b_from_a: (..., 3, 3), any scale; rotations too.
        xy_a, xy_b: (..., N, 2).

    Returns:
        (..., N), squared units of the normalised plane. Of two degrees of freedom: with noise
        sigma on every coordinate its mean is 2 sigma^2. Source: Hartley and Zisserman eq. 4.12.

    Raises:
        GeometryError: wrong shape.
    """
    check('b_from_a', b_from_a, 3, 3)
    check('xy_a', xy_a, -1, 2)
    check('xy_b', xy_b, -1, 2)
    h = b_from_a / b_from_a.flatten(-2).norm(dim=-1)[..., None, None]
    p = homogeneous(xy_a) @ h.mT
    u, v = xy_b.unbind(-1)
    # e = (u p3 - p1, v p3 - p2), J its Jacobian by (xa, ya, u, v): e^T (J J^T)^-1 e.
    e1, e2 = u * p[..., 2] - p[..., 0], v * p[..., 2] - p[..., 1]
    rows = (
        h[..., 2:3, :2] * xy_b[..., 0:1] - h[..., 0:1, :2],
        h[..., 2:3, :2] * xy_b[..., 1:2] - h[..., 1:2, :2],
    )
    depth2 = p[..., 2] * p[..., 2]
    a = rows[0].square().sum(-1) + depth2
    c = rows[1].square().sum(-1) + depth2
    b = (rows[0] * rows[1]).sum(-1)
    floor = torch.finfo(h.dtype).eps ** 2
    determinant = (a * c - b * b).clamp_min(floor)
    return (c * e1 * e1 - 2.0 * b * e1 * e2 + a * e2 * e2) / determinant
