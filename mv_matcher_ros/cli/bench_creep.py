# SPDX-License-Identifier: Apache-2.0
"""`bench creep`: are a few millimetres a frame followed, or taken for standing still?"""

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
from mv_matcher_ros.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping


def creep(
    frames: Annotated[int, typer.Option(min=3, help='Frames to run.')] = 100,
    step_mm: Annotated[float, typer.Option(min=0.0, help='Motion from frame to frame.')] = 2.0,
    sensor: Annotated[
        SensorChoice, typer.Option(help='stereo or rgbd: mono has no metres.')
    ] = SensorChoice.stereo,
    width: WidthOption = 640,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Creeping through a room: distance moved against distance estimated."""
    from mv_matcher_ros.cli.demo import Counted
    from mv_matcher_ros.cli.faults import drive
    from mv_matcher_ros.cli.pose_changes import distances
    from mv_matcher_ros.worlds import presets

    if sensor is SensorChoice.mono:
        raise SettingsError('bench creep compares metres: --sensor stereo or rgbd')
    settings = settings_from(config, assignments, sensor.value)
    source = presets.creep(settings.sensor, frames, image_size(width), step_m=1e-3 * step_mm)
    with progress('creep', len(source)) as advance:
        driven = drive(Counted(source, advance), settings)
    measured = {'sensor': sensor.value, 'step_mm': step_mm, **distances(driven)}
    report({'creep': measured}, json, lambda: _show(measured))


def _show(measured: Mapping[str, Any]) -> None:
    followed = measured['followed']
    statuses = ', '.join(f'{count} {status}' for status, count in measured['status'].items())
    print_table(
        f'creep of {measured["step_mm"]:g} mm a frame, {measured["sensor"]}, '
        f'{measured["frames"]} frames ({statuses})',
        ('figure', 'value'),
        [
            ('distance moved', f'{measured["true_m"]:.4f} m'),
            ('distance estimated', f'{measured["estimated_m"]:.4f} m'),
            ('followed', None if followed is None else f'{100 * followed:.1f} %'),
            ('length of the estimated path', f'{measured["path_estimated_m"]:.4f} m'),
            ('frames on which the pose was held', measured['held']),
        ],
        right=(1,),
    )
