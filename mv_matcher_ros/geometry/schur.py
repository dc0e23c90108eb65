# SPDX-License-Identifier: Apache-2.0
"""Solving the arrow-shaped normal equations by eliminating the points (Schur complement).

With H = [U W; Wᵀ V], V block diagonal in 3×3 blocks: S = U − W V⁻¹ Wᵀ, and V⁻¹ = L⁻ᵀL⁻¹ makes
S = U − YYᵀ with Y = W L⁻ᵀ, one dense product (Triggs et al. 2000, §6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry.reprojection import NormalEquations, Problem, flat_index

# Relative size below which a direction of the reduced system counts as unconstrained (gauge).
GAUGE_TOLERANCE = 1e-11


@dataclass(frozen=True)
class ReducedSystem:
    """The system on the poses after the points are eliminated, and what brings the points back.

    Attributes:
        pose_pose: (B, 6V, 6V) S; pose_gradient: (B, 6V).
        half_inverse: (B, P, 3, 3) L⁻¹ of each point block.
        eliminated: (B, 6V, 3P) Y.
        point_gradient: (B, 3P) L⁻¹ times the gradient of the points.
    """

    pose_pose: Tensor
    pose_gradient: Tensor
    half_inverse: Tensor
    eliminated: Tensor
    point_gradient: Tensor


def eliminate_points(
    problem: Problem, equations: NormalEquations, damping: Tensor | None = None
) -> ReducedSystem:
    """Schur complement on the poses; `damping` (B,) scales the diagonals (Marquardt)."""
    batch, poses = problem.world_from_body.shape[:2]
    points = problem.points.shape[1]
    point_point, pose_pose = equations.point_point, equations.pose_pose
    if damping is not None:
        point_point = damped(point_point, damping[:, None])
        pose_pose = damped(pose_pose, damping)
    if problem.points_fixed:
        held = _hold_fixed(problem.fixed, pose_pose, equations.pose_gradient)
        nothing = pose_pose.new_zeros(batch, 6 * poses, 0)
        return ReducedSystem(*held, pose_pose.new_zeros(batch, 0, 3, 3), nothing, nothing[:, 0])
    half_inverse = half_inverse_of(point_point)
    point_at = flat_index(problem.point_index, points)
    spread = torch.bmm(
        equations.pose_point.reshape(-1, 6, 3),
        half_inverse.reshape(-1, 3, 3)[point_at].transpose(1, 2),
    )
    # Rows of Y in the order (batch, pose, point): each pose owns a contiguous (P, 6, 3) slab.
    row = (flat_index(problem.pose_index, poses)) * points + problem.point_index.reshape(-1)
    slab = torch.zeros(batch * poses * points, 18, dtype=spread.dtype, device=spread.device)
    slab = slab.index_add(0, row, spread.flatten(1))
    eliminated = (
        slab.reshape(batch, poses, points, 6, 3)
        .permute(0, 1, 3, 2, 4)
        .reshape(batch, 6 * poses, 3 * points)
    )
    point_gradient = torch.einsum('bpij,bpj->bpi', half_inverse, equations.point_gradient).flatten(
        1
    )
    reduced = pose_pose - eliminated @ eliminated.transpose(1, 2)
    gradient = equations.pose_gradient - torch.einsum('bij,bj->bi', eliminated, point_gradient)
    reduced, gradient = _hold_fixed(problem.fixed, reduced, gradient)
    return ReducedSystem(reduced, gradient, half_inverse, eliminated, point_gradient)


def solve_reduced(
    problem: Problem, reduced: ReducedSystem, gauge_free: bool = False
) -> tuple[Tensor, Tensor]:
    """Steps of the poses (B, V, 6) and points (B, P, 3); unconstrained directions do not move.

    Args:
        gauge_free: look for unconstrained directions even where a Cholesky factor exists. Rounding
            can lift their eigenvalue just above zero, and the step along them is then arbitrary:
            damping forgives that, an exact step does not.
    """
    batch, poses = problem.world_from_body.shape[:2]
    factor, failed = torch.linalg.cholesky_ex(reduced.pose_pose)
    if gauge_free or bool(failed.any()):
        pose_step = -_least_norm(reduced.pose_pose, reduced.pose_gradient)
    else:
        pose_step = -torch.cholesky_solve(reduced.pose_gradient[:, :, None], factor)[:, :, 0]
    pose_step = torch.where(_rows(problem.fixed), torch.zeros_like(pose_step), pose_step)
    if problem.points_fixed:
        return pose_step.reshape(batch, poses, 6), torch.zeros_like(problem.points)
    inner = reduced.point_gradient + torch.einsum('bij,bi->bj', reduced.eliminated, pose_step)
    inner = inner.reshape(batch, -1, 3)
    point_step = -torch.einsum('bpji,bpj->bpi', reduced.half_inverse, inner)
    return pose_step.reshape(batch, poses, 6), point_step


def half_inverse_of(blocks: Tensor) -> Tensor:
    """L⁻¹ of symmetric positive 3×3 blocks (…, 3, 3) = L·Lᵀ, in closed form.

    Zero for a block without full rank.
    """
    a, b, c = blocks[..., 0, 0], blocks[..., 1, 0], blocks[..., 1, 1]
    d, e, f = blocks[..., 2, 0], blocks[..., 2, 1], blocks[..., 2, 2]
    scale = torch.maximum(torch.maximum(a, c), f)
    floor = torch.finfo(blocks.dtype).eps * scale
    good = (scale > 0) & (a > floor)
    i = 1.0 / torch.where(good, a, torch.ones_like(a)).sqrt()
    m, p = b * i, d * i
    pivot_m = c - m * m
    good = good & (pivot_m > floor)
    j = 1.0 / torch.where(good, pivot_m, torch.ones_like(a)).sqrt()
    q = (e - m * p) * j
    pivot_q = f - p * p - q * q
    good = good & (pivot_q > floor)
    k = 1.0 / torch.where(good, pivot_q, torch.ones_like(a)).sqrt()
    zero = torch.zeros_like(a)
    second = -m * i * j
    third = -(p * i + q * second) * k
    rows = [i, zero, zero, second, j, zero, third, -q * j * k, k]
    return torch.where(good[..., None, None], torch.stack(rows, dim=-1).reshape(blocks.shape), 0.0)


def least_norm_inverse(matrix: Tensor) -> Tensor:
    """Pseudo-inverse of symmetric (B, N, N); unconstrained directions (a gauge) become zero."""
    scale = matrix.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(matrix.dtype).tiny).sqrt()
    scaled = matrix / (scale[:, :, None] * scale[:, None, :])
    values, vectors = torch.linalg.eigh(scaled)
    keep = values > GAUGE_TOLERANCE * values[:, -1:].clamp_min(1.0)
    inverse = torch.where(keep, 1.0 / torch.where(keep, values, torch.ones_like(values)), 0.0)
    inverted = (vectors * inverse[:, None, :]) @ vectors.transpose(1, 2)
    return inverted / (scale[:, :, None] * scale[:, None, :])


def _least_norm(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.einsum('bij,bj->bi', least_norm_inverse(matrix), vector)


def damped(blocks: Tensor, damping: Tensor) -> Tensor:
    """Diagonals multiplied by 1 + damping."""
    extra = blocks.diagonal(dim1=-2, dim2=-1) * damping[..., None]
    return blocks + torch.diag_embed(extra)


def _rows(fixed: Tensor) -> Tensor:
    """(B, V) → (B, 6V)."""
    return fixed.repeat_interleave(6, dim=1)


def _hold_fixed(fixed: Tensor, matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of fixed poses become those of the identity, their gradient zero."""
    rows = _rows(fixed)
    keep = ~rows
    both = keep[:, :, None] & keep[:, None, :]
    held = torch.where(both, matrix, torch.zeros_like(matrix)) + torch.diag_embed(
        rows.to(matrix.dtype)
    )
    return held, torch.where(keep, vector, torch.zeros_like(vector))
