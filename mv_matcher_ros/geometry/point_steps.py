# SPDX-License-Identifier: Apache-2.0
"""Points moved to where held poses want them.

Each point is a problem of three variables, so a step costs little. Taken inside every step of a
bundle adjustment they spare many of those (Jeong, Nistér, Steedly, Szeliski, Kweon, Pushing the
Envelope of Modern Methods for Bundle Adjustment, PAMI 2012: embedded point iterations).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mv_matcher_ros.geometry.reprojection import (
    PointEquations,
    Problem,
    linearise_points,
    point_costs,
)
from mv_matcher_ros.geometry.schur import damped, half_inverse_of

# Keeps a point that is seen under little parallax from leaping along its ray.
DAMPING = 1e-4


def move_points(problem: Problem, steps: int) -> Problem:
    """Gauss-Newton steps of every point; one that would raise the cost of its point is not made.

    Args:
        problem: its poses are held.
        steps: how many; none are made of a problem whose points are fixed.
    """
    if steps <= 0 or problem.points_fixed:
        return problem
    equations = linearise_points(problem)
    for number in range(steps):
        trial = problem.moved(problem.world_from_body, problem.points + _step(equations))
        last = number == steps - 1
        ahead = None if last else linearise_points(trial)
        better = (point_costs(trial) if ahead is None else ahead.cost) <= equations.cost
        points = torch.where(better[:, :, None], trial.points, problem.points)
        problem = problem.moved(problem.world_from_body, points)
        if ahead is not None:
            equations = _chosen(better, ahead, equations)
    return problem


def _step(equations: PointEquations) -> Tensor:
    damping = equations.cost.new_full(equations.cost.shape, DAMPING)
    half = half_inverse_of(damped(equations.hessian, damping))
    inner = torch.einsum('bpij,bpj->bpi', half, equations.gradient)
    return -torch.einsum('bpji,bpj->bpi', half, inner)


def _chosen(better: Tensor, trial: PointEquations, current: PointEquations) -> PointEquations:
    return PointEquations(
        torch.where(better[:, :, None, None], trial.hessian, current.hessian),
        torch.where(better[:, :, None], trial.gradient, current.gradient),
        torch.where(better, trial.cost, current.cost),
    )
