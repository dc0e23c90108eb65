# SPDX-License-Identifier: Apache-2.0
"""Lens distortion on the normalised image plane, with its Jacobian.

Models: `radtan` k1 k2 p1 p2 k3 (Brown 1966), `rational` k1 k2 p1 p2 k3 k4 k5 k6 (Claus and
Fitzgibbon 2005), both with OpenCV's formulas and order, and `equidistant` k1..k4 (Kannala and
Brandt, PAMI 28(8), 2006, as cv2.fisheye).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mv_matcher_ros.datatypes import DISTORTION_SIZE
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.shapes import check, check_same_type

Coefficients = torch.Tensor | Sequence[float]
Terms = tuple[torch.Tensor, ...] | tuple[float, ...]


def unpack(model: str, coefficients: Coefficients, like: torch.Tensor) -> Terms:
    """Coefficients one by one, filled up with zeros; tensors broadcast against leading dimensions.

    Raises:
        GeometryError: unknown model, too many coefficients, or another type than `like`.
    """
    if model not in DISTORTION_SIZE:
        known = ', '.join(DISTORTION_SIZE)
        raise GeometryError(f'distortion model "{model}" is unknown; known: {known}')
    size = DISTORTION_SIZE[model]
    if not isinstance(coefficients, torch.Tensor):
        values = tuple(float(c) for c in coefficients)
        if len(values) > size:
            raise GeometryError(f'"{model}" takes {size} coefficients, got {len(values)}')
        return values + (0.0,) * (size - len(values))
    check('coefficients', coefficients, -1)
    check_same_type(points=like, coefficients=coefficients)
    if coefficients.shape[-1] > size:
        raise GeometryError(f'"{model}" takes {size} coefficients, got {coefficients.shape[-1]}')
    terms = coefficients.unbind(-1)
    return terms + (like.new_zeros(()),) * (size - len(terms))


def distort(xy: torch.Tensor, model: str, coefficients: Coefficients = ()) -> torch.Tensor:
    """Where the lens puts a point of the ideal image plane.

    Args:
        xy: (..., 2) ideal normalised coordinates x/z, y/z.
        model: `pinhole`, `radtan`, `rational` or `equidistant`.
        coefficients: numbers or (..., K) in OpenCV's order; missing ones are zero.

    Returns:
        (..., 2) distorted normalised coordinates.

    Raises:
        GeometryError: wrong shape, unknown model, too many coefficients.
    """
    check('xy', xy, 2)
    return forward(xy, model, unpack(model, coefficients, xy))[0]


def distort_with_jacobian(
    xy: torch.Tensor, model: str, coefficients: Coefficients = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `distort`, with the Jacobian d(distorted)/d(ideal), (..., 2, 2)."""
    check('xy', xy, 2)
    distorted, (xx, xy_, yx, yy) = forward(xy, model, unpack(model, coefficients, xy))
    rows = (torch.stack((xx, xy_), -1), torch.stack((yx, yy), -1))
    return distorted, torch.stack(rows, -2)


def forward(
    xy: torch.Tensor, model: str, k: Terms
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Distorted coordinates and the entries xx, xy, yx, yy of the Jacobian."""
    x, y = xy.unbind(-1)
    one = torch.ones_like(x)
    if model == 'pinhole':
        return xy, (one, torch.zeros_like(x), torch.zeros_like(x), one)
    if model == 'equidistant':
        scale, along, _ = equidistant_scale(x, y, one, k)
        mixed = along * x * y
        jacobian = (scale + along * x * x, mixed, mixed, scale + along * y * y)
        return xy * scale[..., None], jacobian
    k1, k2, p1, p2, k3 = k[:5]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = k1 + r2 * (2.0 * k2 + r2 * 3.0 * k3)  # d radial / d r2
    if model == 'rational':
        k4, k5, k6 = k[5:]
        below = 1.0 + r2 * (k4 + r2 * (k5 + r2 * k6))
        radial = radial / below
        slope = (slope - radial * (k4 + r2 * (2.0 * k5 + r2 * 3.0 * k6))) / below
    xy2 = 2.0 * x * y
    tangential_x = p1 * xy2 + p2 * (r2 + 2.0 * x * x)
    tangential_y = p1 * (r2 + 2.0 * y * y) + p2 * xy2
    distorted = torch.stack((x * radial + tangential_x, y * radial + tangential_y), -1)
    xx = radial + 2.0 * x * x * slope + 2.0 * p1 * y + 6.0 * p2 * x
    yy = radial + 2.0 * y * y * slope + 6.0 * p1 * y + 2.0 * p2 * x
    mixed = xy2 * slope + 2.0 * (p1 * x + p2 * y)
    return distorted, (xx, mixed, mixed, yy)


def equidistant_angle(theta: torch.Tensor, k: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    """Distorted angle theta (1 + k1 theta^2 + ...) and its derivative."""
    k1, k2, k3, k4 = k
    u = theta * theta
    value = theta * (1.0 + u * (k1 + u * (k2 + u * (k3 + u * k4))))
    slope = 1.0 + u * (3.0 * k1 + u * (5.0 * k2 + u * (7.0 * k3 + u * 9.0 * k4)))
    return value, slope


def equidistant_scale(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, k: Terms
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fisheye projection xd = scale x of any point but the one straight behind.

    Returns:
        scale, `along` = (d scale / d rho) / rho with rho = hypot(x, y), d scale / d z; each (...).
    """
    k1, k2 = k[:2]
    rho2 = x * x + y * y
    ahead = z > 0
    z_safe = torch.where(ahead, z, 1.0)
    r2 = rho2 / (z_safe * z_safe)
    near = ahead & (r2 < (1e-5 if x.dtype == torch.float64 else 1e-3))
    # Near the axis: theta_d / r as a series in r2, because 0/0 has no gradient.
    c1, c2 = k1 - 1.0 / 3.0, 0.2 - k1 + k2
    s = torch.where(near, r2, 0.0)
    near_scale = (1.0 + s * (c1 + s * c2)) / z_safe
    near_along = (2.0 * c1 + 4.0 * c2 * s) / z_safe.pow(3)
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    rho = torch.where(near, 1.0, rho2).clamp_min(tiny).sqrt()
    z_far = torch.where(near, 1.0, z)
    theta, slope = equidistant_angle(torch.atan2(rho, z_far), k)
    norm2 = rho * rho + z_far * z_far
    scale = theta / rho
    along = (slope * z_far / norm2 - scale) / (rho * rho)
    slope_axis = equidistant_angle(torch.where(near, s.clamp_min(tiny).sqrt(), 0.0), k)[1]
    d_z = -torch.where(near, slope_axis / (rho2 + z_safe * z_safe), slope / norm2)
    return torch.where(near, near_scale, scale), torch.where(near, near_along, along), d_z
