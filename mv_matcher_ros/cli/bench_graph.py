# SPDX-License-Identifier: Apache-2.0
"""`bench graph`: the pose graph beside one batch of GTSAM, among false loops, and as it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_memory import resident_mb
from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import ConfigOption, JsonOption, SetOption, settings_from
from mv_matcher_ros.cli.out_folder import out_option

if TYPE_CHECKING:
    from mv_matcher_ros.config import PoseGraphSettings
    from mv_matcher_ros.datatypes import Array
    from mv_matcher_ros.mapping.graph_worlds import GraphWorld
    from mv_matcher_ros.mapping.loops import Loop
    from mv_matcher_ros.mapping.pose_graph import PoseGraph

# Lengths of runs of false loops; 1 is single ones at random.
RUNS = (1, 8, 25)


def graph(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar='[FILE]...', help='g2o files to solve instead of graphs of our own.'
        ),
    ] = None,
    poses: Annotated[
        int, typer.Option(min=100, help='Poses of the largest graph solved in one batch.')
    ] = 10_000,
    keyframes: Annotated[
        int, typer.Option(min=100, help='Keyframes of the graph that grows.')
    ] = 5_000,
    seeds: Annotated[int, typer.Option(min=1, help='Worlds with false loops of each kind.')] = 5,
    out: Annotated[
        Path | None, out_option('Also write the graphs as g2o files, and the curves as a picture.')
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """The pose graph beside one batch of GTSAM, among false loops, and as it grows.

    Graphs of our own making: a sphere, a car park, streets; odometry drifts by about a percent of
    the way.
    """
    settings = settings_from(config, assignments).mapping.pose_graph
    if files:
        solved = [measure_file(file, settings) for file in files]
        report({'graph': {'batch': solved}}, json, lambda: _show_batch(solved))
        return
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    growth = {  # first: memory that others let go would hide what this takes
        sensor: measure_growth(growing_world(keyframes, sensor == 'mono'), settings)
        for sensor in ('metric', 'mono')
    }
    batch = [measure_batch(world, settings, out) for world in batch_worlds(poses)]
    false = measure_false_loops(settings, seeds)
    if out is not None:
        draw(growth, out / 'graph_growth.png')

    def show() -> None:
        _show_batch(batch)
        _show_false(false)
        _show_growth(growth)

    report({'graph': {'batch': batch, 'false_loops': false, 'growth': growth}}, json, show)


# ---------------------------------------------------------------------- batch


def batch_worlds(poses: int) -> Iterator[GraphWorld]:
    """A sphere and a car park as the field has them, and streets of so many poses."""
    from mv_matcher_ros.mapping import graph_worlds

    yield graph_worlds.sphere()
    yield graph_worlds.garage()
    yield graph_worlds.manhattan(poses)


def measure_batch(
    world: GraphWorld, settings: PoseGraphSettings, out: Path | None
) -> dict[str, Any]:
    """A graph that grew, beside one batch from where odometry alone leads.

    All loops are true and believed, no kernel hides a misfit.
    """
    from mv_matcher_ros.mapping.g2o import write_g2o
    from mv_matcher_ros.mapping.graph_files import file_from_graph
    from mv_matcher_ros.mapping.pose_graph import PoseGraph

    made = PoseGraph(settings.model_copy(update={'kernel_width': 0.0}), world.similarity)
    begin = time.perf_counter()
    with progress(f'{world.name}: step by step', len(world)) as advance:
        for _ in world.drive(made, trusted=True):
            advance()
    growing_s = time.perf_counter() - begin
    if out is not None:
        write_g2o(out / f'{world.name}.g2o', file_from_graph(made))
    row = {
        'world': world.name,
        'poses': len(world),
        'loops': len(world.loops),
        'growing_s': growing_s,
    }
    return {**row, **beside_batch(made, world.dead_reckoning())}


def measure_file(file: Path, settings: PoseGraphSettings) -> dict[str, Any]:
    """The graph of a g2o file, all of its edges believed, beside one batch.

    Raises:
        SourceError: not such a file; names the line.
    """
    import numpy as np

    from mv_matcher_ros.mapping.g2o import read_g2o
    from mv_matcher_ros.mapping.graph_files import graph_from_file

    content = read_g2o(file)
    begin = time.perf_counter()
    made = graph_from_file(content, settings.model_copy(update={'kernel_width': 0.0}))
    growing_s = time.perf_counter() - begin
    start = np.stack([content.poses[key] for key in sorted(content.poses)])
    row = {
        'world': file.stem,
        'poses': len(made),
        'loops': len(made.loops),
        'growing_s': growing_s,
    }
    return {**row, **beside_batch(made, start)}


def beside_batch(made: PoseGraph, start: Array) -> dict[str, float]:
    """Cost of a metric graph, and of Levenberg-Marquardt over all of it at once.

    The batch begins at `start` (N, 4, 4) and once more where the graph is: the lower cost of the
    two counts.
    """
    import numpy as np

    from mv_matcher_ros.mapping.pose_algebra import SE3
    from mv_matcher_ros.mapping.pose_graph_solver import Between, Factor, Prior, Solver

    keys, poses, _ = made.poses()
    number = {int(key): n for n, key in enumerate(keys)}
    held = number[made.origin]
    factors: list[Factor] = [
        Prior(held, poses[held], 1e-10 * np.eye(6)),
        *(
            Between(number[m.a], number[m.b], m.a_from_b, m.covariance)
            for m in made.measurements()
        ),
    ]
    solver = Solver(SE3)
    cost = solver.cost(poses, factors)
    begin = time.perf_counter()
    _, from_start = solver.optimum(start, factors)
    batch_s = time.perf_counter() - begin
    _, from_ours = solver.optimum(poses, factors)
    best = min(from_start, from_ours)
    return {
        'cost': cost,
        'batch_from_start': from_start,
        'batch_from_ours': from_ours,
        'excess': cost / best - 1.0 if best else 0.0,
        'batch_s': batch_s,
    }


# ---------------------------------------------------------------- false loops


def measure_false_loops(
    settings: PoseGraphSettings, seeds: int, poses: int = 1500
) -> list[dict[str, Any]]:
    """Worlds of about so many poses whose loops are joined by as many false ones, beside the same
    without."""
    from mv_matcher_ros.mapping import graph_worlds

    rows = []
    kinds = [(name, mono) for name in ('garage', 'manhattan') for mono in (False, True)]
    with progress('false loops', len(kinds) * seeds * len(RUNS)) as advance:
        for name, mono in kinds:
            for seed in range(seeds):
                world = (
                    graph_worlds.garage(max(poses // 500, 1), seed=seed)
                    if name == 'garage'
                    else graph_worlds.manhattan(poses, blocks=max(poses // 250, 3), seed=seed)
                )
                if mono:
                    world = graph_worlds.without_metric_scale(world, seed)
                odometry = _rmse(world.truth, world.dead_reckoning(), mono)
                clean = _after(world, (), settings)
                for run in RUNS:
                    count = len(world.loops)
                    wrong = (
                        graph_worlds.random_false_loops(world, count, seed)
                        if run == 1
                        else graph_worlds.clustered_false_loops(world, count, run, seed)
                    )
                    found = _after(world, wrong, settings)
                    rows.append({
                        'world': name, 'sensor': 'mono' if mono else 'metric', 'seed': seed,
                        'run': run, 'loops': count, 'odometry_m': odometry,
                        'clean_m': clean['ate_m'], 'clean_believed': clean['true'],
                        'with_false_m': found['ate_m'], 'true_believed': found['true'],
                        'false_believed': found['false'],
                        'ratio': found['ate_m'] / clean['ate_m'],
                    })  # fmt: skip
                    advance()
    return rows


def _after(
    world: GraphWorld, wrong: Sequence[Loop], settings: PoseGraphSettings
) -> dict[str, Any]:
    from mv_matcher_ros.mapping.pose_graph import PoseGraph

    made = PoseGraph(settings, world.similarity)
    for _ in world.drive(made, wrong):
        pass
    believed, false = {id(loop) for loop in made.loops}, {id(loop) for loop in wrong}
    return {
        'ate_m': _rmse(world.truth, made.poses()[1], world.similarity),
        'true': len(believed - false),
        'false': len(believed & false),
    }


def _rmse(truth: Array, estimate: Array, with_scale: bool) -> float:
    """Absolute trajectory error after alignment."""
    from mv_matcher_ros.evaluation.poses import aligned_rmse

    return aligned_rmse(estimate[:, :3, 3], truth[:, :3, 3], with_scale)


# --------------------------------------------------------------------- growth


def growing_world(keyframes: int, mono: bool) -> GraphWorld:
    """Streets with a loop for every fourth keyframe that sees a place again."""
    from mv_matcher_ros.mapping import graph_worlds

    world = graph_worlds.manhattan(keyframes, blocks=10)
    return graph_worlds.without_metric_scale(world) if mono else world


def measure_growth(world: GraphWorld, settings: PoseGraphSettings) -> dict[str, Any]:
    """Time of every update, memory on the way, and the search for places among as many."""
    import numpy as np

    from mv_matcher_ros.cli.place_baselines import time_search
    from mv_matcher_ros.mapping.pose_graph import PoseGraph

    made = PoseGraph(settings, world.similarity)
    times, samples = [], []
    every = max(len(world) // 10, 1)
    start_mb = resident_mb()
    # `drive` adds and updates between two yields: all that a keyframe costs.
    steps = world.drive(made)
    with progress(f'growing to {len(world)}', len(world)) as advance:
        for k in range(len(world)):
            begin = time.perf_counter()
            next(steps)
            times.append(1e3 * (time.perf_counter() - begin))
            if (k + 1) % every == 0:
                recent = np.array(times[-every:])
                samples.append({
                    'keyframes': k + 1,
                    'p50_ms': float(np.median(recent)),
                    'p99_ms': float(np.percentile(recent, 99)),
                    'worst_ms': float(recent.max()),
                    'grown_mb': resident_mb() - start_mb,
                    'search_ms': time_search(k + 1)['median'],
                })  # fmt: skip
            advance()
    return {
        'keyframes': len(world),
        'loops': len(world.loops),
        'believed': len(made.loops),
        'p50_ms': float(np.median(times)),
        'p99_ms': float(np.percentile(times, 99)),
        'worst_ms': max(times),
        'above_5_ms': int((np.array(times) > 5.0).sum()),
        'times_ms': times,
        'samples': samples,
    }


def draw(growth: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """The curves: time of each update, memory, search.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    from mv_matcher_ros.errors import MissingDependencyError

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError('matplotlib', 'report', 'drawing plots') from None
    figure = Figure(figsize=(12.0, 3.6), layout='constrained')
    update, memory, search = figure.subplots(1, 3)
    for (sensor, found), colour in zip(growth.items(), ('#1f6feb', '#c4432b'), strict=False):
        samples = found['samples']
        at = [s['keyframes'] for s in samples]
        update.plot(found['times_ms'], '.', color=colour, markersize=2, label=sensor)
        memory.plot(at, [s['grown_mb'] for s in samples], '-o', color=colour, markersize=3)
        search.plot(at, [s['search_ms'] for s in samples], '-o', color=colour, markersize=3)
    update.set_yscale('log')
    update.legend(markerscale=5)
    for axes, title in (
        (update, 'update of the graph, ms'),
        (memory, 'memory above the start, MB'),
        (search, 'search among all places, ms'),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel('keyframes')
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


# ----------------------------------------------------------------------- show


def _show_batch(rows: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        'step by step beside one batch of GTSAM',
        ('graph', 'poses', 'loops', 'cost', 'batch', 'above it', 'growing s', 'batch s'),
        [
            (
                r['world'], r['poses'], r['loops'], f'{r["cost"]:.2f}',
                f'{min(r["batch_from_start"], r["batch_from_ours"]):.2f}',
                f'{r["excess"]:.1e}', f'{r["growing_s"]:.1f}', f'{r["batch_s"]:.1f}',
            )
            for r in rows
        ],
        right=(1, 2, 3, 4, 5, 6, 7),
    )  # fmt: skip


def _show_false(rows: Sequence[Mapping[str, Any]]) -> None:
    table = []
    for name, sensor, run in dict.fromkeys((r['world'], r['sensor'], r['run']) for r in rows):
        of = [r for r in rows if (r['world'], r['sensor'], r['run']) == (name, sensor, run)]
        odometry, clean, false = (
            sum(r[key] for r in of) / len(of) for key in ('odometry_m', 'clean_m', 'with_false_m')
        )
        table.append((
            name, sensor, 'single' if run == 1 else f'runs of {run}',
            f'{odometry:.3f}', f'{clean:.3f}', f'{false:.3f}',
            f'{max(r["ratio"] for r in of):.3f}',
            f'{sum(r["true_believed"] for r in of)} of {sum(r["loops"] for r in of)}',
            sum(r['false_believed'] for r in of),
        ))  # fmt: skip
    print_table(
        'as many false loops as true ones, mean over the seeds',
        ('world', 'sensor', 'false loops', 'odometry m', 'clean m', 'with false m',
         'worst ratio', 'true believed', 'false believed'),
        table,
        right=(3, 4, 5, 6, 7, 8),
    )  # fmt: skip


def _show_growth(growth: Mapping[str, Mapping[str, Any]]) -> None:
    for sensor, found in growth.items():
        print_table(
            f'{sensor}: {found["keyframes"]} keyframes, {found["believed"]} of {found["loops"]} '
            f'loops; update p50 {found["p50_ms"]:.2f}, p99 {found["p99_ms"]:.2f}, worst '
            f'{found["worst_ms"]:.0f} ms',
            ('keyframes', 'p50 ms', 'p99 ms', 'worst ms', 'memory MB', 'search ms'),
            [
                (
                    s['keyframes'], f'{s["p50_ms"]:.2f}', f'{s["p99_ms"]:.2f}',
                    f'{s["worst_ms"]:.0f}', f'{s["grown_mb"]:.1f}', f'{s["search_ms"]:.2f}',
                )
                for s in found['samples']
            ],
            right=(0, 1, 2, 3, 4, 5),
        )  # fmt: skip
