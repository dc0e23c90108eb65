# SPDX-License-Identifier: Apache-2.0
"""`bench gradient`: the objective at its optimum by its places, held and unrolled."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mv_matcher_ros.geometry.bundle_adjustment import Solution
    from mv_matcher_ros.geometry.reprojection import Problem

SIZES = ((5, 300), (5, 1000), (10, 1000))
ITERATIONS = (4, 12, 48)
CONVERGED = 1e-11


@dataclass(frozen=True)
class Row:
    """One problem, solved with so many iterations.

    Attributes:
        apart: relative difference of the two gradients.
        held_ms, unrolled_ms: gradient of the optimum's objective, the optimum being found before.
        solve_ms: what finding it takes without gradients.
        held_kib, unrolled_kib: kept for the way back.
    """

    poses: int
    points: int
    iterations: int
    apart: float
    solve_ms: float
    held_ms: float
    unrolled_ms: float
    held_kib: float
    unrolled_kib: float


def gradient(
    repeats: Annotated[int, typer.Option(min=1, help='Runs; the median counts.')] = 5,
    json: JsonOption = False,
) -> None:
    """What poses and points held constant save where bundle adjustment teaches a network.

    The gradient of the objective by the measured places: at the optimum by the envelope theorem,
    and through all iterations. Time and memory of both, and how far they differ.
    """
    rows = []
    with progress('gradients', len(SIZES) * len(ITERATIONS)) as advance:
        for poses, points in SIZES:
            for iterations in ITERATIONS:
                rows.append(_measured(poses, points, iterations, repeats))
                advance(f'{poses} x {points}')

    def show() -> None:
        print_table(
            'Gradient of the objective of bundle adjustment at its optimum, float64',
            ('poses x points', 'iterations', 'difference', 'finding it ms', 'held ms',
             'unrolled ms', 'faster', 'held KiB', 'unrolled KiB'),
            [
                (f'{r.poses} x {r.points}', r.iterations, f'{100.0 * r.apart:.2g} %',
                 f'{r.solve_ms:.1f}', f'{r.held_ms:.1f}', f'{r.unrolled_ms:.1f}',
                 f'{(r.unrolled_ms - r.solve_ms) / r.held_ms:.0f} x, '
                 f'{r.unrolled_ms / (r.solve_ms + r.held_ms):.1f} x with finding it',
                 f'{r.held_kib:.0f}', f'{r.unrolled_kib:.0f}')
                for r in rows
            ],
            right=(1, 2, 3, 4, 5, 7, 8),
        )  # fmt: skip

    report({'gradient': [asdict(row) for row in rows]}, json, show)


def _measured(poses: int, points: int, iterations: int, repeats: int) -> Row:
    import torch

    from mv_matcher_ros.cli.ba_bench import make_scene, median_ms, to_problem
    from mv_matcher_ros.geometry.bundle_adjustment import solve
    from mv_matcher_ros.geometry.reprojection import cost

    problem = replace(to_problem(make_scene(poses, points)), kernel='cauchy')
    places = problem.measured.clone().requires_grad_()
    given = replace(problem, measured=places)

    def optimum(of: Problem, unroll: bool = False) -> Solution:
        return solve(of, iterations, CONVERGED, unroll=unroll, point_steps=1)

    at = optimum(problem)

    def held() -> Tensor:
        return cost(given.moved(at.world_from_body, at.points))[0]

    def unrolled() -> Tensor:
        return optimum(given, unroll=True).cost[0]

    def by_places(objective: Callable[[], Tensor]) -> Tensor:
        return torch.autograd.grad(objective(), places)[0]

    solve_ms, _ = median_ms(lambda: optimum(problem), repeats)
    held_ms, one = median_ms(lambda: by_places(held), repeats)
    unrolled_ms, other = median_ms(lambda: by_places(unrolled), repeats)
    return Row(
        poses,
        points,
        iterations,
        float((one - other).norm() / other.norm()),
        solve_ms,
        held_ms,
        unrolled_ms,
        kept_bytes(held) / 1024.0,
        kept_bytes(unrolled) / 1024.0,
    )


def kept_bytes(objective: Callable[[], Tensor]) -> int:
    """Of the tensors that autograd keeps for the way back, each storage counted once."""
    import torch

    storages: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)  # what is freed may be given to another one
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective()
    return sum(storages.values())
