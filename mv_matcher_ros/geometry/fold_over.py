# SPDX-License-Identifier: Apache-2.0
"""Where a lens model stops being one-to-one.

A polynomial model is fitted inside the image only. Beyond some radius it turns round and folds the
scene over the image, so that a point far outside the view seems to be seen. Such points must be
refused. The tangential part is small and is not looked at here.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, pi, sqrt

import torch

from mv_matcher_ros.geometry.distortion import Coefficients, Terms, unpack


def valid_radius(model: str, coefficients: Coefficients = ()) -> torch.Tensor | float:
    """Largest ideal radius up to which the radial distortion is one-to-one.

    Args:
        model, coefficients: as in `distort`; numbers give a number, (..., K) gives (...).

    Returns:
        Radius on the ideal plane, inf where there is no limit; for `equidistant` the largest angle
        from the axis in rad, at most pi. Not differentiable.
    """
    if isinstance(coefficients, torch.Tensor):
        return radius_of_terms(model, unpack(model, coefficients, coefficients), coefficients)
    return _radius_of_numbers(model, tuple(float(c) for c in coefficients))


@lru_cache(maxsize=256)
def _radius_of_numbers(model: str, coefficients: tuple[float, ...]) -> float:
    like = torch.zeros((), dtype=torch.float64)
    k = unpack(model, coefficients, like)
    terms = tuple(torch.tensor(c, dtype=torch.float64) for c in k)
    return float(_radius_of_tensors(model, terms, like))


def radius_of_terms(model: str, k: Terms, like: torch.Tensor) -> torch.Tensor | float:
    """`valid_radius` of unpacked coefficients."""
    if all(isinstance(c, float) for c in k):
        return _radius_of_numbers(model, tuple(float(c) for c in k))
    with torch.no_grad():
        terms = tuple(torch.as_tensor(c, dtype=torch.float64, device=like.device) for c in k)
        return _radius_of_tensors(model, terms, like).to(like.dtype)


def _radius_of_tensors(
    model: str, k: tuple[torch.Tensor, ...], like: torch.Tensor
) -> torch.Tensor:
    """Smallest positive root of the derivative (or of the pole) as a polynomial in r^2."""
    if model == 'pinhole':
        return torch.full((), inf, dtype=torch.float64, device=like.device)
    one = torch.ones((), dtype=torch.float64, device=like.device)
    if model == 'equidistant':
        slope = [one, *(c * (2 * i + 3) for i, c in enumerate(k))]
        return _smallest_root(slope).sqrt().clamp_max(pi)
    above = [one, k[0], k[1], k[4]]
    below = [one, *k[5:]]
    # (r N / D)' D^2 = N D + 2 u (N' D - N D'), coefficient by coefficient of u^(i + j).
    slope = [torch.zeros_like(one)] * (len(above) + len(below) - 1)
    for i, a in enumerate(above):
        for j, b in enumerate(below):
            slope[i + j] = slope[i + j] + (1 + 2 * i - 2 * j) * a * b
    root = _smallest_root(slope)
    if len(below) > 1:
        root = torch.minimum(root, _smallest_root(below))
    return root.sqrt()


def _smallest_root(ascending: list[torch.Tensor]) -> torch.Tensor:
    """Smallest positive real root of 1 + a1 u + a2 u^2 + ..., inf where there is none.

    1/u is an eigenvalue of the companion matrix, whose polynomial is monic whatever vanishes.
    """
    terms = torch.stack(torch.broadcast_tensors(*ascending), -1)[..., 1:]
    size = terms.shape[-1]
    companion = torch.zeros(*terms.shape[:-1], size, size, dtype=terms.dtype, device=terms.device)
    companion[..., 0, :] = -terms
    index = torch.arange(size - 1, device=terms.device)
    companion[..., index + 1, index] = 1.0
    inverse = torch.linalg.eigvals(companion)
    # Roots of a double zero come out with an imaginary part near the square root of eps.
    real = (inverse.real > 1e-12) & (inverse.imag.abs() <= 1e-6 * inverse.real)
    largest = torch.where(real, inverse.real, 0.0).amax(-1)
    return torch.where(
        largest > 0, 1.0 / largest.clamp_min(sqrt(torch.finfo(terms.dtype).tiny)), inf
    )
