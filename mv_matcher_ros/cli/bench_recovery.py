# SPDX-License-Identifier: Apache-2.0
"""`bench recovery`: what does odom do while the lens is covered, and when it is free again?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mv_matcher_ros.config import Settings
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
    from mv_matcher_ros.cli.pose_changes import changes_of_odom

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
