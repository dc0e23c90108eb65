# SPDX-License-Identifier: Apache-2.0
"""The inverse of lens distortion, differentiable, and honest about points that have none."""

from __future__ import annotations

from math import inf, pi

import torch

from mv_matcher_ros.geometry.distortion import (
    Coefficients,
    Terms,
    equidistant_angle,
    forward,
    unpack,
)
from mv_matcher_ros.geometry.fold_over import radius_of_terms
from mv_matcher_ros.geometry.shapes import check

NEWTON_ITERATIONS = 30


def undistort(
    xy: torch.Tensor, model: str, coefficients: Coefficients = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ideal coordinates of a point of the real image: the inverse of `distort`.

    Newton's method with the exact Jacobian, started at the distorted point and halved where a step
    does not help. Gradients (first and second) come from two Newton steps at the solution, which
    is the implicit function theorem; where the result is not valid they are zero or those of the
    identity, never infinite.

    Args:
        xy: (..., 2) distorted normalised coordinates.
        model, coefficients: as in `distort`.

    Returns:
        (..., 2) ideal coordinates, and (...) bool: converged inside the one-to-one region (for
        `equidistant` also nearer to the axis than 90 degrees). Where False, coordinates are the
        distorted ones.

    Raises:
        GeometryError: as `distort`.
    """
    check('xy', xy, 2)
    k = unpack(model, coefficients, xy)
    if model == 'pinhole':
        return xy, xy.isfinite().all(-1)
    if model == 'equidistant':
        theta, valid = invert_angle(xy, k)
        valid = valid & (theta < 0.5 * pi - 1e-4)
        factor = _axis_safe(xy, torch.where(valid, theta, 0.5).tan(), _tangent_series(k))
        return torch.where(valid[..., None], xy * factor[..., None], xy), valid
    with torch.no_grad():
        solution, valid = _newton(xy, model, k)
    attach = torch.is_grad_enabled() and (
        xy.requires_grad or any(isinstance(c, torch.Tensor) and c.requires_grad for c in k)
    )
    if attach:
        for _ in range(2):
            solution = solution - _newton_step(solution, xy, model, k, valid)[0]
    return torch.where(valid[..., None], solution, xy), valid


def _newton_step(
    xy: torch.Tensor, target: torch.Tensor, model: str, k: Terms, valid: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step J^-1 (distort(xy) - target), squared residual and determinant."""
    value, (a, b, c, d) = forward(xy, model, k)
    residual = value - target
    u, v = residual.unbind(-1)
    determinant = a * d - b * c
    usable = determinant.abs() > 1e-9 if valid is None else valid
    safe = torch.where(usable, determinant, 1.0)
    step = torch.stack((d * u - b * v, a * v - c * u), -1) / safe[..., None]
    step = torch.where(usable[..., None], step, residual if valid is None else 0.0)
    return step, (residual * residual).sum(-1), determinant


def _newton(target: torch.Tensor, model: str, k: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    limit = radius_of_terms(model, k, target)
    tolerance = (1e-13 if target.dtype == torch.float64 else 5e-7) ** 2
    accepted = (1e-10 if target.dtype == torch.float64 else 5e-6) ** 2
    scale2 = 1.0 + (target * target).sum(-1)
    xy = _clip(target, limit)
    step, error, determinant = _newton_step(xy, target, model, k, None)
    share = torch.ones_like(error)
    for _ in range(NEWTON_ITERATIONS):
        if bool((error <= tolerance * scale2).all()):
            break
        trial = _clip(xy - share[..., None] * step, limit)
        new_step, new_error, new_determinant = _newton_step(trial, target, model, k, None)
        better = (new_error < error) & (new_determinant > 0)
        share = torch.where(better, 1.0, 0.5 * share)
        xy = torch.where(better[..., None], trial, xy)
        step = torch.where(better[..., None], new_step, step)
        error = torch.where(better, new_error, error)
        determinant = torch.where(better, new_determinant, determinant)
    return xy, (error <= accepted * scale2) & (determinant > 1e-6)


def _clip(xy: torch.Tensor, limit: torch.Tensor | float) -> torch.Tensor:
    """Points inside the one-to-one disc, moved along their ray where they are outside."""
    if isinstance(limit, float) and limit == inf:
        return xy
    radius = xy.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    bound = limit[..., None] if isinstance(limit, torch.Tensor) else limit
    return xy * (bound / radius).clamp_max(1.0)


def invert_angle(xy: torch.Tensor, k: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    """Angle (...) from the axis whose distorted value is |xy|, and where it exists (...)."""
    tiny = torch.finfo(xy.dtype).tiny ** 0.5
    target = (xy * xy).sum(-1).clamp_min(tiny).sqrt()
    limit = radius_of_terms('equidistant', k, xy)
    bound = limit if isinstance(limit, torch.Tensor) else torch.full_like(target, limit)
    with torch.no_grad():
        # The distorted angle rises from 0 to its value at the limit: Newton inside a bracket.
        low, high = torch.zeros_like(target), bound.expand_as(target).clone()
        theta = torch.minimum(target, 0.5 * high)
        for _ in range(NEWTON_ITERATIONS):
            value, slope = equidistant_angle(theta, k)
            low, high = (
                torch.where(value <= target, theta, low),
                torch.where(value > target, theta, high),
            )
            step = theta - (value - target) / slope
            inside = (step >= low) & (step <= high)
            new = torch.where(inside, step, 0.5 * (low + high))
            done = (new - theta).abs() <= 4.0 * torch.finfo(xy.dtype).eps * new
            theta = new
            if bool(done.all()):
                break
        value, slope = equidistant_angle(theta, k)
        accepted = 1e-10 if xy.dtype == torch.float64 else 5e-6
        valid = ((value - target).abs() <= accepted * (1.0 + target)) & (slope > 1e-6)
    for _ in range(2):
        value, slope = equidistant_angle(theta, k)
        step = (value - target) / torch.where(valid, slope, 1.0)
        theta = theta - torch.where(valid, step, 0.0)
    return theta, valid


def _tangent_series(k: Terms) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """tan(theta) / theta_d = 1 + c1 u + c2 u^2 with u = theta_d^2."""
    k1, k2 = k[:2]
    return 1.0 / 3.0 - k1, 3.0 * k1 * k1 - k2 - k1 + 2.0 / 15.0


def sine_series(k: Terms) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """sin(theta) / theta_d = 1 + c1 u + c2 u^2 with u = theta_d^2."""
    k1, k2 = k[:2]
    return -1.0 / 6.0 - k1, 3.0 * k1 * k1 - k2 + 0.5 * k1 + 1.0 / 120.0


def near_axis(xy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared radius, mask of points so near the axis that series are used, radius safe there."""
    u = (xy * xy).sum(-1)
    near = u < (1e-5 if xy.dtype == torch.float64 else 1e-3)
    return u, near, torch.where(near, 1.0, u).sqrt()


def _axis_safe(
    xy: torch.Tensor, above: torch.Tensor, c: tuple[torch.Tensor | float, torch.Tensor | float]
) -> torch.Tensor:
    """above / |xy| where |xy| is not small, else its series."""
    u, near, rho = near_axis(xy)
    s = torch.where(near, u, 0.0)
    return torch.where(near, 1.0 + s * (c[0] + s * c[1]), above / rho)


def axis_safe_sine(xy: torch.Tensor, theta: torch.Tensor, k: Terms) -> torch.Tensor:
    """sin(theta) / |xy| for the angle theta of the distorted point xy."""
    return _axis_safe(xy, theta.sin(), sine_series(k))
