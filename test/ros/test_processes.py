# SPDX-License-Identifier: Apache-2.0
"""Node, player and recorder as processes of their own, with the real engine, over DDS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String

from mv_matcher_ros.config import Settings, read_settings
from mv_matcher_ros.datatypes import Frame, Rig, Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.trajectory import read_tum
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.ros import trajectory_recorder
from mv_matcher_ros.ros.messages import matrix_from_pose, stamp_ns
from mv_matcher_ros.ros.playback import BagPlayer, Playback
from mv_matcher_ros.ros.stopping import spin_until
from mv_matcher_ros.ros.trajectory_recorder import Times, TrajectoryRecorder
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = [pytest.mark.ros, pytest.mark.slow]

START_S = 60.0
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(python: Start) -> Start:
    """Starts a module of the package as a process; ends it after the test."""
    return lambda module, *arguments: python('-m', f'mv_matcher_ros.ros.{module}', *arguments)


@pytest.fixture
def start_code(python: Start) -> Start:
    """Starts some code as a process; ends it after the test."""
    return lambda code, *arguments: python('-c', code, *arguments)


@pytest.fixture
def python() -> Iterator[Start]:
    """Starts python in the source tree; ends it after the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def parameters(sensor: str, **more: Any) -> list[str]:
    given = {'sensor': sensor, 'ros.lossless': 'true', **more}
    return ['--ros-args', *(w for n, v in given.items() for w in ('-p', f'{n}:={v}'))]


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Stop a process with SIGINT, as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    return process.returncode, out, error


class Recorded:
    """A source of frames in memory, with the images that a recording of them would hold."""

    def __init__(self, sensor: Sensor, frames: int) -> None:
        world = room_loop(sensor, frames=frames, size=(320, 240))
        self.name, self.sensor, self.truth = world.name, sensor, None
        # Without TF the body is the first camera, so it must be here too.
        left = np.linalg.inv(world.rig.cameras[0].body_from_camera)
        self.rig = Rig(
            tuple(
                replace(c, body_from_camera=left @ c.body_from_camera) for c in world.rig.cameras
            )
        )
        self.frames: list[Frame] = list(world)
        self.faults: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)


@pytest.mark.parametrize('sensor', ['stereo', 'rgbd'])
def test_lossless_over_dds_equals_offline(
    start: Start, bench: Any, tmp_path: Path, sensor: Sensor
) -> None:
    """Two processes and DDS between them change no pose; a third one writes it all down."""
    node = start('main', *parameters(sensor))
    recorder = start('trajectory_recorder', '--out', str(tmp_path))
    source = Recorded(sensor, 8)
    engine = OdometryEngine(read_settings({'sensor': sensor}), source.rig)
    offline = [engine.process(frame) for frame in source]

    playback = Playback(lossless=True, timeout_s=START_S, wait_for=('trajectory_recorder',))
    player = BagPlayer(bench.lonely, source, playback)
    player.play()
    assert player.published == sum(player.answers.values()) == len(source)
    code, _, error = end(node)
    assert (code, 'Traceback' in error) == (0, False), error
    code, out, error = end(recorder)
    assert code == 0, error

    known = {e.stamp_ns: e.odom_from_body for e in offline if e.odom_from_body is not None}
    live = read_tum(tmp_path / 'odometry.tum')
    assert live.stamps_ns.tolist() == sorted(known)
    assert len(known) >= 6
    for stamp, pose in zip(live.stamps_ns.tolist(), live.world_from_body, strict=True):
        np.testing.assert_allclose(pose, known[stamp], atol=1e-6)
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / 'live.json').read_text())
    assert summary['answers'] == len(source)
    assert summary['metric'] is True
    assert summary['latency_ms']['samples'] == len(known)
    assert summary['latency_in_node_ms']['samples'] == len(known)
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p95'] < 30_000


def test_odometry_and_mapping_in_one_process(start: Start, bench: Any, tmp_path: Path) -> None:
    """Keyframes get from one to the other, the map is saved, and both end at once."""
    folder = tmp_path / 'map'
    # Many keyframes: the first is reported when another has joined it.
    given = {
        'mapping.folder': str(folder),
        'mapping.save_every_s': '0.2',
        'keyframes.map_lag': '1',
        'keyframes.min_overlap': '0.98',
    }
    node = start('slam_main', *parameters('stereo', **given))
    source = Recorded('stereo', 30)
    BagPlayer(bench.lonely, source, Playback(lossless=True, timeout_s=START_S)).play()
    deadline_s = time.monotonic() + 15.0  # networks are read with the first keyframe
    while not (folder / 'map.json').is_file() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    code, _, error = end(node)
    assert (code, 'Traceback' in error) == (0, False), error
    assert (folder / 'map.json').is_file(), error


# Runs a module with a signal that arrives while the executor builds its next wait.
SIGNALLED_WAIT = """
import runpy, signal, sys, time
import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation as implementation

build, waits = implementation.WaitSet, []

def build_late(*arguments):
    waits.append(1)
    if len(waits) == 10:
        signal.raise_signal(getattr(signal, number))
        deadline_s = time.monotonic() + 0.5
        while rclpy.ok() and time.monotonic() < deadline_s:
            time.sleep(0.01)
    return build(*arguments)

implementation.WaitSet = build_late
number, module = sys.argv[1:3]
del sys.argv[1:3]
runpy.run_module(f'mv_matcher_ros.ros.{module}', run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize('number', ['SIGINT', 'SIGTERM'])
@pytest.mark.parametrize('module', ['trajectory_recorder', 'main'])
def test_a_signal_in_the_middle_of_a_wait_ends_cleanly(
    start_code: Start, tmp_path: Path, module: str, number: str
) -> None:
    out = ['--out', str(tmp_path)] if module == 'trajectory_recorder' else []
    process = start_code(SIGNALLED_WAIT, number, module, *out)
    printed, error = process.communicate(timeout=START_S)
    assert (process.returncode, 'Traceback' in error) == (0, False), error
    if out:
        assert json.loads(printed) == json.loads((tmp_path / 'live.json').read_text())
        assert (tmp_path / 'odometry.tum').read_text() == ''


# The second of two nodes has a defect, and the first cannot be closed.
TWO_NODES = """
import sys
from rclpy.node import Node
from mv_matcher_ros.ros.node_process import run_node

class Plain(Node):
    failure = None

    def close(self):
        print('closed', self.get_name(), flush=True)

def fails(words):
    raise OSError(words)

def make():
    first, second = Plain('first'), Plain('second')
    second.create_timer(0.01, lambda: fails('a defect'))
    first.close = lambda: fails('the disk is gone')
    return [first, second]

sys.exit(run_node('two', str, make, []))
"""


def test_an_error_of_any_node_ends_the_process_and_all_are_closed(start_code: Start) -> None:
    process = start_code(TWO_NODES)
    printed, error = process.communicate(timeout=START_S)
    assert process.returncode == 1, error
    assert 'a defect' in error
    assert 'the disk is gone' in error
    assert 'closed second' in printed


# A second signal, while Python takes the process apart.
SIGNALLED_END = """
import os, signal, sys

class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):
        kill(process, number)

sys.late = Late()
"""


def test_a_signal_at_the_very_end_does_not_change_the_exit_code(start_code: Start) -> None:
    process = start_code(SIGNALLED_END + SIGNALLED_WAIT, 'SIGINT', 'main')
    _, error = process.communicate(timeout=START_S)
    assert (process.returncode, 'Traceback' in error) == (0, False), error


def test_recorder_reads_what_was_sent_before_the_signal(
    start: Start, bench: Any, tmp_path: Path
) -> None:
    """Whatever waits in its queues when the signal comes is written too."""
    recorder = start('trajectory_recorder', '--out', str(tmp_path))
    publisher = bench.publisher(Odometry, 'odometry', QoSProfile(depth=1000))
    for index in range(500):
        message = Odometry()
        message.header.stamp.sec = 1 + index
        message.pose.pose.orientation.w = 1.0
        publisher.publish(message)
    # In its queues, not on the way there: a reader just discovered gets them late.
    assert publisher.wait_for_all_acked(Duration(seconds=20))
    code, _, error = end(recorder)
    assert code == 0, error
    assert len(read_tum(tmp_path / 'odometry.tum')) == 500


def test_recorder_says_what_it_waits_for(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trajectory_recorder, '_SAY_S', 0.1)
    recorder = TrajectoryRecorder(bench.lonely, tmp_path)
    said = ''

    def heard(line: str) -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return line in said

    end_s = time.monotonic() + START_S
    nobody = 'waiting: nobody publishes /odometry, /odometry/state'
    spin_until(bench.lonely, lambda: heard(nobody) or time.monotonic() > end_s)
    assert nobody in said
    bench.start({'sensor': 'mono'})  # there, but without a camera
    waits = 'waiting: nothing on /odometry yet; the node says: no image on /image'
    spin_until(bench.lonely, lambda: heard(waits) or time.monotonic() > end_s)
    assert waits in said
    recorder._on_state(
        String(data='{"stamp_ns": 1, "status": "LOST", "latency_ms": 1}'), Times(0, 0)
    )
    capfd.readouterr()
    quiet_s = time.monotonic() + 0.5
    spin_until(bench.lonely, lambda: time.monotonic() > quiet_s)
    assert 'waiting' not in capfd.readouterr().err
    recorder.close()


def test_both_latencies_are_of_the_same_frames(bench: Any, tmp_path: Path) -> None:
    """A first frame that took long and got no pose must not make the node slower than the way."""
    recorder = TrajectoryRecorder(bench.lonely, tmp_path)
    for index in range(3):
        stamp, sent_ns = 100 + index, 10**9 * index
        info, odometry = CameraInfo(), Odometry()
        info.header.stamp.nanosec = odometry.header.stamp.nanosec = stamp
        odometry.pose.pose.orientation.w = 1.0
        recorder._on_camera_info(info, Times(sent_ns, sent_ns))
        state = {
            'stamp_ns': stamp,
            'status': 'TRACKING',
            'latency_ms': 900.0 if index < 1 else 8.0,
        }
        recorder._on_state(String(data=json.dumps(state)), Times(sent_ns, sent_ns))
        if index > 0:
            recorder._on_odometry(odometry, Times(sent_ns, sent_ns + 10_000_000))
    summary = recorder.summary()
    recorder.close()
    assert (summary['answers'], summary['odometry_messages']) == (3, 2)
    assert summary['first_pose_s'] == 1.01  # the first frame got none
    assert summary['latency_ms'] == {'p50': 10.0, 'p95': 10.0, 'max': 10.0, 'samples': 2}
    assert summary['latency_in_node_ms'] == {'p50': 8.0, 'p95': 8.0, 'max': 8.0, 'samples': 2}


def write_kitti(source: Recorded, folder: Path) -> None:
    """The images, calibration and stamps of a mono recording as a KITTI sequence."""
    fx, fy, cx, cy = source.rig.cameras[0].intrinsics
    (folder / 'image_0').mkdir()
    for index, frame in enumerate(source):
        cv2.imwrite(str(folder / 'image_0' / f'{index:06d}.png'), frame.views[0].image)
    (folder / 'calib.txt').write_text(f'P0: {fx} 0 {cx} 0 0 {fy} {cy} 0 0 0 1 0\n')
    stamps = ''.join(f'{frame.stamp_ns * 1e-9:.9f}\n' for frame in source)
    (folder / 'times.txt').write_text(stamps)


def test_command_line_plays_a_folder_to_a_mono_node(
    start: Start, bench: Any, tmp_path: Path
) -> None:
    """KITTI folder → player → node, all by command line, equals the same folder without ROS."""
    write_kitti(Recorded('mono', 12), tmp_path)
    node = start('main', *parameters('mono'))
    odometry = bench.collect(Odometry, 'odometry')
    player = start('bag_player', str(tmp_path), '--lossless', '--timeout', str(START_S))
    source = open_source(tmp_path)
    engine = OdometryEngine(Settings(), source.rig)
    offline = [engine.process(frame) for frame in source]
    out, error = player.communicate(timeout=90)
    assert player.returncode == 0, error
    summary = json.loads(out)
    assert summary['published'] == sum(summary['answers'].values()) == 12
    assert summary['faults'] == {}
    known = {e.stamp_ns: e.odom_from_body for e in offline if e.odom_from_body is not None}
    assert len(known) >= 4
    bench.wait(lambda: len(odometry) == len(known), 'odometry')
    for message in odometry:
        pose = known[stamp_ns(message.header.stamp)]
        np.testing.assert_allclose(matrix_from_pose(message.pose.pose), pose, atol=1e-6)
    code, _, error = end(node)
    assert code == 0
    assert 'mono: poses have no metric scale' in error
    assert 'Traceback' not in error


def test_wrong_parameters_are_one_line_and_code_2(start: Start) -> None:
    node = start('main', *parameters('mono', **{'detector.max_keypoint': 500}))
    _, error = node.communicate(timeout=START_S)
    assert node.returncode == 2
    (line,) = [line for line in error.splitlines() if line.strip()]
    assert 'max_keypoint' in line
    assert 'did you mean "detector.max_keypoints"' in line


def test_wrong_source_is_one_line_and_code_2(start: Start, tmp_path: Path) -> None:
    player = start('bag_player', str(tmp_path / 'nothing.mcap'))
    _, error = player.communicate(timeout=START_S)
    assert player.returncode == 2
    assert error.startswith('bag_player: ')
    assert 'nothing.mcap' in error
    assert len(error.splitlines()) == 1


def test_player_says_who_does_not_listen(bench: Any) -> None:
    player = BagPlayer(bench.lonely, Recorded('rgbd', 1), Playback(lossless=True, timeout_s=0.3))
    with pytest.raises(SourceError, match=r'nobody subscribes to /image, /depth and'):
        player.play()


def test_player_notices_a_node_that_drops(bench: Any) -> None:
    """Lossless playing to a node that keeps only the newest frame must not pass for a result."""
    bench.start()
    player = BagPlayer(
        bench.lonely, Recorded('mono', 10), Playback(lossless=True, ahead=8, timeout_s=10.0)
    )
    slow = threading.Event()

    def dawdle(frame: Any, estimate: Any) -> Any:
        slow.wait(0.3)
        return estimate

    def hinder() -> None:
        bench.wait(lambda: bench.engines, 'the engine')
        bench.engines[0].answer = dawdle

    hindering = threading.Thread(target=hinder)
    hindering.start()
    with pytest.raises(SourceError, match=r'ros\.lossless'):
        player.play()
    hindering.join()


def test_player_keeps_real_time_and_the_clock(bench: Any) -> None:
    from rosgraph_msgs.msg import Clock

    bench.start({'ros.lossless': True})
    states = bench.states()
    source = Recorded('mono', 6)
    player = BagPlayer(bench.lonely, source, Playback(rate=0.5, clock=True))
    clocks = bench.collect(Clock, '/clock')
    bench.wait(lambda: player._clock.get_subscription_count(), 'the clock')
    started_s = time.monotonic()
    player.play()
    took_s = time.monotonic() - started_s
    span_s = (source.frames[-1].stamp_ns - source.frames[0].stamp_ns) * 1e-9
    assert span_s / 0.5 <= took_s < span_s / 0.5 + 5.0
    bench.wait(lambda: len(states) == 6, 'answers')
    bench.wait(lambda: stamp_ns(clocks[-1].clock) == source.frames[-1].stamp_ns, 'the last clock')
    times = [stamp_ns(message.clock) for message in clocks]
    assert times == sorted(times)
    assert len(times) > 6  # it runs on between frames


def test_player_publishes_the_mounts_of_a_body(bench: Any) -> None:
    node = bench.start({'ros.lossless': True, 'sensor': 'stereo', 'ros.extrinsics_from_tf': True})
    source = Recorded('stereo', 2)
    world = room_loop('stereo', frames=2, size=(320, 240))
    source.rig = world.rig
    BagPlayer(bench.lonely, source, Playback(lossless=True, timeout_s=20.0)).play()
    (engine,) = bench.engines
    assert engine.rig.body_axes == 'rep103'
    for sent, received in zip(world.rig.cameras, engine.rig.cameras, strict=True):
        np.testing.assert_allclose(received.body_from_camera, sent.body_from_camera, atol=1e-12)
        assert received.intrinsics == sent.intrinsics
    assert node._outputs.body == 'base_link'
