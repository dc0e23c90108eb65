# SPDX-License-Identifier: Apache-2.0
"""`bench recovery`: what does odom do while the lens is covered, and when it is free again?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mv_matcher_ros.cli.bench_report import WidthOption, image_size, report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SensorChoice,
    SetOption,
    settings_from,
)
from mv_matcher_ros.errors import MvMatcherError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mv_matcher_ros.cli.faults import Drive
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array
    from mv_matcher_ros.worlds.recording import SyntheticSource

# One that ends while the old map is still looked for, and one after which a new map was begun.
GAPS_S = (1.5, 3.5)


def recovery(
    gap_s: Annotated[
        list[float] | None,
        typer.Option('--gap', min=0.05, help='Seconds covered; repeatable. Default: 1.5 and 3.5.'),
    ] = None,
    before: Annotated[int, typer.Option(min=3, help='Frames before the gap.')] = 60,
    after: Annotated[int, typer.Option(min=3, help='Frames after it.')] = 60,
    sensor: Annotated[
        SensorChoice, typer.Option(help='Sensor of the flight.')
    ] = SensorChoice.stereo,
    width: WidthOption = 640,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Largest change of odom between two frames while the lens is covered and on recovery."""
    from mv_matcher_ros.cli.demo import Counted
    from mv_matcher_ros.cli.faults import drive

    settings = settings_from(config, assignments, sensor.value)
    gaps = []
    for seconds in gap_s or GAPS_S:
        source, covered = covered_flight(settings, seconds, before, after, image_size(width))
        with progress(f'covered for {seconds:g} s', len(source)) as advance:
            driven = drive(Counted(source, advance), settings)
        gaps.append({'gap_s': seconds, 'covered': covered, **changes_of_odom(driven)})
    measured = {'sensor': sensor.value, 'gaps': gaps}
    report({'recovery': measured}, json, lambda: _show(measured))


def covered_flight(
    settings: Settings, gap_s: float, before: int, after: int, size: tuple[int, int]
) -> tuple[SyntheticSource, int]:
    """The flight of the demo with a hand on the lens for a while, and for how many frames."""
    from mv_matcher_ros.worlds.effects import Effects, Fault
    from mv_matcher_ros.worlds.presets import room_loop

    rate_hz = room_loop(settings.sensor, 1, size).rate_hz
    covered = max(1, round(gap_s * rate_hz))
    effects = Effects(faults=(Fault('covered', before, before + covered - 1),))
    return room_loop(settings.sensor, before + covered + after, size, effects=effects), covered


def changes_of_odom(driven: Drive) -> dict[str, Any]:
    """The largest change of odom from one published pose to the next, by the status of the next.

    Raises:
        MvMatcherError: the engine refused the recording.
    """
    if driven.error:
        raise MvMatcherError(driven.error)
    assert driven.truth is not None
    truth = driven.truth.world_from_body
    rows: dict[str, dict[str, Any]] = {}
    before: tuple[int, Array] | None = None
    for index, estimate in enumerate(driven.estimates):
        row = rows.setdefault(
            estimate.status.value, {'frames': 0, 'with_pose': 0, 'largest': None}
        )
        row['frames'] += 1
        pose = estimate.odom_from_body
        if pose is None:
            continue
        row['with_pose'] += 1
        if before is not None:
            change = {
                'frames_apart': index - before[0],
                'moved_m': _moved_m(before[1], pose),
                'turned_deg': _turned_deg(before[1], pose),
                'true_moved_m': _moved_m(truth[before[0]], truth[index]),
                'true_turned_deg': _turned_deg(truth[before[0]], truth[index]),
            }
            largest = row['largest']
            if largest is None or change['moved_m'] > largest['moved_m']:
                row['largest'] = change
        before = index, pose
    share = driven.error_of_path('se3' if driven.estimates[-1].metric else 'sim3', range(0))
    return {
        'statuses': rows,
        'last_status': driven.estimates[-1].status.value,
        'metric': driven.estimates[-1].metric,
        'ate_percent_of_path': None if share is None else 100 * share,
    }


def _moved_m(a: Array, b: Array) -> float:
    return float(np.linalg.norm(b[:3, 3] - a[:3, 3]))


def _turned_deg(a: Array, b: Array) -> float:
    """Angle between two attitudes, by the chord: exact where the trace no longer tells."""
    chord = float(np.linalg.norm(b[:3, :3] - a[:3, :3])) / np.sqrt(8.0)
    return float(np.rad2deg(2.0 * np.arcsin(min(chord, 1.0))))


def _show(measured: Mapping[str, Any]) -> None:
    for gap in measured['gaps']:
        ate = gap['ate_percent_of_path']
        unit = 'm' if gap['metric'] else 'units (mono: no metric scale)'
        print_table(
            f'{measured["sensor"]}, covered for {gap["gap_s"]:g} s ({gap["covered"]} frames): '
            f'ends {gap["last_status"]}, ATE '
            f'{"unknown" if ate is None else f"{ate:.2f} % of the path"}; '
            f'largest change of odom from one published pose to the next, in {unit}',
            ('status', 'frames', 'with pose', 'moved', 'truly m', 'turned °', 'truly °',
             'frames apart'),
            _rows(gap['statuses']),
            right=range(1, 8),
        )  # fmt: skip


def _rows(statuses: Mapping[str, Mapping[str, Any]]) -> Sequence[tuple[Any, ...]]:
    rows = []
    for name, row in statuses.items():
        change = row['largest']
        cells: tuple[Any, ...] = (None,) * 5
        if change is not None:
            cells = (
                f'{change["moved_m"]:.4f}', f'{change["true_moved_m"]:.4f}',
                f'{change["turned_deg"]:.3f}', f'{change["true_turned_deg"]:.3f}',
                change['frames_apart'],
            )  # fmt: skip
        rows.append((name, row['frames'], row['with_pose'], *cells))
    return rows
