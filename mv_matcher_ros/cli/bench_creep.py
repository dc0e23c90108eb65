# SPDX-License-Identifier: Apache-2.0
"""`bench creep`: are a few millimetres a frame followed, or taken for standing still?"""

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
from mv_matcher_ros.errors import MvMatcherError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mv_matcher_ros.cli.faults import Drive

_HELD_M = 1e-9  # a pose that is held does not change at all but for rounding


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
    from mv_matcher_ros.worlds import presets

    if sensor is SensorChoice.mono:
        raise SettingsError('bench creep compares metres: --sensor stereo or rgbd')
    settings = settings_from(config, assignments, sensor.value)
    source = presets.creep(settings.sensor, frames, image_size(width), step_m=1e-3 * step_mm)
    with progress('creep', len(source)) as advance:
        driven = drive(Counted(source, advance), settings)
    measured = {'sensor': sensor.value, 'step_mm': step_mm, **distances(driven)}
    report({'creep': measured}, json, lambda: _show(measured))


def distances(driven: Drive) -> dict[str, Any]:
    """Distance from the first to the last frame with a pose, as it was and as it was estimated.

    Raises:
        MvMatcherError: the engine refused the recording, or there are not two poses.
    """
    if driven.error:
        raise MvMatcherError(driven.error)
    known = [i for i, e in enumerate(driven.estimates) if e.odom_from_body is not None]
    if len(known) < 2:
        raise MvMatcherError(f'{len(known)} frame(s) with a pose of {len(driven.estimates)}')
    assert driven.truth is not None
    truth = driven.truth.world_from_body[known, :3, 3]
    poses = [driven.estimates[i].odom_from_body for i in known]
    estimate = np.stack([pose[:3, 3] for pose in poses if pose is not None])
    true_m = float(np.linalg.norm(truth[-1] - truth[0]))
    estimated_m = float(np.linalg.norm(estimate[-1] - estimate[0]))
    steps_m = np.linalg.norm(np.diff(estimate, axis=0), axis=1)
    return {
        'frames': len(driven.estimates),
        'with_pose': len(known),
        'held': int((steps_m < _HELD_M).sum()),
        'status': {status.value: count for status, count in driven.statuses.items()},
        'true_m': true_m,
        'estimated_m': estimated_m,
        'followed': estimated_m / true_m if true_m > 0 else None,
        'path_estimated_m': float(steps_m.sum()),
    }


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
