# SPDX-License-Identifier: Apache-2.0
"""`bench memory`: does the engine's memory grow over a long run?"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from statistics import linear_regression
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

    from mv_matcher_ros.cli.faults import Clip
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Frame


def memory(
    frames: Annotated[int, typer.Option(min=4, help='Frames to run.')] = 10_000,
    every: Annotated[int, typer.Option(min=1, help='Frames between two samples.')] = 500,
    clip: Annotated[
        int, typer.Option(min=2, help='Frames rendered; they are run to and fro.')
    ] = 200,
    sensor: Annotated[
        SensorChoice, typer.Option(help='Sensor of the flight.')
    ] = SensorChoice.stereo,
    width: WidthOption = 640,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Memory over a long run: a short rendered flight is run to and fro."""
    from mv_matcher_ros.cli.demo import Counted
    from mv_matcher_ros.cli.faults import Clip
    from mv_matcher_ros.worlds.presets import room_loop

    settings = settings_from(config, assignments, sensor.value)
    source = room_loop(settings.sensor, clip, image_size(width))
    with progress('rendering', len(source)) as advance:
        rendered = Clip.of(Counted(source, advance))
    measured = measure_memory(rendered, settings, frames, every)
    report({'memory': measured}, json, lambda: _show(measured))


def to_and_fro(clip: Clip, count: int) -> Iterator[Frame]:
    """`count` frames of a clip run forwards, backwards, forwards, …, with stamps that go on.

    No frame comes twice in a row, so the motion is that of the clip and its reverse.
    """
    first, last = clip.frames[0].stamp_ns, clip.frames[-1].stamp_ns
    period_ns = (last - first) // (len(clip) - 1)
    turn = 2 * (len(clip) - 1)
    for index in range(count):
        place = index % turn
        frame = clip.frames[min(place, turn - place)]
        yield replace(frame, stamp_ns=first + index * period_ns, index=index)


def measure_memory(clip: Clip, settings: Settings, frames: int, every: int) -> dict[str, Any]:
    """Resident memory of this process, sampled while the engine runs over `frames` frames.

    The clip is in memory before the first sample, and nothing of the results is kept.
    """
    from mv_matcher_ros.odometry.engine import OdometryEngine

    engine = OdometryEngine(settings.model_copy(update={'sensor': clip.sensor}), clip.rig)
    samples = []
    tracked = keyframes = 0
    with progress('odometry', frames) as advance:
        for done, frame in enumerate(to_and_fro(clip, frames), start=1):
            estimate = engine.process(frame)
            tracked += estimate.odom_from_body is not None
            keyframes += estimate.is_keyframe
            if done % every == 0 or done == frames:
                samples.append({'frame': done, 'resident_mb': resident_mb()})
            advance(f'{samples[-1]["resident_mb"]:.0f} MB' if samples else '')
    at, values = [s['frame'] for s in samples], [s['resident_mb'] for s in samples]
    return {
        'sensor': clip.sensor,
        'frames': frames,
        'with_pose': tracked,
        'keyframes': keyframes,
        'samples': samples,
        'first_mb': values[0],
        'last_mb': values[-1],
        'largest_mb': max(values),
        'grown_mb': values[-1] - values[0],
        'slope_mb_per_1000_frames': 1e3 * _slope(at, values),
        'slope_of_second_half_mb_per_1000_frames': 1e3
        * _slope(at[len(at) // 2 :], values[len(at) // 2 :]),
    }


def resident_mb() -> float:
    """Memory of this process now, MB; where the system does not tell, the largest so far."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1024.0**2
    except OSError:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / (1024.0**2 if sys.platform == 'darwin' else 1024.0)


def _slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope; NaN for a single sample."""
    return linear_regression(at, values).slope if len(at) > 1 else float('nan')


def _show(measured: Mapping[str, Any]) -> None:
    slope = measured['slope_mb_per_1000_frames']
    late = measured['slope_of_second_half_mb_per_1000_frames']
    print_table(
        f'{measured["sensor"]}, {measured["frames"]} frames ({measured["with_pose"]} with a pose, '
        f'{measured["keyframes"]} keyframes)',
        ('figure', 'MB'),
        [
            ('resident at the first sample', f'{measured["first_mb"]:.1f}'),
            ('resident at the last sample', f'{measured["last_mb"]:.1f}'),
            ('largest', f'{measured["largest_mb"]:.1f}'),
            ('growth per 1000 frames, all samples', f'{slope:+.3f}'),
            ('growth per 1000 frames, second half', f'{late:+.3f}'),
        ],
        right=(1,),
    )
    print_table(
        '',
        ('frame', 'resident MB'),
        [(s['frame'], f'{s["resident_mb"]:.1f}') for s in measured['samples']],
        right=(0, 1),
    )
