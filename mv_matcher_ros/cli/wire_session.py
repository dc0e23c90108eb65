# SPDX-License-Identifier: Apache-2.0
"""One fault on the wire, for real: a node in its own process, a camera, an outside observer."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.live_processes import NodeProcesses
from mv_matcher_ros.cli.wire_faults import BEGIN_S, WARM_S, WireFault
from mv_matcher_ros.cli.wire_shots import Shot, shots_of
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.mapping.map_folder import INDEX

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.ros.wire import Pose, State, Wire

NODE, MAPPING = 'main', 'map_main'
_LAST_WORDS_S = 2.0  # for answers to the last frames
_MAP_SAVED_S = 1.0
# A process that is started anew has to load first, on a busy machine for long.
MOST_RESTART_S = 20.0


@dataclass
class Heard:
    """What was published, and what an outside observer heard of the node.

    Attributes:
        shots: as published, in their order.
        sent_s: time.monotonic() of each.
        poses, states: of the odometry node.
        map_keyframes: (time.monotonic(), keyframes of the map) as the mapping node says.
        memory_mb: of the node before the fault, and at the end.
        ended: what the node's process ended with; empty while it lives.
        restarted_s: time.monotonic() when it was started again; None if it was not.
    """

    shots: list[Shot] = field(default_factory=list)
    sent_s: list[float] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    map_keyframes: list[tuple[float, int]] = field(default_factory=list)
    memory_mb: tuple[float, float] = (0.0, 0.0)
    ended: str = ''
    restarted_s: float | None = None


def happen(fault: WireFault, clip: Clip, settings: Settings, out: Path) -> Heard:
    """Let a fault happen to a node that is started for it.

    Args:
        fault: which.
        clip: in which it happens.
        settings: of the node.
        out: empty folder for parameters, logs and a map.

    Raises:
        MvMatcherError: the node does not even start.
    """
    session = _Session(fault, clip, settings, out)
    with NodeProcesses(out) as session.processes:
        session.run()
    return session.heard


class _Session:
    def __init__(self, fault: WireFault, clip: Clip, settings: Settings, out: Path) -> None:
        self._fault, self._clip, self._out = fault, clip, out
        self._words = node_words(
            clip, settings, out, _MAP_SAVED_S if fault.event == 'kill mapping' else None
        )
        self.processes = NodeProcesses(out)
        self.heard = Heard()

    def run(self) -> None:
        from mv_matcher_ros.ros.wire import Wire

        self.processes.start(NODE, *self._words)
        mapping = self._fault.event == 'kill mapping'
        if mapping:
            self._start_mapping()
        wire = Wire(self._clip)
        try:
            wire.wait_for_node(lambda: self.processes.alive(NODE), mapping)
            with self._company(wire):
                self._play(wire)
            self._hear_out(wire)
            heard = self.heard
            heard.poses, heard.states = list(wire.poses), list(wire.states)
            heard.map_keyframes = list(wire.map_keyframes)
            self._end()
        finally:
            wire.close()

    def _company(self, wire: Wire) -> contextlib.AbstractContextManager[None]:
        reads = self._fault.event != 'nobody reads'
        return contextlib.nullcontext() if reads else wire.deaf_subscribers()

    def _play(self, wire: Wire) -> None:
        shots = self._fault.change(shots_of(self._clip, time.time_ns()))
        begin_s, happened = time.monotonic(), False
        for shot in sorted(shots, key=lambda s: s.at_s):
            begin_at_s = BEGIN_S if self._fault.begins else WARM_S
            if not happened and shot.at_s >= begin_at_s and self._may_happen(wire):
                happened = True
                self._note_memory(0)
                self._event(wire)
            messages = wire.messages(shot.frame, shot.stamp_ns)
            time.sleep(max(0.0, begin_s + shot.at_s - time.monotonic()))
            wire.publish(shot.stamp_ns, shot.spoil(messages) if shot.spoil else messages)
            self.heard.shots.append(shot)
            self.heard.sent_s.append(time.monotonic())

    def _may_happen(self, wire: Wire) -> bool:
        """A mapping node is killed when it has something to lose, and has saved some of it."""
        if self._fault.event != 'kill mapping':
            return True
        return (self._out / 'map' / INDEX).exists() and any(n for _, n in wire.map_keyframes[-1:])

    def _hear_out(self, wire: Wire) -> None:
        """Until the last frames are answered, and a mapping node that was killed is back."""
        restarted_s = self.heard.restarted_s
        if self._fault.event == 'kill mapping' and restarted_s is not None:
            deadline_s = time.monotonic() + MOST_RESTART_S
            while time.monotonic() < deadline_s and self.processes.alive(MAPPING):
                before = [n for at_s, n in list(wire.map_keyframes) if at_s < restarted_s]
                after = [n for at_s, n in list(wire.map_keyframes) if at_s > restarted_s]
                if before and after and after[-1] >= before[-1]:
                    break
                time.sleep(0.1)
        time.sleep(_LAST_WORDS_S)

    def _event(self, wire: Wire) -> None:
        """What happens beside the images."""
        if self._fault.event == 'kill node':
            self.processes.kill(NODE)
            self.processes.start(NODE, *self._words)
            self.heard.restarted_s = time.monotonic()
        elif self._fault.event == 'kill mapping':
            self.processes.kill(MAPPING)
            self._start_mapping()
            self.heard.restarted_s = time.monotonic()
        elif self._fault.event == 'camera restarts':
            wire.restart_camera()

    def _start_mapping(self) -> None:
        topic = 'keyframes:=/odometry/keyframes'
        self.processes.start(MAPPING, *self._words, '-r', topic)

    def _note_memory(self, place: int) -> None:
        if self.processes.alive(NODE):
            now_mb = self.processes.memory_mb(NODE)
            before_mb, _ = self.heard.memory_mb
            self.heard.memory_mb = (now_mb, now_mb) if place == 0 else (before_mb, now_mb)

    def _end(self) -> None:
        """Every process must still be there, and end as told to."""
        self._note_memory(1)
        names = [NODE] + ([MAPPING] if self._fault.event == 'kill mapping' else [])
        try:
            for name in names:
                self.processes.end(name)
        except MvMatcherError as error:
            self.heard.ended = str(error)


def node_words(
    clip: Clip,
    settings: Settings,
    out: Path,
    map_saved_s: float | None = None,
    lossless: bool = False,
) -> list[str]:
    """Arguments of a node: a file below `out` with all settings as ROS parameters.

    Args:
        clip: what its cameras will show.
        settings: of the node.
        out: folder; also of the map.
        map_saved_s: so often, and keyframes go to it early; None: there is no mapping node.
        lossless: every frame is answered.
    """
    tree: dict[str, Any] = settings.model_dump()
    tree['sensor'] = clip.sensor
    tree['ros'].update(
        extrinsics_from_tf=clip.rig.body_axes == 'rep103',
        lossless=lossless,
        publish_keyframes=map_saved_s is not None or settings.ros.publish_keyframes,
    )
    if map_saved_s is not None:
        tree['keyframes']['map_lag'] = 1  # a map before the fault
        tree['mapping'].update(folder=str(out / 'map'), save_every_s=map_saved_s)
    path = out / 'parameters.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': tree}}), encoding='utf-8')
    return ['--ros-args', '--params-file', str(path)]
