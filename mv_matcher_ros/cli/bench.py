# SPDX-License-Identifier: Apache-2.0
"""`bench`: one command a figure of docs/results.md; without one, stages and bundle adjustment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_covariance import covariance
from mv_matcher_ros.cli.bench_creep import creep
from mv_matcher_ros.cli.bench_gradient import gradient
from mv_matcher_ros.cli.bench_graph import graph
from mv_matcher_ros.cli.bench_homographies import homographies
from mv_matcher_ros.cli.bench_localize import localize
from mv_matcher_ros.cli.bench_loops import loops
from mv_matcher_ros.cli.bench_matcher import matcher
from mv_matcher_ros.cli.bench_memory import memory
from mv_matcher_ros.cli.bench_node import node
from mv_matcher_ros.cli.bench_pairs import pairs
from mv_matcher_ros.cli.bench_places import places
from mv_matcher_ros.cli.bench_points import points
from mv_matcher_ros.cli.bench_recording import recording
from mv_matcher_ros.cli.bench_recovery import recovery
from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.bench_rig import rig
from mv_matcher_ros.cli.bench_stages import FRAMES, measure_stages, print_stages, stages
from mv_matcher_ros.cli.bench_tuples import tuples
from mv_matcher_ros.cli.console import print_table, progress, say
from mv_matcher_ros.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPEATS = 5

bench = typer.Typer(
    help='Latency, memory, the live node, bundle adjustment against gtsam, ways of matching.',
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={'help_option_names': ['-h', '--help']},
)


@bench.callback()
def everything(context: typer.Context, json: JsonOption = False) -> None:
    """Latency, memory, the live node, bundle adjustment against gtsam, ways of matching.

    Without a command: stages and bundle adjustment.
    """
    if context.invoked_subcommand is not None:
        return
    from mv_matcher_ros.cli.demo import flight
    from mv_matcher_ros.config import Settings

    settings = Settings()
    measured = measure_stages(flight(settings.sensor, FRAMES), settings)
    rows = measure_bundle_adjustment(REPEATS)

    def show() -> None:
        print_stages(measured)
        print_bundle_adjustment(rows)

    report({'stages': measured, 'bundle_adjustment': rows}, json, show)


bench.command()(stages)
bench.command()(pairs)
bench.command()(homographies)
bench.command()(tuples)
bench.command()(recording)
bench.command()(points)
bench.command()(graph)
bench.command()(loops)
bench.command()(covariance)
bench.command()(localize)
bench.command()(rig)


@bench.command('ba')
def bundle_adjustment(
    repeats: Annotated[
        int, typer.Option(min=1, help='Runs of each solver; the median counts.')
    ] = REPEATS,
    json: JsonOption = False,
) -> None:
    """Bundle adjustment against gtsam, in one process on the same problems."""
    rows = measure_bundle_adjustment(repeats)
    report({'bundle_adjustment': rows}, json, lambda: print_bundle_adjustment(rows))


bench.command()(gradient)
bench.command()(matcher)
bench.command()(node)
bench.command()(memory)
bench.command()(creep)
bench.command()(recovery)
bench.command()(places)


def measure_bundle_adjustment(repeats: int) -> list[dict[str, Any]]:
    """Each problem solved by this package and, where it is installed, by gtsam."""
    from dataclasses import asdict

    from mv_matcher_ros.cli.ba_bench import SIZES, make_scene, time_gtsam, time_ours

    rows = []
    with progress('bundle adjustment', 2 * len(SIZES)) as advance:
        for poses, points in SIZES:
            scene = make_scene(poses, points)
            timings = []
            for solve in (time_ours, time_gtsam):
                timings.append(solve(scene, repeats))
                advance(f'{poses} x {points}')
            ours, theirs = timings
            rows.append({
                'poses': poses,
                'points': points,
                'observations': len(scene.measured),
                'views_a_point': scene.views_per_point,
                'ours': asdict(ours) if ours else None,
                'gtsam': asdict(theirs) if theirs else None,
                'times_faster': theirs.time_ms / ours.time_ms if ours and theirs else None,
            })  # fmt: skip
    return rows


def print_bundle_adjustment(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of `measure_bundle_adjustment`."""
    body = []
    for row in rows:
        for solver in ('ours', 'gtsam'):
            timing = row[solver]
            if timing is None:
                continue
            faster = row['times_faster'] if solver == 'ours' else None
            body.append(
                (f'{row["poses"]} x {row["points"]}', f'{row["views_a_point"]:.1f}',
                 timing['solver'], f'{timing["time_ms"]:.1f}', timing['iterations'],
                 f'{timing["start_cost"]:.0f}',
                 f'{timing["final_cost"]:.4f}', None if faster is None else f'{faster:.1f} x')
            )  # fmt: skip
    if not any(row['gtsam'] for row in rows):
        say('gtsam is not there to compare with: pip install "mv_matcher_ros[mapping]"')
    print_table(
        'Bundle adjustment, float64, from the same start to the same stopping rule',
        ('poses x points', 'views a point', 'solver', 'ms', 'iterations', 'start cost',
         'final cost', 'faster'),
        body,
        right=(1, 3, 4, 5, 6, 7),
    )  # fmt: skip
