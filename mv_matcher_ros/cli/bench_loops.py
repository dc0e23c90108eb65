# SPDX-License-Identifier: Apache-2.0
"""`bench loops`: are revisits closed, none falsely, and what is the trajectory worth then?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import WidthOption, image_size, report
from mv_matcher_ros.cli.console import print_table, say
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SensorChoice,
    SetOption,
    settings_from,
)
from mv_matcher_ros.cli.place_sources import LOOPS

if TYPE_CHECKING:
    from mv_matcher_ros.cli.loop_runs import LoopRun, LoopSource
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array, Trajectory
    from mv_matcher_ros.evaluation.evaluation_result import FittedAlignment
    from mv_matcher_ros.mapping.pose_graph import PoseGraph

# Keyframes in a row that make one mistake together.
RUNS = (1, 5)


def loops(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='[SOURCE]...',
            help=f'{", ".join(LOOPS)}, or recordings with ground truth.  [default: all loops]',
        ),
    ] = None,
    sensor: Annotated[
        list[SensorChoice] | None, typer.Option(help='Repeatable.  [default: mono and stereo]')
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help='Of each rendered loop.')] = 5,
    width: WidthOption = 640,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Loops closed and not, false ones, and the error with and without the map.

    Rendered loops go one and a quarter rounds. Then the graph of each run is solved again with as
    many false loops as there are true ones.
    """
    settings = settings_from(config, assignments)
    rows = []
    for name in sources or LOOPS:
        for chosen in sensor or (SensorChoice.mono, SensorChoice.stereo):
            for seed in range(seeds if name in LOOPS else 1):
                row = measure(name, settings, chosen.value, image_size(width), seed)
                say(_line(row))
                rows.append(row)
    report({'loops': rows}, json, lambda: _show(rows))


def measure(
    name: str, settings: Settings, sensor: Any, size: tuple[int, int], seed: int
) -> dict[str, Any]:
    """One run of one source.

    Raises:
        SourceError: no such loop or recording, or one without truth.
    """
    from mv_matcher_ros.cli.loop_runs import (
        false_loops,
        open_loop,
        place_truth,
        replayed,
        run_with_map,
        units_m,
    )
    from mv_matcher_ros.evaluation.loop_truth import closed, distinct_revisits, judge_loops

    opened = open_loop(name, sensor, size, seed)
    run = run_with_map(opened.source, settings)
    keys, bodies, truth = place_truth(run, opened, settings.mapping.places.gap_s)
    place = {key: number for number, key in enumerate(keys)}
    believed = [
        (place[loop.a], place[loop.b], loop.a_from_b)
        for loop in run.mapper.pose_graph.loops
        if loop.a in place and loop.b in place
    ]
    units = units_m(run, keys, bodies)
    judged = judge_loops(believed, bodies, truth, [units[a] for a, _, _ in believed])
    revisits = distinct_revisits(truth)
    clean = _graph_error(replayed(run, settings, ()), keys, bodies, run)
    harm = {}
    for length in RUNS:
        false = false_loops(run, keys, truth, length, seed)
        spoiled = replayed(run, settings, false)
        told = {id(loop) for loop in false}
        harm[str(length)] = {
            'injected': len(false),
            'believed': sum(id(loop) in told for loop in spoiled.loops),
            'ate_m': _graph_error(spoiled, keys, bodies, run),
        }
    odometry, path_m = _error(run, run.odometry, opened)
    on_map, _ = _error(run, run.on_map, opened)
    return {
        'source': name, 'sensor': sensor, 'seed': seed, 'path_m': path_m,
        'keyframes': len(keys), 'revisits': len(revisits), 'closed': closed(revisits, judged),
        'loops': len(judged), 'false': sum(not loop.true for loop in judged),
        'verified': len(run.revisits), 'refused': len(run.refused),
        'odometry_m': odometry, 'map_m': on_map, 'graph_m': clean, 'injected': harm,
    }  # fmt: skip


def _error(run: LoopRun, trajectory: Trajectory, opened: LoopSource) -> tuple[float, float]:
    """ATE (Sim(3) without metric scale) and the length of the way, metres."""
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_trajectory

    align: FittedAlignment = 'se3' if run.mapper.world.metric else 'sim3'
    truth = opened.source.truth
    assert truth is not None
    found = evaluate_trajectory(trajectory, truth, align)
    return found.ate.translation_m.rmse, found.pairs.path_m


def _graph_error(graph: PoseGraph, keys: Sequence[int], bodies: Array, run: LoopRun) -> float:
    """The same of the keyframes of a graph."""
    import numpy as np

    from mv_matcher_ros.evaluation.poses import aligned_rmse

    at = np.stack([graph.pose(key)[0][:3, 3] for key in keys])
    return aligned_rmse(at, bodies[:, :3, 3], not run.mapper.world.metric)


def _line(row: Mapping[str, Any]) -> str:
    return (
        f'{row["source"]} {row["sensor"]} {row["seed"]}: {row["closed"]} of {row["revisits"]} '
        f'revisits, {row["loops"]} loops, {row["false"]} false; '
        f'{row["odometry_m"]:.3f} -> {row["map_m"]:.3f} m of {row["path_m"]:.0f} m'
    )


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        'odometry, and on the map',
        ('source', 'sensor', 'seed', 'path m', 'keyframes', 'closed', 'loops', 'false',
         'refused', 'odometry m', 'map m', 'ratio', '% of path'),
        [
            (
                r['source'], r['sensor'], r['seed'], f'{r["path_m"]:.0f}', r['keyframes'],
                f'{r["closed"]} of {r["revisits"]}', r['loops'], r['false'], r['refused'],
                f'{r["odometry_m"]:.3f}', f'{r["map_m"]:.3f}',
                f'{r["map_m"] / r["odometry_m"]:.2f}', f'{100 * r["map_m"] / r["path_m"]:.2f}',
            )
            for r in rows
        ],
        right=tuple(range(2, 13)),
    )  # fmt: skip
    print_table(
        'the graph of keyframes alone, with as many false loops as true ones',
        ('source', 'sensor', 'seed', 'clean m',
         *(f'{"single" if n == 1 else f"runs of {n}"}: m (believed)' for n in RUNS)),
        [
            (
                r['source'], r['sensor'], r['seed'], f'{r["graph_m"]:.3f}',
                *(
                    f'{r["injected"][str(n)]["ate_m"]:.3f} '
                    f'({r["injected"][str(n)]["believed"]} of {r["injected"][str(n)]["injected"]})'
                    for n in RUNS
                ),
            )
            for r in rows
        ],
        right=(2, 3, 4, 5),
    )  # fmt: skip
