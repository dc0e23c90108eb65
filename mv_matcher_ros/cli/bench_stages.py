# SPDX-License-Identifier: Apache-2.0
"""`bench stages`: latency of each stage, on a recording or a synthetic flight."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import Advance, print_table, progress
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
    from mv_matcher_ros.datatypes import Frame
    from mv_matcher_ros.runner import Source

WARM_UP_FRAMES = 10  # not counted: the first calls of every library are slow
FRAMES = 120


def stages(
    source: Annotated[
        Path | None,
        typer.Argument(help='Recording; default: a synthetic flight.', metavar='[SOURCE]'),
    ] = None,
    sensor: Annotated[
        SensorChoice, typer.Option(help='Sensor of the flight.')
    ] = SensorChoice.mono,
    frames: Annotated[int, typer.Option(min=WARM_UP_FRAMES + 10, help='Frames to run.')] = FRAMES,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Latency and memory of each stage."""
    settings = settings_from(config, assignments, sensor.value)
    measured = measure_stages(_recording(source, settings, frames), settings)
    report({'stages': measured}, json, lambda: print_stages(measured))


def _recording(source: Path | None, settings: Settings, frames: int) -> Source:
    if source is None:
        from mv_matcher_ros.cli.demo import flight

        return flight(settings.sensor, frames)
    from mv_matcher_ros.cli.run import open_recording

    return open_recording(source, settings, end=frames)


def measure_stages(recording: Source, settings: Settings) -> dict[str, Any]:
    """Time of each stage a frame, and of all; reading or rendering the frames is not counted.

    `keyframe` runs beside the others: only `wait` is part of `all`.
    """
    import numpy as np

    from mv_matcher_ros.odometry.engine import OdometryEngine

    engine = OdometryEngine(
        settings.model_copy(update={'sensor': recording.sensor}), recording.rig
    )
    with progress('frames', len(recording)) as advance:
        images = _in_memory(recording, advance)
    stages: dict[str, list[float]] = {}
    totals, tracked, keyframes = [], 0, 0
    before_mb = _memory_mb()
    with progress('odometry', len(images)) as advance:
        for i, frame in enumerate(images):
            start = time.perf_counter()
            estimate = engine.process(frame)
            total = 1e3 * (time.perf_counter() - start)
            advance(estimate.status.value)
            tracked += estimate.odom_from_body is not None
            keyframes += estimate.is_keyframe
            if i >= WARM_UP_FRAMES:
                totals.append(total)
                for name, value in estimate.latency_ms.items():
                    if name != 'total':  # measured here as `all`
                        stages.setdefault(name, []).append(value)
    return {
        'sensor': recording.sensor,
        'image': f'{recording.rig.cameras[0].width}x{recording.rig.cameras[0].height}',
        'frames': len(images),
        'with_pose': tracked,
        'keyframes': keyframes,
        'fps': 1e3 / float(np.mean(totals)),
        'latency_ms': {
            name: _latency(values, len(totals))
            for name, values in (*stages.items(), ('all', totals))
        },
        'memory_grown_mb': _memory_mb() - before_mb,
        'memory_peak_mb': _memory_mb(),
    }


def _in_memory(recording: Source, advance: Advance) -> list[Frame]:
    frames = []
    for frame in recording:
        frames.append(frame)
        advance()
    return frames


def _latency(values: Sequence[float], frames: int) -> dict[str, float]:
    """p50 and p95 over the frames in which a stage ran, mean over all, and how often it ran."""
    import numpy as np

    p50, p95 = np.percentile(values, [50.0, 95.0])
    mean = float(np.sum(values)) / frames
    return {
        'p50': float(p50),
        'p95': float(p95),
        'mean_a_frame': mean,
        'share_of_frames': len(values) / frames,
    }


def _memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0**2 if sys.platform == 'darwin' else 1024.0)


def print_stages(stages: Mapping[str, Any]) -> None:
    """The table of `measure_stages`."""
    print_table(
        f'{stages["sensor"]} {stages["image"]}: {stages["fps"]:.1f} frames/s, '
        f'{stages["with_pose"]} of {stages["frames"]} frames with a pose, '
        f'{stages["keyframes"]} keyframes, '
        f'memory {stages["memory_peak_mb"]:.0f} MB',
        ('stage', 'p50 ms', 'p95 ms', 'mean a frame ms', 'in % of frames'),
        [
            (name, f'{v["p50"]:.1f}', f'{v["p95"]:.1f}', f'{v["mean_a_frame"]:.1f}',
             f'{100 * v["share_of_frames"]:.0f}')
            for name, v in stages['latency_ms'].items()
        ],
        right=range(1, 5),
    )  # fmt: skip
