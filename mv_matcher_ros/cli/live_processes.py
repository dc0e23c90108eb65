# SPDX-License-Identifier: Apache-2.0
"""The node, a recorder and a player as processes of their own, which talk over DDS."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings

_POLL_S = 0.05
_END_S = 20.0  # for a process to end after SIGINT; then it is killed


@dataclass(frozen=True)
class Usage:
    """What a process takes.

    Attributes:
        at_s: time.monotonic().
        cpu_s: so far, of all its threads, in user and system mode.
        memory_mb: resident.
        threads, files: how many it has open.
    """

    at_s: float
    cpu_s: float
    memory_mb: float
    threads: int
    files: int


@dataclass(frozen=True)
class Play:
    """What is played to the node, and how.

    Attributes:
        source: recording.
        sensor: mono, stereo or rgbd.
        lossless: wait for the answer to every frame; else real time and newest frame.
        rate: speed in real time.
        start, end, stride: which frames.
        mounts: the recording knows how the cameras sit on the body; the node takes that from TF.
        timeout_s: for the node to come up, and (lossless) to answer a frame.
    """

    source: Path
    sensor: str
    lossless: bool
    rate: float = 1.0
    start: int = 0
    end: int | None = None
    stride: int = 1
    mounts: bool = False
    timeout_s: float = 120.0


def play_to_node(play: Play, settings: Settings, out: Path) -> dict[str, Any]:
    """Start node and recorder, play everything, end them.

    Args:
        play: what.
        settings: of the node; sensor and lossless are those of `play`.
        out: folder for `odometry.tum`, `live.json` and the logs of the processes.

    Returns:
        What the recorder wrote into `live.json`; `player`: what the player says of itself; of the
        node while images came: `cpu_cores` (its share of one), `memory_mb` after a quarter and at
        the end.

    Raises:
        MissingDependencyError: no rclpy.
        MvMatcherError: a process failed; its log is named.
    """
    if importlib.util.find_spec('rclpy') is None:
        raise MissingDependencyError('rclpy', 'ros', 'bench node')
    out.mkdir(parents=True, exist_ok=True)
    parameters = out / 'parameters.yaml'
    parameters.write_text(
        yaml.safe_dump({'/**': {'ros__parameters': _parameters(play, settings)}})
    )
    with NodeProcesses(out) as processes:
        node = processes.start('main', '--ros-args', '--params-file', str(parameters))
        recorder = processes.start('trajectory_recorder', '--out', str(out), '--idle', '1e9')
        player = processes.start('bag_player', *_player_words(play))
        usage: list[Usage] = []
        processes.wait_for(player, lambda: usage.append(processes.usage(node)))
        # The recorder last: what the node says while it ends is heard too.
        processes.end(node)
        processes.end(recorder)
        played = json.loads((out / 'bag_player.out').read_text(encoding='utf-8'))
    live = json.loads((out / 'live.json').read_text(encoding='utf-8'))
    return {**live, 'player': played, **_taken(usage, played['played_s'])}


def _taken(usage: Sequence[Usage], played_s: float) -> dict[str, Any]:
    """What the node took in the last `played_s` of what was seen of it."""
    last = usage[-1]
    since = [u for u in usage if u.at_s >= last.at_s - played_s]
    first, quarter = since[0], since[len(since) // 4]
    return {
        'cpu_cores': (last.cpu_s - first.cpu_s) / max(last.at_s - first.at_s, 1e-3),
        'memory_mb': (quarter.memory_mb, last.memory_mb),
    }


def _parameters(play: Play, settings: Settings) -> dict[str, Any]:
    """All settings as a tree of ROS parameters."""
    tree = settings.model_dump()
    tree['sensor'] = play.sensor
    tree['ros'].update(lossless=play.lossless, extrinsics_from_tf=play.mounts)
    return tree


def _player_words(play: Play) -> list[str]:
    words = [str(play.source), '--sensor', play.sensor, '--wait-for', 'trajectory_recorder']
    words += ['--timeout', f'{play.timeout_s:g}', '--start', str(play.start)]
    words += ['--stride', str(play.stride)] + (
        [] if play.end is None else ['--end', str(play.end)]
    )
    return words + (['--lossless'] if play.lossless else ['--rate', f'{play.rate:g}'])


def environment_of_its_own(out: Path) -> dict[str, str]:
    """Variables for processes that hear each other and nobody else, and log below `out`.

    A domain of its own on loopback: a robot nearby must not get these images or this TF.
    """
    return {
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_DOMAIN_ID': str(1 + os.getpid() % 100),
        'ROS_LOG_DIR': str(out / 'ros_log'),
    }


class NodeProcesses:
    """Processes that hear each other and nobody else, and end with the `with` block."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, **environment_of_its_own(out)}

    def __enter__(self) -> NodeProcesses:
        return self

    def start(self, module: str, *words: str) -> str:
        """Start a module of `ros/`; returns the name that the other methods take."""
        with (
            (self._out / f'{module}.out').open('ab') as printed,
            (self._out / f'{module}.log').open('ab') as log,
        ):
            self._running[module] = subprocess.Popen(
                [sys.executable, '-m', f'mv_matcher_ros.ros.{module}', *words],
                env=self._environment,
                stdout=printed,
                stderr=log,
            )
        return module

    def alive(self, name: str) -> bool:
        """Whether a process runs."""
        return self._running[name].poll() is None

    def require(self, *names: str) -> None:
        """That processes run.

        Raises:
            MvMatcherError: one has ended; with its last words.
        """
        for name in names:
            if not self.alive(name):
                raise MvMatcherError(self._failure(name))

    def kill(self, name: str) -> None:
        """End a process as the kernel does when memory is short: SIGKILL."""
        self._running[name].kill()
        self._running[name].wait()

    def memory_mb(self, name: str) -> float:
        """Resident memory of a running process, MB."""
        return self.usage(name).memory_mb

    def usage(self, name: str) -> Usage:
        """What a running process takes; Linux only, as /proc is."""
        folder = Path(f'/proc/{self._running[name].pid}')
        status = (folder / 'status').read_text(encoding='ascii')
        of = dict(line.split(':', 1) for line in status.split('\n') if ':' in line)
        # After the name in brackets, which may hold anything: proc(5).
        times = (folder / 'stat').read_text(encoding='utf-8').rsplit(')', 1)[1].split()
        return Usage(
            time.monotonic(),
            sum(map(int, times[11:13])) / os.sysconf('SC_CLK_TCK'),
            int(of.get('VmRSS', '0').split()[0]) / 1024,
            int(of['Threads']),
            len(list((folder / 'fd').iterdir())),
        )

    def wait_for(self, name: str, watch: Callable[[], object] = lambda: None) -> None:
        """Wait until one process is done; all others have to run as long.

        `watch` is called meanwhile, twenty times a second.
        """
        while self._running[name].poll() is None:
            self.require(*(other for other in self._running if other != name))
            watch()
            time.sleep(_POLL_S)
        if self._running[name].returncode != 0:
            raise MvMatcherError(self._failure(name))

    def end(self, name: str) -> None:
        """End one process as Ctrl-C does, and wait for it."""
        process = self._running[name]
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            raise MvMatcherError(f'{name} did not end within {_END_S:g} s of SIGINT') from None
        if process.returncode != 0:
            raise MvMatcherError(self._failure(name))

    def _failure(self, name: str) -> str:
        log = self._out / f'{name}.log'
        lines = log.read_text(encoding='utf-8', errors='replace').split('\n')
        said = next((line for line in reversed(lines) if line.strip()), 'it said nothing')
        return (
            f'{name} ended with code {self._running[name].returncode}: {said} (all of it: {log})'
        )

    def __exit__(self, *error: object) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.kill()
            process.wait()
