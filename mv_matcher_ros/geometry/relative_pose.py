# SPDX-License-Identifier: Apache-2.0
"""Refinement of the pose between two views on the Sampson error, robust and batched.

Five parameters: rotation (right perturbation R exp(w)) and the direction of the translation, moved
in its tangent plane. Levenberg-Marquardt with exact Jacobians and iteratively reweighted residuals.
Source of the error: Hartley and Zisserman, Multiple View Geometry, 2nd edition, section 11.4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.epipolar import (
    check_pair,
    essential_from_pose,
    homogeneous,
    sampson_error,
)
from mv_matcher_ros.geometry.reprojection import Kernel, kernel_value_and_weight
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
    sigma: float = 0.002,
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
        sigma: noise of one coordinate in units of the normalised plane (1 px over focal length).
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
    if not sigma > 0:
        raise GeometryError(f'sigma must be positive, got {sigma}')
    rotation = b_from_a[..., :3, :3]
    length = b_from_a[..., :3, 3].norm(dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise GeometryError('refine_relative_pose needs a start with a translation')
    direction = b_from_a[..., :3, 3] / length
    cost = _cost(rotation, direction, a, b, w, sigma, kernel, kernel_width)
    damping = torch.full_like(cost, 1e-3)
    converged = torch.zeros_like(cost, dtype=torch.bool)
    for _ in range(iterations):
        gradient, hessian, basis = _linearise(
            rotation, direction, a, b, w, sigma, kernel, kernel_width
        )
        step = damped_solve(hessian, gradient, damping)
        trial_rotation = rotation @ so3_exp(step[..., :3])
        moved = direction + (basis @ step[..., 3:, None]).squeeze(-1)
        trial_direction = moved / moved.norm(dim=-1, keepdim=True)
        trial_cost = _cost(trial_rotation, trial_direction, a, b, w, sigma, kernel, kernel_width)
        better = trial_cost <= cost
        fall = (cost - trial_cost).detach()
        converged = converged | (better & (fall <= CONVERGED * cost.detach()))
        rotation = torch.where(better[..., None, None], trial_rotation, rotation)
        direction = torch.where(better[..., None], trial_direction, direction)
        cost = torch.where(better, trial_cost, cost)
        damping = torch.where(better, damping * 0.1, damping * 8.0).clamp(1e-9, 1e6)
        if bool(converged.all()):
            break
    pose = compose_matrix(rotation, direction)
    _, hessian, _ = _linearise(rotation, direction, a, b, w, sigma, kernel, kernel_width)
    residuals = sampson_error(essential_from_pose(pose), a, b) / sigma
    return RefinedRelativePose(pose, residuals, hessian, cost, converged)


def _cost(
    rotation: torch.Tensor,
    direction: torch.Tensor,
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    weights: torch.Tensor,
    sigma: float,
    kernel: Kernel,
    width: float,
) -> torch.Tensor:
    residual = sampson_error(hat(direction) @ rotation, xy_a, xy_b) / sigma
    value, _ = kernel_value_and_weight(residual * residual, kernel, width)
    return 0.5 * (weights * value).sum(-1)


def _linearise(
    rotation: torch.Tensor,
    direction: torch.Tensor,
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    weights: torch.Tensor,
    sigma: float,
    kernel: Kernel,
    width: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient (..., 5), Gauss-Newton Hessian (..., 5, 5), basis (..., 3, 2) of the direction."""
    basis = tangent_basis(direction)
    essential = hat(direction) @ rotation
    generators = hat(torch.eye(3, dtype=rotation.dtype, device=rotation.device))
    by_rotation = essential[..., None, :, :] @ generators
    by_direction = hat(basis.mT) @ rotation[..., None, :, :]
    derivatives = torch.cat((by_rotation, by_direction), -3)  # (..., 5, 3, 3)
    a, b = homogeneous(xy_a), homogeneous(xy_b)
    line_b, line_a = a @ essential.mT, b @ essential
    value = (b * line_b).sum(-1)
    total = line_b[..., :2].square().sum(-1) + line_a[..., :2].square().sum(-1)
    total = total.clamp_min(2.0 * torch.finfo(total.dtype).eps)
    d_line_b = a[..., None, :, :] @ derivatives.mT  # (..., 5, N, 3)
    d_line_a = b[..., None, :, :] @ derivatives
    d_value = (b[..., None, :, :] * d_line_b).sum(-1)
    d_total = (line_b[..., None, :, :2] * d_line_b[..., :2]).sum(-1)
    d_total = d_total + (line_a[..., None, :, :2] * d_line_a[..., :2]).sum(-1)
    root = total.rsqrt()
    residual = value * root / sigma
    # d (v / sqrt(s)) = dv / sqrt(s) - v ds / (2 s sqrt(s)), and d_total is half of ds.
    scale = (root / sigma)[..., None, :]
    jacobian = (d_value - (value / total)[..., None, :] * d_total) * scale  # (..., 5, N)
    _, robust = kernel_value_and_weight(residual * residual, kernel, width)
    weighted = jacobian * (weights * robust)[..., None, :]
    gradient = (weighted @ residual[..., None]).squeeze(-1)
    return gradient, weighted @ jacobian.mT, basis


def tangent_basis(direction: torch.Tensor) -> torch.Tensor:
    """Two orthonormal vectors (..., 3, 2) across a unit vector (..., 3), without a singular one."""
    # Cross with the axis it is least along, which is never parallel to it.
    index = direction.abs().argmin(-1, keepdim=True)
    axis = torch.zeros_like(direction).scatter(-1, index, 1.0)
    first = torch.linalg.cross(direction, axis, dim=-1)
    first = first / first.norm(dim=-1, keepdim=True)
    return torch.stack((first, torch.linalg.cross(direction, first, dim=-1)), -1)
