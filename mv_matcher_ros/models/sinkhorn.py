# SPDX-License-Identifier: Apache-2.0
"""Optimal transport between the keypoints of two views, with a dustbin for what has no partner.

Source: Sarlin et al., SuperGlue, CVPR 2020, section 3.2; Cuturi, Sinkhorn distances, 2013. The
result is scaled so that a keypoint has mass one (the paper's marginals sum to M + N): thresholds
and likelihoods are those of probabilities.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

# Logarithm of "nothing" that arithmetic survives, gradients included.
LOG_NOTHING = -1e9
# Largest logarithm of a scaling: products and quotients of two stay in single precision.
LARGEST = 40.0
SinkhornForm = Literal['log', 'kernel']


def log_optimal_transport(
    scores: Tensor,
    dustbin: Tensor,
    valid_a: Tensor,
    valid_b: Tensor,
    iterations: int,
    form: SinkhornForm = 'log',
) -> Tensor:
    """Logarithm of the assignment after a fixed number of Sinkhorn iterations.

    Each valid keypoint has mass one, the dustbin of a side what the other side has altogether.
    Half-precision input is computed in float32, whatever autocast says.

    Args:
        scores: (..., M, N) similarity of each keypoint of a with each of b.
        dustbin: () score of leaving a keypoint unmatched.
        valid_a: (..., M) bool; valid_b: (..., N) bool: the others are padding, on which nothing
            depends; their scores are finite.
        iterations: row and column normalisations; part of the model: train with the count that
            runs.
        form: 'log' normalises rows, then columns, in logarithms from zero potentials (the released
            SuperGlue, 100 iterations). 'kernel' normalises exp(scores) by matrix-vector products,
            rows and columns alike: faster, the same limit, and a pair has no direction.

    Returns:
        (..., M + 1, N + 1) float32 (float64 for float64), the last row and column being the
        dustbins; −inf where a keypoint is padding.
    """
    with torch.autocast(scores.device.type, enabled=False):
        if scores.dtype != torch.float64:
            scores = scores.float()
        rows, columns = (
            torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1) for v in (valid_a, valid_b)
        )
        padded = _with_dustbins(scores, dustbin.to(scores.dtype))
        padded = _barred(padded, rows, columns, LOG_NOTHING)
        count_a, count_b = (v.sum(-1, keepdim=True).to(scores.dtype) for v in (valid_a, valid_b))
        mass_a = torch.cat([valid_a.to(scores.dtype), count_b], dim=-1)
        mass_b = torch.cat([valid_b.to(scores.dtype), count_a], dim=-1)
        normalise = _normalise_logarithms if form == 'log' else _normalise_kernel
        log_assignment = normalise(padded, mass_a, mass_b, iterations)
        return _barred(log_assignment, rows, columns, -torch.inf)


def _barred(logarithms: Tensor, rows: Tensor, columns: Tensor, nothing: float) -> Tensor:
    """In place, `nothing` added where a row or column is padding: masks take longer."""
    for valid in (rows[..., None], columns[..., None, :]):
        logarithms = logarithms.add_(torch.where(valid, 0.0, nothing).to(logarithms))
    return logarithms


def _with_dustbins(scores: Tensor, dustbin: Tensor) -> Tensor:
    padded = functional.pad(scores, (0, 1, 0, 1))
    padded[..., -1] = dustbin
    padded[..., -1, :] = dustbin
    return padded


def exponential(logarithm: Tensor) -> Tensor:
    """exp, at least exp(−80): what is no normal number takes a CPU ten times as long."""
    return logarithm.clamp_min(-80.0).exp_()


def _logarithm(mass: Tensor) -> Tensor:
    return torch.where(mass > 0, mass.clamp_min(1e-30).log(), LOG_NOTHING)


def _normalise_logarithms(
    scores: Tensor, mass_a: Tensor, mass_b: Tensor, iterations: int
) -> Tensor:
    log_a, log_b = _logarithm(mass_a), _logarithm(mass_b)
    u, v = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for _ in range(iterations):
        u = log_a - torch.logsumexp(scores + v[..., None, :], dim=-1)
        u = torch.where(mass_a > 0, u, LOG_NOTHING)
        v = log_b - torch.logsumexp(scores + u[..., :, None], dim=-2)
        v = torch.where(mass_b > 0, v, LOG_NOTHING)
    return scores + u[..., :, None] + v[..., None, :]


def _normalise_kernel(scores: Tensor, mass_a: Tensor, mass_b: Tensor, iterations: int) -> Tensor:
    """Rows and columns at once, each going half the way (in logarithms).

    Nothing depends on which view is called a, at any count, and nothing of a keypoint exceeds one:
    a match is the geometric mean of one with exact rows and one with exact columns. Scores of a
    row that lie 80 below those of its columns are lost.
    """
    largest = scores.amax(dim=-1, keepdim=True), scores.amax(dim=-2, keepdim=True)
    # An entry is at most the mean of the largest of its row and its column: at most one here.
    row, column = (0.5 * torch.where(part > 0.5 * LOG_NOTHING, part, 0.0) for part in largest)
    scaled = (scores - row).sub_(column)
    kernel = exponential(scaled)
    least = math.exp(-LARGEST)
    log_a, log_b = _logarithm(mass_a), _logarithm(mass_b)
    log_u, log_v = log_a.clamp_max(0.0), log_b.clamp_max(0.0)
    exact_u, exact_v = log_u, log_v
    for number in range(iterations):
        if number:
            log_u, log_v = 0.5 * (log_u + exact_u), 0.5 * (log_v + exact_v)
        u, v = log_u.clamp_max(LARGEST).exp(), log_v.clamp_max(LARGEST).exp()
        # What makes the rows exact with these columns, and the columns with these rows.
        # A row vector times a matrix: kernels for matrix times column are ten times slower.
        exact_u = log_a - (v[..., None, :] @ kernel.mT)[..., 0, :].clamp_min(least).log()
        exact_v = log_b - (u[..., None, :] @ kernel)[..., 0, :].clamp_min(least).log()
    # A match: the mean (in logarithms) of what exact rows and what exact columns say of it.
    mean_u, mean_v = 0.5 * (exact_u + log_u), 0.5 * (exact_v + log_v)
    assignment = (scaled + mean_u[..., :, None]).add_(mean_v[..., None, :])
    # What stays alone is counted in its own row or column, where no probability exceeds one.
    assignment[..., :-1, -1] = scaled[..., :-1, -1] + exact_u[..., :-1] + log_v[..., -1:]
    assignment[..., -1, :-1] = scaled[..., -1, :-1] + exact_v[..., :-1] + log_u[..., -1:]
    return assignment


def mutual_matches(log_assignment: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Keypoints that are each other's most probable partner.

    Args:
        log_assignment: (..., M + 1, N + 1) as `log_optimal_transport` returns it.
        threshold: smallest probability of a match; 0 takes every mutual one.

    Returns:
        (..., M) int64 partner of each keypoint of a, −1 for none, and (..., M) logarithm of its
        probability, −inf for none.
    """
    inner = log_assignment[..., :-1, :-1]
    if 0 in inner.shape[-2:]:
        none = torch.full(inner.shape[:-1], -1, dtype=torch.int64, device=inner.device)
        return none, inner.new_full(inner.shape[:-1], -torch.inf)
    best, partner = inner.max(dim=-1)
    back = inner.max(dim=-2).indices.gather(-1, partner)  # faster than argmax
    here = torch.arange(inner.shape[-2], device=inner.device)
    limit = math.log(threshold) if threshold > 0 else -torch.inf
    good = (back == here) & (best > limit)
    return torch.where(good, partner, -1), torch.where(good, best, -torch.inf)
