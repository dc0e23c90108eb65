# SPDX-License-Identifier: Apache-2.0
"""`stress --soak`: hours of camera time to running nodes, as fast as they answer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mv_matcher_ros.cli.console import print_json, print_table, progress, say
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.live_processes import NodeProcesses, Usage, environment_of_its_own
from mv_matcher_ros.cli.wire_session import MAPPING, NODE, node_words
from mv_matcher_ros.datatypes import Array, Frame
from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.ros.wire import Pose, Wire

_PARTS = 6
_ANSWER_S = 30.0
_MAP_SAVED_S = 30.0
_CHECKED_S = 1.0  # motions over so long are compared with the truth
# Off by more than this, and by more sigmas than these of what the node itself says.
_FALSE_M, _FALSE_SHARE, _SIGMAS = 0.05, 0.02, 3.0
# Between the first and the last part of the time.
_MOST_GROWTH_MB, _MOST_SLOWER = 60.0, 1.5
_MEASURED = ('TRACKING', 'RELOCALISED')


@dataclass(frozen=True)
class Part:
    """A sixth of the time.

    Attributes:
        latency_ms: p50 and p95 from an image being sent to the answer.
        usage: of the odometry and of the mapping node at its end.
        keyframes: of the map.
    """

    latency_ms: tuple[float, float]
    usage: tuple[Usage, Usage]
    keyframes: int


@dataclass(frozen=True)
class Soaked:
    """What came of it.

    Attributes:
        frames, hours, took_s: shown, of camera time, in real time.
        statuses: how often each was said.
        parts: the time in six.
        false_poses: of motions over a second: called measured, wrong, and not admitted.
        worst_m: largest error of such a motion; None without metric scale.
        drift: error at the end as a share of the way; None without metric scale.
        complaints: what is not as it must be.
    """

    frames: int
    hours: float
    took_s: float
    statuses: dict[str, int]
    parts: tuple[Part, ...]
    false_poses: int
    worst_m: float | None
    drift: float | None
    complaints: tuple[str, ...]


def soak(clip: Clip, minutes: float, settings: Settings, json: bool) -> bool:
    """Run odometry and mapping nodes for so long, print what came of it; whether all is well.

    Args:
        clip: shown forth and back; the stamps go on.
        minutes: of camera time.
        settings: of the nodes.
        json: print JSON.

    Raises:
        MissingDependencyError: no rclpy.
        MvMatcherError: a node does not start, does not answer or dies.
    """
    if importlib.util.find_spec('rclpy') is None:
        raise MissingDependencyError('rclpy', 'ros', 'stress --soak')
    if clip.truth is None:
        raise MvMatcherError(f'{clip.name}: no truth, so no pose could be called false')
    place = Path(tempfile.mkdtemp(prefix='mv_matcher_'))
    os.environ.update(environment_of_its_own(place))
    session = _Soak(clip, minutes * 60.0, settings, place)
    try:
        soaked = session.run()
    except MvMatcherError:
        say(f'ended after {session.shown_s / 60:.1f} minutes; what the nodes said: {place}')
        raise
    shutil.rmtree(place, ignore_errors=True)
    _print(clip, soaked, json)
    return not soaked.complaints


def forth_and_back(clip: Clip, seconds: float) -> Iterator[tuple[int, Frame]]:
    """(stamp in ns, frame) of so many seconds: the clip, the way back, the clip and so on."""
    stamps = [frame.stamp_ns for frame in clip.frames]
    steps = np.diff(stamps).tolist()
    order, place, ahead, now_ns = len(stamps), 0, 1, stamps[0]
    while now_ns - stamps[0] < seconds * 1e9:
        yield now_ns, clip.frames[place]
        if not 0 <= place + ahead < order:
            ahead = -ahead
        now_ns += steps[min(place, place + ahead)]
        place += ahead


class _Soak:
    def __init__(self, clip: Clip, seconds: float, settings: Settings, out: Path) -> None:
        self._clip, self._seconds, self._out = clip, seconds, out
        self._words = node_words(clip, settings, out, _MAP_SAVED_S, lossless=True)
        assert clip.truth is not None
        truth = clip.truth
        self._truth = dict(zip(truth.stamps_ns.tolist(), truth.world_from_body, strict=True))
        self._shown: dict[int, Array] = {}  # what each stamp showed
        self.shown_s = 0.0  # of camera time
        self._latency_ms: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._parts: list[Part] = []

    def run(self) -> Soaked:
        from mv_matcher_ros.ros.wire import Wire

        with NodeProcesses(self._out) as processes:
            processes.start(NODE, *self._words)
            processes.start(MAPPING, *self._words, '-r', 'keyframes:=/odometry/keyframes')
            wire = Wire(self._clip)
            try:
                wire.wait_for_node(lambda: processes.alive(NODE), mapping=True)
                begin_s = time.monotonic()
                self._show(wire, processes)
                took_s = time.monotonic() - begin_s
                poses = list(wire.poses)
                complaints = []
                for name in (NODE, MAPPING):
                    try:
                        processes.end(name)
                    except MvMatcherError as error:
                        complaints.append(str(error))
            finally:
                wire.close()
        return self._judged(poses, took_s, complaints)

    def _show(self, wire: Wire, processes: NodeProcesses) -> None:
        """Every frame, the next one when it is answered."""
        start_ns = time.time_ns() - self._clip.frames[0].stamp_ns
        since, part_s = 0, self._seconds / _PARTS
        answered = 0
        with progress('minutes', max(1, round(self._seconds / 60.0))) as advance:
            for stamp, frame in forth_and_back(self._clip, self._seconds):
                self.shown_s = (stamp - self._clip.frames[0].stamp_ns) * 1e-9
                if self.shown_s >= part_s * (len(self._parts) + 1):
                    self._end_part(wire, processes, since)
                    since = len(self._latency_ms)
                sent_s = time.monotonic()
                wire.publish(start_ns + stamp, wire.messages(frame, start_ns + stamp))
                self._shown[start_ns + stamp] = self._truth[frame.stamp_ns]
                while len(wire.states) == answered:
                    processes.require(NODE, MAPPING)
                    if time.monotonic() - sent_s > _ANSWER_S:
                        raise MvMatcherError(f'no answer for {_ANSWER_S:g} s')
                    time.sleep(1e-3)
                state = wire.states[answered]
                answered += 1
                self._latency_ms.append((state.arrived_s - sent_s) * 1e3)
                self._statuses[state.status] += 1
                if answered % max(1, round(60.0 / self._period_s)) == 0:
                    advance(f'{state.status}, {processes.memory_mb(NODE):.0f} MB')
        self._end_part(wire, processes, since)

    @property
    def _period_s(self) -> float:
        first, last = self._clip.frames[0].stamp_ns, self._clip.frames[-1].stamp_ns
        return (last - first) * 1e-9 / (len(self._clip) - 1)

    def _end_part(self, wire: Wire, processes: NodeProcesses, since: int) -> None:
        p50, p95 = np.percentile(self._latency_ms[since:], [50, 95])
        keyframes = wire.map_keyframes[-1][1] if wire.map_keyframes else 0
        usage = processes.usage(NODE), processes.usage(MAPPING)
        self._parts.append(Part((float(p50), float(p95)), usage, keyframes))

    def _judged(self, poses: list[Pose], took_s: float, complaints: list[str]) -> Soaked:
        first, last = self._parts[0], self._parts[-1]
        false, worst_m, drift = 0, None, None
        if self._clip.sensor != 'mono':
            false, worst_m, drift = motion_errors(poses, self._shown, self._period_s)
        for name, before, after in zip((NODE, MAPPING), first.usage, last.usage, strict=True):
            grown_mb = after.memory_mb - before.memory_mb
            if grown_mb > _MOST_GROWTH_MB:
                complaints.append(f'{name}: memory grew by {grown_mb:.0f} MB')
            if after.threads > before.threads or after.files > before.files:
                complaints.append(
                    f'{name}: threads {before.threads} -> {after.threads}, '
                    f'open files {before.files} -> {after.files}'
                )
        if last.latency_ms[1] > _MOST_SLOWER * first.latency_ms[1]:
            complaints.append('slower than at the beginning')
        if false:
            complaints.append(f'{false} false poses')
        return Soaked(
            len(self._latency_ms), self._seconds / 3600.0, took_s, dict(self._statuses),
            tuple(self._parts), false, worst_m, drift, tuple(complaints),
        )  # fmt: skip


def motion_errors(
    poses: Sequence[Pose], shown: Mapping[int, Array], period_s: float
) -> tuple[int, float, float | None]:
    """Judge all motions over a second.

    Args:
        poses: metric, as published.
        shown: (4, 4) true pose of the body by stamp.
        period_s: between two frames.

    Returns:
        How many are false (see `Soaked`), the largest error in metres, and the error of the motion
        from the first to the last pose as a share of the way; None if nothing moved.
    """
    known = [pose for pose in poses if pose.stamp_ns in shown]
    steps = max(1, round(_CHECKED_S / period_s))
    false, worst_m = 0, 0.0
    for a, b in zip(known, known[steps:], strict=False):
        error_m, way_m = _motion_error(a, b, shown)
        worst_m = max(worst_m, error_m)
        grown = b.covariance[:3, :3] - a.covariance[:3, :3]
        sigma_m = float(np.sqrt(max(np.linalg.eigvalsh(0.5 * (grown + grown.T))[-1], 0.0)))
        false += error_m > max(_FALSE_M + _FALSE_SHARE * way_m, _SIGMAS * sigma_m)
    positions = np.array([shown[pose.stamp_ns][:3, 3] for pose in known]).reshape(-1, 3)
    way_m = float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())
    drift = _motion_error(known[0], known[-1], shown)[0] / way_m if way_m > 0.0 else None
    return false, worst_m, drift


def _motion_error(a: Pose, b: Pose, shown: Mapping[int, Array]) -> tuple[float, float]:
    """Of the motion between two poses, and how far it was, metres."""
    truth = np.linalg.inv(shown[a.stamp_ns]) @ shown[b.stamp_ns]
    off = np.linalg.inv(truth) @ np.linalg.inv(a.odom_from_body) @ b.odom_from_body
    return float(np.linalg.norm(off[:3, 3])), float(np.linalg.norm(truth[:3, 3]))


def _print(clip: Clip, soaked: Soaked, json: bool) -> None:
    if json:
        print_json({'source': clip.name, 'sensor': clip.sensor, **asdict(soaked)})
        return
    rows: list[tuple[Any, ...]] = []
    for number, part in enumerate(soaked.parts, 1):
        rows.append((
            f'{60.0 * soaked.hours * number / _PARTS:.1f}',
            '{:.0f} / {:.0f} ms'.format(*part.latency_ms),
            *(f'{u.memory_mb:.0f} MB, {u.threads} threads, {u.files} files' for u in part.usage),
            part.keyframes,
        ))  # fmt: skip
    said = [
        ', '.join(f'{count} {status}' for status, count in soaked.statuses.items()),
        *(
            []
            if soaked.worst_m is None
            else [f'a second errs by at most {100 * soaked.worst_m:.1f} cm']
        ),
        *([] if soaked.drift is None else [f'drift {100 * soaked.drift:.2f} % of the way']),
        *(soaked.complaints or ['ok']),
    ]
    print_table(
        f'{soaked.hours:.2f} h of {clip.sensor} in {soaked.took_s / 60:.1f} min: '
        + '; '.join(said),
        ('minute', 'p50 / p95', 'odometry', 'mapping', 'keyframes of the map'),
        rows,
    )
