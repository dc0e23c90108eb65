# SPDX-License-Identifier: Apache-2.0
"""Points moved alone: where held poses want them, never worse, and they speed the whole up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ba_scenes import window_problem

from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.point_steps import move_points
from mv_matcher_ros.geometry.reprojection import (
    cost,
    linearise,
    linearise_points,
    point_costs,
)

SCENES = {'mono': {}, 'depth': {'depth': True}, 'stereo': {'stereo_baseline': 0.4}}


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('kernel', ['none', 'cauchy'])
def test_point_equations_are_those_of_the_whole_problem(scene: str, kernel: str) -> None:
    problem, _, _ = window_problem(4, 20, 3, batch=2, kernel=kernel, **SCENES[scene])
    whole, points = linearise(problem), linearise_points(problem)
    torch.testing.assert_close(points.hessian, whole.point_point)
    torch.testing.assert_close(points.gradient, whole.point_gradient)
    torch.testing.assert_close(points.cost, point_costs(problem))
    torch.testing.assert_close(points.cost.sum(1), cost(problem))


@pytest.mark.parametrize('scene', SCENES)
def test_points_reach_the_optimum_of_held_poses(scene: str) -> None:
    problem, _, _ = window_problem(5, 60, 4, batch=2, **SCENES[scene])
    moved = move_points(problem, 30)
    held = replace(problem, fixed=torch.ones_like(problem.fixed))
    torch.testing.assert_close(cost(moved), solve(held, 60, 1e-14).cost, rtol=1e-7, atol=1e-12)
    assert torch.equal(moved.world_from_body, problem.world_from_body)


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_no_point_gets_worse(steps: int) -> None:
    problem, _, _ = window_problem(5, 60, 4, kernel='cauchy')
    far_off = problem.points + 3.0 * torch.randn(
        problem.points.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    problem = problem.moved(problem.world_from_body, far_off)
    moved = move_points(problem, steps)
    assert bool((point_costs(moved) <= point_costs(problem)).all())
    assert float(cost(moved)) < float(cost(problem))
    assert bool(moved.points.isfinite().all())


def test_fixed_points_and_no_steps_change_nothing() -> None:
    problem, _, _ = window_problem(4, 20, 3)
    assert move_points(problem, 0) is problem
    held = replace(problem, points_fixed=True)
    assert move_points(held, 5) is held


def test_inside_bundle_adjustment_fewer_iterations_reach_the_same_optimum() -> None:
    problem, _, _ = window_problem(6, 120, 4, kernel='cauchy')
    optimum = float(solve(problem, 200, 1e-14).cost)
    few = float(solve(problem, 3, 0.0, point_steps=2).cost)
    plain = float(solve(problem, 3, 0.0).cost)
    assert few - optimum < 0.2 * (plain - optimum)
    assert float(solve(problem, 60, 1e-14, point_steps=2).cost) == pytest.approx(optimum, rel=1e-8)


def test_unrolled_gradient_passes_through() -> None:
    problem, _, _ = window_problem(4, 20, 3)
    measured = problem.measured.clone().requires_grad_(True)
    solution = solve(replace(problem, measured=measured), 30, 0.0, unroll=True, point_steps=2)
    weights = torch.randn(
        solution.world_from_body.shape,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    (gradient,) = torch.autograd.grad((weights * solution.world_from_body).sum(), measured)
    plain = solve(replace(problem, measured=measured), 30, 0.0, unroll=True)
    (expected,) = torch.autograd.grad((weights * plain.world_from_body).sum(), measured)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
