# SPDX-License-Identifier: Apache-2.0
"""Pose of a camera (or rig) from points with known position: robust Levenberg-Marquardt.

The pose moves by T exp(xi) with T = world_from_camera, xi = [v, w], so a camera point moves by
p → p - v - w x p. An observation is (x/z, y/z) and, where known, the inverse depth 1/z. The cost
is that of bundle adjustment with fixed points (Triggs et al. 2000); the gradient of the optimum
comes from the implicit function theorem with the full Hessian, not from the iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.pose_residuals import (
    PoseLinear,
    PoseProblem,
    linearise_pose,
    pose_problem,
    whitened_residuals,
)
from mv_matcher_ros.geometry.robust_kernel import Kernel
from mv_matcher_ros.geometry.spectral import damped_solve

# Share of the largest eigenvalue below which the scaled information has no rank.
_RANK = 1e-10


@dataclass(frozen=True)
class AbsolutePose:
    """Result of the refinement.

    Attributes:
        camera_from_world: (..., 4, 4); where not valid the start or the best that was found.
        information: (..., 6, 6) J^T W J with robust weights and prior, of the right perturbation
            [translation, rotation] of world_from_camera.
        residuals: (..., N, D) whitened predicted minus measured, zero where unused; D is 2, or 3
            with inverse depth.
        cost: (...) robust cost at the end.
        converged: (...) bool.
        valid: (...) bool: finite, and observations and prior determine all six directions.
    """

    camera_from_world: torch.Tensor
    information: torch.Tensor
    residuals: torch.Tensor
    cost: torch.Tensor
    converged: torch.Tensor
    valid: torch.Tensor


def refine_absolute_pose(
    world_points: torch.Tensor,
    normalised_xy: torch.Tensor,
    camera_from_world: torch.Tensor,
    information: torch.Tensor | None = None,
    *,
    inverse_depth: torch.Tensor | None = None,
    inverse_depth_information: torch.Tensor | None = None,
    body_from_camera: torch.Tensor | None = None,
    prior_camera_from_world: torch.Tensor | None = None,
    prior_information: torch.Tensor | None = None,
    kernel: Kernel = 'huber',
    kernel_width: float = 1.345,
    iterations: int = 10,
    tolerance: float = 1e-6,
) -> AbsolutePose:
    """Minimise sum rho(r^T W r) / 2 + prior over the pose.

    Args:
        world_points: (..., N, 3); N may be zero.
        normalised_xy: (..., N, 2) observations; rows not finite count as absent.
        camera_from_world: (..., 4, 4) start; with a rig `body_from_world`, here and in the result.
        information: (..., N) or (..., N, 2, 2) of the observations, 1/sigma^2; 0 switches one off.
        inverse_depth: (..., N) measured 1/z, not finite where unknown; a residual of its own.
        inverse_depth_information: (..., N), needed with `inverse_depth`.
        body_from_camera: (..., N, 4, 4) extrinsics of the camera of each observation (rig).
        prior_camera_from_world: (..., 4, 4) mean of a Gaussian prior.
        prior_information: (..., 6, 6) of log(prior^-1 T), T = world_from_camera.
        kernel, kernel_width: robust kernel on residuals in sigma, image and depth apart.
        iterations: steps tried at most.
        tolerance: converged when a step changes the cost by less than this share. The default
            leaves some hundredths of a standard deviation; a gradient takes one step more.

    Returns:
        AbsolutePose, never worse than the start. Differentiable by every input but the start,
        exactly so where converged; first derivatives.

    Raises:
        GeometryError: shapes or types disagree, or half of a prior or of the depth is missing.
    """
    problem = pose_problem(
        world_points,
        normalised_xy,
        camera_from_world,
        information,
        (inverse_depth, inverse_depth_information),
        body_from_camera,
        (prior_camera_from_world, prior_information),
        kernel,
        kernel_width,
    )
    with torch.no_grad():
        pose, now, converged = _minimise(
            problem, camera_from_world.detach(), iterations, tolerance
        )
        # Only directions that are seen count, whatever their units: eigenvalues after scaling.
        scale = now.hessian.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30).rsqrt()
        scaled = scale[..., :, None] * now.hessian * scale[..., None, :]
        finite = scaled.isfinite().all((-2, -1))
        values = torch.linalg.eigvalsh(torch.where(finite[..., None, None], scaled, 0.0))
        rank = max(_RANK, 20.0 * torch.finfo(values.dtype).eps)
        valid = finite & (values[..., 0] > rank) & pose.isfinite().all((-2, -1))
    if torch.is_grad_enabled() and _wants_gradient(problem):
        pose = _attach_gradient(problem, pose, now.hessian, valid, converged)
        now = linearise_pose(problem, pose)
    residuals = whitened_residuals(problem, now.residuals).mT
    return AbsolutePose(pose, now.hessian, residuals, now.cost, converged & valid, valid)


def _minimise(
    problem: PoseProblem, pose: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, PoseLinear, torch.Tensor]:
    now = linearise_pose(problem, pose)
    pose = pose.expand(*now.cost.shape, 4, 4)
    damping = torch.full_like(now.cost, 1e-4)
    converged = torch.zeros_like(now.cost, dtype=torch.bool)
    for _ in range(iterations):
        step = damped_solve(now.hessian, now.gradient, damping)
        trial_pose = se3.exp(-step) @ pose
        trial = linearise_pose(problem, trial_pose)
        better = trial.cost <= now.cost
        flat = (now.cost - trial.cost).abs() <= tolerance * (now.cost - now.constant)
        converged = converged | flat | (damping > 1e7)
        if bool(better.all()):
            pose, now = trial_pose, trial
        elif bool(better.any()):
            pose = torch.where(better[..., None, None], trial_pose, pose)
            now = PoseLinear(
                torch.where(better, trial.cost, now.cost),
                torch.where(better[..., None], trial.gradient, now.gradient),
                torch.where(better[..., None, None], trial.hessian, now.hessian),
                torch.where(better[..., None, None], trial.residuals, now.residuals),
                torch.where(better, trial.constant, now.constant),
            )
        damping = torch.where(better, damping * 0.1, damping * 8.0).clamp(1e-10, 1e8)
        if bool(converged.all()):
            break
    return pose, now, converged


def _wants_gradient(problem: PoseProblem) -> bool:
    parts: list[torch.Tensor | None] = [problem.points, problem.measured, problem.weights]
    parts += [problem.mixed, problem.camera_from_body]
    parts += list(problem.prior or ())
    return any(part is not None and part.requires_grad for part in parts)


def _attach_gradient(
    problem: PoseProblem,
    pose: torch.Tensor,
    gauss_newton: torch.Tensor,
    valid: torch.Tensor,
    converged: torch.Tensor,
) -> torch.Tensor:
    """The optimum as a function of the inputs: one Newton step whose value is nearly zero.

    With g(xi, inputs) the gradient of the cost at the optimum, d xi = -H^-1 dg, H the full
    Hessian: exact also where residuals do not vanish, which J^T J is not.
    """
    with torch.enable_grad():
        step = torch.zeros_like(gauss_newton[..., 0], requires_grad=True)
        flat = linearise_pose(_detached(problem), se3.exp(-step) @ pose).cost.sum()
        (slope,) = torch.autograd.grad(flat, step, create_graph=True)
        rows = [
            torch.autograd.grad(slope[..., k].sum(), step, retain_graph=True)[0] for k in range(6)
        ]
    hessian = torch.stack(rows, -2).detach()
    positive = torch.linalg.cholesky_ex(hessian)[1] == 0
    usable = (positive & hessian.isfinite().all((-2, -1)))[..., None, None]
    hessian = torch.where(usable, hessian, gauss_newton)
    gradient = linearise_pose(problem, pose).gradient
    # Converged poses take the step itself too, which squares what is left of their error.
    gradient = gradient - torch.where(converged[..., None], 0.0, gradient.detach())
    newton = damped_solve(hessian, gradient, torch.zeros_like(gradient[..., 0]))
    return se3.exp(-torch.where(valid[..., None], newton, 0.0)) @ pose


def _detached(problem: PoseProblem) -> PoseProblem:
    def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.detach()

    prior = problem.prior
    return replace(
        problem,
        points=problem.points.detach(),
        measured=problem.measured.detach(),
        weights=problem.weights.detach(),
        mixed=cut(problem.mixed),
        camera_from_body=cut(problem.camera_from_body),
        prior=None if prior is None else (prior[0].detach(), prior[1].detach()),
    )
