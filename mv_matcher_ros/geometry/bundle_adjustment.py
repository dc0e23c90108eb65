# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment: Levenberg-Marquardt over poses and points, differentiable.

Two ways to differentiate the optimum by anything it depends on (matches, weights, extrinsics,
prior): `solve(..., unroll=True)` records the iterations; `attach_gradient` applies the implicit
function theorem at the optimum with the full Hessian (second-order residual and kernel terms),
which needs no memory for the iterations. At a converged optimum both agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.point_steps import move_points
from mv_matcher_ros.geometry.reprojection import (
    MIN_DEPTH,
    NormalEquations,
    PosePrior,
    Problem,
    block_diagonal,
    cost,
    flat_index,
    linearise,
)
from mv_matcher_ros.geometry.robust_kernel import kernel_value_and_weight
from mv_matcher_ros.geometry.schur import (
    eliminate_points,
    least_norm_inverse,
    solve_reduced,
)

# Marquardt damping: where it starts, and how it falls after a step that helped and rises after one
# that did not.
START_DAMPING = 1e-4
DAMPING_FALL = 0.1
DAMPING_RISE = 8.0
DAMPING_RANGE = (1e-12, 1e8)
# Eigenvalues of a marginal prior below this share of its largest are rounding noise of the
# elimination.
GAUGE_FLOOR = 1e-14


@dataclass(frozen=True)
class Solution:
    """Where a bundle adjustment ended.

    Attributes:
        world_from_body: (B, V, 4, 4); points: (B, P, 3).
        initial_cost, cost: (B,).
        iterations: how many were run.
        converged: (B,) bool, the cost no longer fell by the asked share.
    """

    world_from_body: Tensor
    points: Tensor
    initial_cost: Tensor
    cost: Tensor
    iterations: int
    converged: Tensor


def retract(
    world_from_body: Tensor, points: Tensor, pose_step: Tensor, point_step: Tensor
) -> tuple[Tensor, Tensor]:
    """T·exp(δ) and X + ΔX."""
    return world_from_body @ se3.exp(pose_step), points + point_step


def solve(
    problem: Problem,
    iterations: int = 20,
    relative_decrease: float = 1e-6,
    unroll: bool = False,
    point_steps: int = 0,
) -> Solution:
    """Minimise ½ Σ ρ(‖Σ^-½ (π(X) − x)‖²) + prior over the free poses and the points.

    Args:
        problem: start values and observations; float32 or float64.
        iterations: most steps tried.
        relative_decrease: a problem has converged when an accepted step lowers its cost by less
            than this share.
        unroll: keep the graph of all steps for autograd (each run of a batch keeps its own damping
            either way).
        point_steps: steps of the points alone inside each step (see `move_points`).

    Returns:
        Solution: never worse than the start; steps that raise the cost are refused.
    """
    with torch.set_grad_enabled(unroll and torch.is_grad_enabled()):
        equations = linearise(problem)
        initial = equations.cost
        damping = torch.full_like(initial, START_DAMPING).detach()
        converged = torch.zeros_like(initial, dtype=torch.bool)
        done = 0
        for done in range(1, iterations + 1):
            steps = solve_reduced(problem, eliminate_points(problem, equations, damping))
            trial = problem.moved(*retract(problem.world_from_body, problem.points, *steps))
            trial = move_points(trial, point_steps)
            trial_cost = cost(trial)
            better = (trial_cost <= equations.cost) & ~converged
            decrease = (equations.cost - trial_cost).detach()
            small = decrease.abs() <= relative_decrease * equations.cost.detach().abs() + 1e-300
            damping = torch.where(better, damping * DAMPING_FALL, damping * DAMPING_RISE).clamp(
                *DAMPING_RANGE
            )
            stuck = ~better & (damping >= DAMPING_RANGE[1])
            converged = converged | small | stuck
            if bool(better.any()):
                problem = _chosen(better, trial, problem)
                if done == iterations or bool(converged.all()):
                    equations = replace(
                        equations, cost=torch.where(better, trial_cost, equations.cost)
                    )
                    break
                equations = linearise(problem)
            elif bool(converged.all()):
                break
        return Solution(
            problem.world_from_body, problem.points, initial, equations.cost, done, converged
        )


def _chosen(better: Tensor, trial: Problem, current: Problem) -> Problem:
    if bool(better.all()):
        return trial
    where = better[:, None, None]
    return current.moved(
        torch.where(where[..., None], trial.world_from_body, current.world_from_body),
        torch.where(where, trial.points, current.points),
    )


def attach_gradient(problem: Problem, solution: Solution) -> tuple[Tensor, Tensor]:
    """The optimum as a differentiable function of the problem's data (implicit function theorem).

    With F(x, θ) = ∇ₓ cost = 0 at the optimum, dx/dθ = −H⁻¹ ∂F/∂θ, H the full Hessian. One Newton
    step x − H⁻¹F(x, θ) with x and H held constant has the optimum's value and exactly that
    derivative. (Gauss-Newton's JᵀJ in place of H is right only for zero residuals.)

    Returns:
        world_from_body (B, V, 4, 4) and points (B, P, 3). Directions that the cost leaves free
        (gauge) get gradient zero.
    """
    at_optimum = problem.moved(solution.world_from_body.detach(), solution.points.detach())
    gradient = linearise(at_optimum)
    with torch.no_grad():
        hessian = full_hessian(at_optimum)
    system = replace(
        gradient,
        pose_pose=hessian.pose_pose,
        point_point=hessian.point_point,
        pose_point=hessian.pose_point,
    )
    steps = solve_reduced(at_optimum, eliminate_points(at_optimum, system), gauge_free=True)
    return retract(at_optimum.world_from_body, at_optimum.points, *steps)


def full_hessian(problem: Problem) -> NormalEquations:
    """Exact second derivatives of the objective in (δ, ΔX).

    Forward-over-reverse automatic differentiation of each observation.
    """
    batch, poses = problem.world_from_body.shape[:2]
    points = problem.points.shape[1]
    size = problem.measured.shape[-1]
    pose_at = flat_index(problem.pose_index, poses)
    point_at = flat_index(problem.point_index, points)
    pose = problem.world_from_body.reshape(-1, 4, 4)[pose_at]
    world = problem.points.reshape(-1, 3)[point_at]
    if problem.camera_from_body is None:
        extrinsic = torch.eye(4, dtype=pose.dtype, device=pose.device).expand(len(pose), 4, 4)
    elif problem.camera_index is None:
        extrinsic = problem.camera_from_body[:, 0].repeat_interleave(problem.measured.shape[1], 0)
    else:
        index = flat_index(problem.camera_index, problem.camera_from_body.shape[1])
        extrinsic = problem.camera_from_body.reshape(-1, 4, 4)[index]

    def observation_cost(
        step: Tensor,
        pose: Tensor,
        world: Tensor,
        extrinsic: Tensor,
        measured: Tensor,
        sqrt_information: Tensor,
        importance: Tensor,
    ) -> Tensor:
        moved = pose @ se3.exp(step[:6])
        body = moved[:3, :3].T @ (world + step[6:] - moved[:3, 3])
        camera = extrinsic[:3, :3] @ body + extrinsic[:3, 3]
        inverse_depth = 1.0 / camera[2].clamp_min(MIN_DEPTH)
        predicted = torch.cat([camera[:2] * inverse_depth, inverse_depth[None]])[:size]
        error = predicted - measured
        whitened = (
            sqrt_information @ error if sqrt_information.ndim == 2 else sqrt_information * error
        )
        squared = whitened.square()
        value, _ = kernel_value_and_weight(squared[:2].sum(), problem.kernel, problem.kernel_width)
        if size == 3:
            value = (
                value
                + kernel_value_and_weight(squared[2], problem.kernel, problem.kernel_width)[0]
            )
        return 0.5 * importance * value

    zero = torch.zeros(len(pose), 9, dtype=pose.dtype, device=pose.device)
    importance = zero[:, 0] + 1.0 if problem.importance is None else problem.importance.flatten()
    blocks = torch.func.vmap(torch.func.hessian(observation_cost))(
        zero,
        pose,
        world,
        extrinsic,
        problem.measured.reshape(-1, size),
        problem.sqrt_information.flatten(0, 1),
        importance,
    )
    pose_blocks = torch.zeros(batch * poses, 6, 6, dtype=pose.dtype, device=pose.device)
    pose_blocks = pose_blocks.index_add(0, pose_at, blocks[:, :6, :6]).reshape(batch, poses, 6, 6)
    point_blocks = torch.zeros(batch * points, 3, 3, dtype=pose.dtype, device=pose.device)
    point_blocks = point_blocks.index_add(0, point_at, blocks[:, 6:, 6:]).reshape(
        batch, points, 3, 3
    )
    pose_pose = block_diagonal(pose_blocks)
    if problem.prior is not None:
        pose_pose = pose_pose + _prior_hessian(problem.prior, problem.world_from_body)
    return NormalEquations(
        pose_pose,
        torch.zeros_like(pose_pose[:, 0]),
        point_blocks,
        torch.zeros_like(problem.points),
        blocks[:, :6, 6:].reshape(batch, -1, 6, 3),
        torch.zeros_like(pose_pose[:, 0, 0]),
    )


def _prior_hessian(prior: PosePrior, world_from_body: Tensor) -> Tensor:
    batch, poses = world_from_body.shape[:2]

    def prior_cost(
        step: Tensor, information: Tensor, gradient: Tensor, linearisation: Tensor, pose: Tensor
    ) -> Tensor:
        moved = pose @ se3.exp(step.reshape(poses, 6))
        deviation = se3.log(se3.inverse(linearisation) @ moved).flatten()
        return 0.5 * deviation @ information @ deviation + gradient @ deviation

    zero = torch.zeros(
        batch, 6 * poses, dtype=world_from_body.dtype, device=world_from_body.device
    )
    return torch.func.vmap(torch.func.hessian(prior_cost))(
        zero, prior.information, prior.gradient, prior.linearisation, world_from_body
    )


def pose_covariance(problem: Problem) -> Tensor:
    """(B, 6V, 6V) covariance of the poses at the problem's values, by Gauss-Newton.

    Of right perturbations [translation, rotation]. Points are marginalised out; fixed poses get
    zero; directions no observation constrains (gauge) get zero too: fix them by a prior or a fixed
    pose before trusting a number.
    """
    reduced = eliminate_points(problem, linearise(problem))
    covariance = least_norm_inverse(reduced.pose_pose)
    rows = problem.fixed.repeat_interleave(6, dim=1)
    free = ~rows
    return torch.where(
        free[:, :, None] & free[:, None, :], covariance, torch.zeros_like(covariance)
    )


def to_fixed_axes(covariance: Tensor, world_from_body: Tensor) -> Tensor:
    """Covariance of a right perturbation (…, 6, 6) → x y z rx ry rz, axes fixed in the world.

    That is what REP-103 asks for. T·exp([v, w]) moves the body origin by R·v and turns it by R·w
    about world axes, so both blocks turn by R. (The full adjoint would also add t × R·w: that is
    the error of the world origin seen from the body, not the position error that
    nav_msgs/Odometry means.)
    """
    rotation = world_from_body[..., :3, :3]
    turn = torch.zeros(*rotation.shape[:-2], 6, 6, dtype=rotation.dtype, device=rotation.device)
    turn[..., :3, :3] = rotation
    turn[..., 3:, 3:] = rotation
    return turn @ covariance @ turn.transpose(-1, -2)


def marginal_prior(problem: Problem, drop: Tensor) -> PosePrior:
    """What the problem's observations and prior say of the poses that stay, at its values.

    All points of the problem are eliminated: give it only the points (and their observations) that
    leave with the dropped poses. The kept poses keep their order.

    Args:
        drop: (V,) bool, the same for the whole batch.

    Returns:
        PosePrior over the V' kept poses; its information is positive semi-definite.
    """
    equations = linearise(problem)
    free = replace(problem, fixed=torch.zeros_like(problem.fixed))
    reduced = eliminate_points(free, equations)
    rows = drop.repeat_interleave(6)
    information, gradient = reduced.pose_pose, reduced.pose_gradient
    kept, dropped = (~rows).nonzero()[:, 0], rows.nonzero()[:, 0]
    cross = information[:, kept][:, :, dropped]
    inverse = least_norm_inverse(information[:, dropped][:, :, dropped])
    gain = cross @ inverse
    kept_information = information[:, kept][:, :, kept] - gain @ cross.transpose(1, 2)
    kept_gradient = gradient[:, kept] - torch.einsum('bij,bj->bi', gain, gradient[:, dropped])
    values, vectors = torch.linalg.eigh(
        0.5 * (kept_information + kept_information.transpose(1, 2))
    )
    positive = values > GAUGE_FLOOR * values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    kept_information = (
        vectors * torch.where(positive, values, 0.0)[:, None, :]
    ) @ vectors.transpose(1, 2)
    # A gradient along directions without information would pull without bound: drop it there.
    components = torch.einsum('bji,bj->bi', vectors, kept_gradient)
    kept_gradient = torch.einsum('bij,bj->bi', vectors, torch.where(positive, components, 0.0))
    return PosePrior(kept_information, kept_gradient, problem.world_from_body[:, ~drop])
