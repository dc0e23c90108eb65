# SPDX-License-Identifier: Apache-2.0
"""Refinement of the pose between two views on the Sampson error, robust and batched.

Five parameters: rotation (right perturbation R exp(w)) and the direction of the translation,
moved in its tangent plane. Levenberg-Marquardt with exact Jacobians, robust by reweighting.
Source of the error: Hartley and Zisserman, Multiple View Geometry, 2nd edition, section 11.4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.epipolar import check_pair, homogeneous
from mv_matcher_ros.geometry.robust_kernel import Kernel, kernel_value_and_weight
from mv_matcher_ros.geometry.se3 import compose_matrix, hat, so3_exp
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.spectral import damped_solve

# Relative fall of the cost below which a pose counts as converged.
CONVERGED = 1e-6


@dataclass(frozen=True)
class RefinedRelativePose:
    """Where the refinement ended.

    Attributes:
        b_from_a: (..., 4, 4), translation of unit length.
        residuals: (..., N) signed Sampson errors in units of sigma.
        information: (..., 5, 5) of [rotation (3), direction (2)]: J^T W J at the end.
        cost: (...) robust cost at the end.
        converged: (...) bool.
    """

    b_from_a: torch.Tensor
    residuals: torch.Tensor
    information: torch.Tensor
    cost: torch.Tensor
    converged: torch.Tensor


def refine_relative_pose(
    b_from_a: torch.Tensor,
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    weights: torch.Tensor | None = None,
    sigma: float | torch.Tensor = 0.002,
    kernel: Kernel = 'huber',
    kernel_width: float = 1.345,
    iterations: int = 10,
) -> RefinedRelativePose:
    """Minimise the robust weighted Sampson error over rotation and direction of translation.

    Under pure rotation the direction is not observable: it stays where noise leaves it, and the
    information says so. The steps are recorded for autograd where an input asks for it.

    Args:
        b_from_a: (..., 4, 4) start; its translation is scaled to unit length.
        xy_a, xy_b: (..., N, 2) matched normalised coordinates; pairs not finite count as absent.
        weights: (..., N) multiply the robust cost of a match; None is ones.
        sigma: noise of one coordinate in units of the normalised plane (1 px over focal length),
            of all matches or (..., N) of each.
        kernel, kernel_width: robust kernel on residuals in units of sigma.
        iterations: steps tried.

    Returns:
        RefinedRelativePose, never worse than the start.

    Raises:
        GeometryError: shapes or types disagree, sigma not positive, a start without translation.
    """
    check('b_from_a', b_from_a, 4, 4)
    a, b, w = check_pair(xy_a, xy_b, weights)
    check_same_type(b_from_a=b_from_a, xy_a=a)
    if not bool(torch.as_tensor(sigma > 0).all()):
        raise GeometryError(f'sigma must be positive, got {sigma}')
    rotation = b_from_a[..., :3, :3]
    length = b_from_a[..., :3, 3].norm(dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise GeometryError('refine_relative_pose needs a start with a translation')
    direction = b_from_a[..., :3, 3] / length
    problem = _Problem(homogeneous(a).mT, homogeneous(b).mT, w, sigma, kernel, kernel_width)
    now = _linearise(problem, rotation, direction)
    damping = torch.full_like(now.cost, 1e-3)
    converged = torch.zeros_like(now.cost, dtype=torch.bool)
    for _ in range(iterations):
        step = damped_solve(now.hessian, now.gradient, damping)
        moved = direction + (tangent_basis(direction) @ step[..., 3:, None]).squeeze(-1)
        trial_direction = moved / moved.norm(dim=-1, keepdim=True)
        trial_rotation = rotation @ so3_exp(step[..., :3])
        trial = _linearise(problem, trial_rotation, trial_direction)
        better = trial.cost <= now.cost
        fall = (now.cost - trial.cost).detach()
        converged = converged | (fall.abs() <= CONVERGED * now.cost.detach())
        rotation = torch.where(better[..., None, None], trial_rotation, rotation)
        direction = torch.where(better[..., None], trial_direction, direction)
        now = _Linear(
            torch.where(better, trial.cost, now.cost),
            torch.where(better[..., None], trial.gradient, now.gradient),
            torch.where(better[..., None, None], trial.hessian, now.hessian),
            torch.where(better[..., None], trial.residual, now.residual),
        )
        damping = torch.where(better, damping * 0.1, damping * 8.0).clamp(1e-9, 1e6)
        if bool(converged.all()):
            break
    pose = compose_matrix(rotation, direction)
    return RefinedRelativePose(pose, now.residual, now.hessian, now.cost, converged)


@dataclass(frozen=True)
class _Problem:
    rays_a: torch.Tensor  # (..., 3, N), points last: every product below is one matrix product
    rays_b: torch.Tensor
    weights: torch.Tensor
    sigma: float | torch.Tensor
    kernel: Kernel
    width: float


@dataclass(frozen=True)
class _Linear:
    cost: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    residual: torch.Tensor


def _linearise(problem: _Problem, rotation: torch.Tensor, direction: torch.Tensor) -> _Linear:
    """Cost, gradient and Gauss-Newton Hessian in (rotation, direction in `tangent_basis`)."""
    essential = hat(direction) @ rotation
    generators = hat(torch.eye(3, dtype=rotation.dtype, device=rotation.device))
    by_rotation = essential[..., None, :, :] @ generators
    by_direction = hat(tangent_basis(direction).mT) @ rotation[..., None, :, :]
    derivatives = torch.cat((by_rotation, by_direction), -3)  # (..., 5, 3, 3)
    a, b = problem.rays_a, problem.rays_b
    line_b, line_a = essential @ a, essential[..., :, :2].mT @ b
    value = (b * line_b).sum(-2)
    total = line_b[..., :2, :].square().sum(-2) + line_a.square().sum(-2)
    total = total.clamp_min(2.0 * torch.finfo(total.dtype).eps)
    d_line_b = (derivatives.flatten(-3, -2) @ a).unflatten(-2, (5, 3))
    d_line_a = (derivatives[..., :2].mT.flatten(-3, -2) @ b).unflatten(-2, (5, 2))
    d_value = (d_line_b * b[..., None, :, :]).sum(-2)
    half_d_total = (d_line_b[..., :2, :] * line_b[..., None, :2, :]).sum(-2)
    half_d_total = half_d_total + (d_line_a * line_a[..., None, :, :]).sum(-2)
    scale = total.rsqrt() / problem.sigma
    residual = value * scale
    # d (v / sqrt(s)) = (dv - v ds / (2 s)) / sqrt(s)
    jacobian = (d_value - (value / total)[..., None, :] * half_d_total) * scale[..., None, :]
    robust, slope = kernel_value_and_weight(residual * residual, problem.kernel, problem.width)
    weighted = jacobian * (problem.weights * slope)[..., None, :]
    return _Linear(
        0.5 * (problem.weights * robust).sum(-1),
        (weighted @ residual[..., None]).squeeze(-1),
        weighted @ jacobian.mT,
        residual,
    )


def tangent_basis(direction: torch.Tensor) -> torch.Tensor:
    """Two orthonormal vectors (..., 3, 2) across a unit vector (..., 3); no direction fails."""
    # Cross with the axis it is least along, which is never parallel to it.
    index = direction.abs().argmin(-1, keepdim=True)
    axis = torch.zeros_like(direction).scatter(-1, index, 1.0)
    first = torch.linalg.cross(direction, axis, dim=-1)
    first = first / first.norm(dim=-1, keepdim=True)
    return torch.stack((first, torch.linalg.cross(direction, first, dim=-1)), -1)
