# SPDX-License-Identifier: Apache-2.0
"""`bench`: latency of each stage on a synthetic flight, and bundle adjustment against gtsam."""

from __future__ import annotations

import resource
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import Advance, print_json, print_table, progress, say
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


class Part(str, Enum):
    """What to measure."""

    stages = 'stages'
    ba = 'ba'


def bench(
    source: Annotated[
        Path | None,
        typer.Argument(help='Recording; default: a synthetic flight.', metavar='[SOURCE]'),
    ] = None,
    only: Annotated[Part | None, typer.Option(help='Only one part.', show_default=False)] = None,
    sensor: Annotated[
        SensorChoice, typer.Option(help='Sensor of the flight.')
    ] = SensorChoice.mono,
    frames: Annotated[int, typer.Option(min=WARM_UP_FRAMES + 10, help='Frames to run.')] = 120,
    repeats: Annotated[
        int, typer.Option(min=1, help='Runs of each solver; the median counts.')
    ] = 5,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Latency and memory of each stage; bundle adjustment against gtsam."""
    from mv_matcher_ros.files.results import machine, versions

    content: dict[str, Any] = {'machine': machine(), 'versions': versions()}
    if only is not Part.ba:
        settings = settings_from(config, assignments, sensor.value)
        content['stages'] = measure_stages(_recording(source, settings, frames), settings, frames)
    if only is not Part.stages:
        content['bundle_adjustment'] = measure_bundle_adjustment(repeats)
    if json:
        print_json(content)
        return
    for part in ('machine', 'versions'):
        say(f'{part}: {", ".join(f"{k} {v}" for k, v in content[part].items())}')
    if 'stages' in content:
        _print_stages(content['stages'])
    if 'bundle_adjustment' in content:
        _print_bundle_adjustment(content['bundle_adjustment'])


def _recording(source: Path | None, settings: Settings, frames: int) -> Source:
    if source is None:
        from mv_matcher_ros.cli.demo import flight

        return flight(settings.sensor, frames)
    from mv_matcher_ros.cli.run import open_recording

    return open_recording(source, settings, end=frames)


def measure_stages(recording: Source, settings: Settings, frames: int) -> dict[str, Any]:
    """Time of each stage a frame, and of all; reading or rendering the frames is not counted."""
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


def _print_stages(stages: Mapping[str, Any]) -> None:
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


def _print_bundle_adjustment(rows: Sequence[Mapping[str, Any]]) -> None:
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
