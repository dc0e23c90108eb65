# SPDX-License-Identifier: Apache-2.0
"""`stress --live`: faults on the wire, each to a node in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mv_matcher_ros.cli.console import print_json, print_table, progress, say
from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError, SettingsError

if TYPE_CHECKING:
    from mv_matcher_ros.cli.faults import Clip
    from mv_matcher_ros.cli.wire_faults import WireFault
    from mv_matcher_ros.cli.wire_verdict import Verdict
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Sensor

_SIZE = (640, 480)
_ROOM_FRAMES, _TURN_FRAMES, _STILL_FRAMES = 400, 200, 1300
_LEAST_S = 10.0  # the longest fault ends after 8 s; then there have to be good images
_SLOW_M_S = 0.3
_STILL_IMAGES = 40  # different ones; they differ by noise and brightness
_NAMES = ('survived', 'recovered', 'error', 'largest step', 'false', 'memory')


def stress_live(
    clip: Clip | None, only: str, settings: Settings, sensor: Sensor, json: bool
) -> bool:
    """Run the suite and print what came of it; returns whether all was as it must be.

    Args:
        clip: recording of the user; None for rendered ones.
        only: faults with this in their name.
        settings: of the node.
        sensor: of the clips.
        json: print JSON.

    Raises:
        SettingsError: no such fault.
        MissingDependencyError: no rclpy.
        MvMatcherError: a node does not even start.
    """
    from mv_matcher_ros.cli.wire_faults import WIRE_FAULTS

    if importlib.util.find_spec('rclpy') is None:
        raise MissingDependencyError('rclpy', 'ros', 'stress --live')
    chosen = [
        fault
        for fault in WIRE_FAULTS
        if only.lower() in fault.name.lower()
        and sensor in fault.sensors
        and (clip is None or fault.scene == 'room')
    ]
    if not chosen:
        raise SettingsError(
            f'--only {only}: no fault of a live {sensor} node has that in its name'
        )
    if clip is not None:
        _check(clip)
    rows = []
    with progress('faults', len(chosen)) as advance:
        for fault in chosen:
            rows.append((fault, _try(fault, clip or _scene(fault.scene, sensor), settings)))
            advance(fault.name)
    _print(rows, sensor, json)
    return not any(verdict.complaints for _, verdict in rows)


def stress_soak(
    clip: Clip | None, minutes: float, settings: Settings, sensor: Sensor, json: bool
) -> bool:
    """As `soak.soak`, in the rendered room at 10 Hz and 0.3 m/s where none is given."""
    from mv_matcher_ros.cli.faults import Clip
    from mv_matcher_ros.cli.soak import soak
    from mv_matcher_ros.worlds import presets

    if clip is None:
        source = presets.room_loop(sensor, _ROOM_FRAMES, _SIZE, rate_hz=10.0, speed_m_s=_SLOW_M_S)
        clip = Clip.of(source)
    return soak(clip, minutes, settings, json)


def _check(clip: Clip) -> None:
    """A recording that a fault can happen in."""
    if clip.truth is None:
        raise MvMatcherError(f'{clip.name}: no truth, so no pose could be called false')
    lasts_s = (clip.frames[-1].stamp_ns - clip.frames[0].stamp_ns) * 1e-9
    if lasts_s < _LEAST_S:
        raise MvMatcherError(
            f'{clip.name}: {len(clip)} frames last {lasts_s:.1f} s; faults begin after 5 s and '
            f'need {_LEAST_S:g} s in all (--frames)'
        )


def _try(fault: WireFault, clip: Clip, settings: Settings) -> Verdict:
    from mv_matcher_ros.cli.live_processes import environment_of_its_own
    from mv_matcher_ros.cli.wire_session import happen
    from mv_matcher_ros.cli.wire_verdict import judge

    with tempfile.TemporaryDirectory(prefix='mv_matcher_') as place:
        os.environ.update(environment_of_its_own(Path(place)))
        verdict = judge(fault, clip, happen(fault, clip, settings, Path(place)))
    if verdict.complaints:
        say(f'{fault.name}: {"; ".join(verdict.complaints)}')
    return verdict


@lru_cache(maxsize=3)  # half a gigabyte; rendering takes longer than a fault
def _scene(scene: str, sensor: Sensor) -> Clip:
    from mv_matcher_ros.cli.faults import Clip
    from mv_matcher_ros.worlds import presets

    if scene == 'turn':
        return Clip.of(presets.pure_rotation(sensor, _TURN_FRAMES, _SIZE))
    if scene == 'room':
        return Clip.of(presets.room_loop(sensor, _ROOM_FRAMES, _SIZE))
    few = Clip.of(presets.standing_still(sensor, _STILL_IMAGES, _SIZE))
    assert few.truth is not None
    step_ns = int(few.truth.stamps_ns[1] - few.truth.stamps_ns[0])
    stamps = few.truth.stamps_ns[0] + step_ns * np.arange(_STILL_FRAMES)
    frames = tuple(
        replace(frame, stamp_ns=int(stamp), index=number)
        for number, (frame, stamp) in enumerate(
            zip(islice(cycle(few.frames), _STILL_FRAMES), stamps, strict=True)
        )
    )
    poses = np.tile(few.truth.world_from_body[:1], (_STILL_FRAMES, 1, 1))
    return replace(few, frames=frames, truth=type(few.truth)(stamps, poses))


def _print(rows: Sequence[tuple[WireFault, Verdict]], sensor: str, json: bool) -> None:
    failed = sum(bool(verdict.complaints) for _, verdict in rows)
    if json:
        print_json({
            'sensor': sensor, 'failed': failed,
            'faults': [{'name': fault.name, **asdict(verdict)} for fault, verdict in rows],
        })  # fmt: skip
        return
    print_table(
        f'{len(rows)} faults on the wire, {sensor}, {failed} not met',
        ('fault', *_NAMES, 'frames of the fault', 'said', ''),
        [_row(fault, verdict) for fault, verdict in rows],
    )


def _row(fault: WireFault, verdict: Verdict) -> tuple[Any, ...]:
    return (
        fault.name,
        'yes' if verdict.survived else 'NO',
        'never' if verdict.recovery_s is None else f'{verdict.recovery_s:.2f} s',
        '–' if verdict.error_m is None else f'{100 * verdict.error_m:.1f} cm',
        f'{100 * verdict.largest_step_m:.1f} cm',
        verdict.false_poses,
        f'{verdict.growth_mb:+.0f} MB',
        ', '.join(f'{count} {status}' for status, count in verdict.statuses.items()),
        verdict.said,
        'ok' if not verdict.complaints else '; '.join(verdict.complaints),
    )
