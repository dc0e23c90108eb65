# SPDX-License-Identifier: Apache-2.0
"""`bench node`: the live node against the same recording without ROS."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, say, warn
from mv_matcher_ros.cli.options import (
    ConfigOption,
    EndOption,
    JsonOption,
    SensorOption,
    SetOption,
    SourceArgument,
    StartOption,
    StrideOption,
    locate,
    settings_from,
)
from mv_matcher_ros.errors import EvaluationError, MvMatcherError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mv_matcher_ros.cli.live_processes import Play
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Trajectory
    from mv_matcher_ros.evaluation.evaluation_result import FittedAlignment


def node(
    source: SourceArgument,
    lossless: Annotated[
        bool, typer.Option('--lossless', help='Wait for the answer to every frame.')
    ] = False,
    rate: Annotated[float, typer.Option(min=0.01, help='Speed; 1 is real time.')] = 1.0,
    offline: Annotated[bool, typer.Option(help='Compare with a run without ROS.')] = True,
    out: Annotated[
        Path | None,
        typer.Option(help='Folder for trajectories and logs; default: a temporary one.'),
    ] = None,
    sensor: SensorOption = None,
    start: StartOption = 0,
    end: EndOption = None,
    stride: StrideOption = 1,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Node, player and recorder as processes over DDS: rate, drops, latency, errors."""
    from mv_matcher_ros.cli.live_processes import Play
    from mv_matcher_ros.cli.run import open_recording

    settings = settings_from(config, assignments, sensor.value if sensor else None)
    recording = open_recording(source, settings, start=start, end=end, stride=stride)
    settings = settings.model_copy(update={'sensor': recording.sensor})
    mounts = recording.rig.body_axes == 'rep103'
    play = Play(
        locate(source), recording.sensor, lossless, rate, start, end, stride, mounts=mounts
    )
    with ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mv_matcher_')))
        measured = _measure(play, settings, out, recording.truth)
        if offline:
            measured['offline'] = _offline(recording, settings, out, measured['sensor'])
    report({'node': measured}, json, lambda: _show(measured))


def _measure(
    play: Play, settings: Settings, out: Path, truth: Trajectory | None
) -> dict[str, Any]:
    """What the recorder saw of the node, and the error of the poses that it got."""
    from mv_matcher_ros.cli.live_processes import play_to_node

    how = 'as fast as it answers' if play.lossless else f'at {play.rate:g} x real time'
    say(f'node: {play.sensor}, {play.source} played {how}')
    live = play_to_node(play, settings, out / 'live')
    player = live.pop('player')
    return {
        'source': play.source.name,
        'sensor': play.sensor,
        'lossless': play.lossless,
        'rate': None if play.lossless else play.rate,
        'played': player['published'],
        'played_late': player['late'],
        'answered': live['answers'],
        'unanswered': player['published'] - live['answers'],
        'with_pose': live['odometry_messages'],
        'first_pose_s': live['first_pose_s'],
        'processed_hz': live['rate_hz'],
        'status': live['statuses'],
        'latency_ms': live['latency_ms'],
        'latency_in_node_ms': live['latency_in_node_ms'],
        'counters': live['counters'],
        'cpu_cores': live['cpu_cores'],
        'memory_mb': live['memory_mb'],
        'ate_rmse_m': _ate_m(out / 'live' / 'odometry.tum', truth, play.sensor),
    }


def _offline(recording: Any, settings: Settings, out: Path, sensor: str) -> dict[str, Any]:
    """The same recording by `run`, and how far its poses are from those of the node."""
    from mv_matcher_ros.cli.pose_changes import largest_difference
    from mv_matcher_ros.cli.run import run_recording
    from mv_matcher_ros.files.trajectory import read_tum

    say(f'offline: {sensor}, {recording.name}')
    # The node keeps the calibration that it is given.
    kept = settings.distortion_check.model_copy(update={'enabled': False})
    settings = settings.model_copy(update={'distortion_check': kept})
    info = run_recording(recording, settings, out / 'offline')
    live = read_tum(out / 'live' / 'odometry.tum')
    alone = read_tum(out / 'offline' / 'odometry.tum')
    return {
        'frames': info['frames'],
        'with_pose': len(alone),
        'ate_rmse_m': _ate_m(out / 'offline' / 'odometry.tum', recording.truth, sensor),
        **largest_difference(live, alone),
    }


def _ate_m(trajectory: Path, truth: Trajectory | None, sensor: str) -> float | None:
    """ATE after SE(3), for mono Sim(3), alignment; None, and a line why, without comparison."""
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_trajectory
    from mv_matcher_ros.files.trajectory import read_tum

    if truth is None:
        return None
    align: FittedAlignment = 'sim3' if sensor == 'mono' else 'se3'
    try:
        return evaluate_trajectory(read_tum(trajectory), truth, align).ate.translation_m.rmse
    except (EvaluationError, MvMatcherError) as error:
        warn(f'{trajectory.parent.name}: no comparison with the truth: {error}')
        return None


def _show(measured: Mapping[str, Any]) -> None:
    latency, inside = measured['latency_ms'], measured['latency_in_node_ms']
    statuses = ', '.join(f'{count} {status}' for status, count in measured['status'].items())
    rate = measured['processed_hz']
    rows = [
        ('frames played', f'{measured["played"]} ({measured["played_late"]} late)'),
        ('frames answered', f'{measured["answered"]} ({statuses})'),
        ('frames dropped', measured['unanswered']),
        ('poses', measured['with_pose']),
        ('first image sent to first odometry received', _seconds(measured['first_pose_s'])),
        ('processed rate', None if rate is None else f'{rate:.2f} Hz'),
        ('latency p50 / p95, image sent to odometry received', _pair(latency)),
        ('the same frames, inside the node alone', _pair(inside)),
        ('CPU of the node', f'{measured["cpu_cores"]:.2f} cores'),
        (
            'memory of the node, after a quarter and at the end',
            '{:.0f} / {:.0f} MB'.format(*measured['memory_mb']),
        ),
        (f'ATE after {_fitted(measured)}', _metres(measured['ate_rmse_m'])),
    ]
    offline = measured.get('offline')
    if offline is not None:
        rows += [
            ('offline: poses', f'{offline["with_pose"]} of {offline["frames"]} frames'),
            (f'offline: ATE after {_fitted(measured)}', _metres(offline['ate_rmse_m'])),
            ('largest difference to offline',
             f'{_metres(offline["largest_difference_m"]) or "–"}, '
             f'{_degrees(offline["largest_difference_deg"]) or "–"} '
             f'over {offline["compared"]} poses'),
        ]  # fmt: skip
    how = 'lossless' if measured['lossless'] else f'{measured["rate"]:g} x real time'
    title = f'{measured["source"]}, {measured["sensor"]}, {how}, three processes over DDS'
    print_table(title, ('figure', 'value'), rows)


def _fitted(measured: Mapping[str, Any]) -> str:
    return 'Sim(3)' if measured['sensor'] == 'mono' else 'SE(3)'


def _pair(values: Mapping[str, Any]) -> str | None:
    return None if values['p50'] is None else f'{values["p50"]:.1f} / {values["p95"]:.1f} ms'


def _seconds(value: float | None) -> str | None:
    return None if value is None else f'{value:.2f} s'


def _metres(value: float | None) -> str | None:
    return None if value is None else f'{value:.4g} m'


def _degrees(value: float | None) -> str | None:
    return None if value is None else f'{value:.3g}°'
