# SPDX-License-Identifier: Apache-2.0
"""Frames through the node over real DDS; the engine is a double, ROS is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseArray
from nav_msgs.msg import Odometry, Path
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float32
from std_srvs.srv import Trigger

from mv_matcher_ros.datatypes import Status
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.ros.messages import stamp_ns

pytestmark = pytest.mark.ros

MS = 1_000_000
LOSSLESS = {'ros.lossless': True}


def test_latency_ends_where_the_odometry_goes_out(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    """What comes after it is not part of it: a subscriber would measure less than the node."""
    node = bench.start(LOSSLESS)
    states = bench.states()
    node._outputs._tf.sendTransform = lambda transform: time.sleep(2.0)
    camcorder().shoot(1 * MS)
    bench.wait(lambda: states, 'the answer')
    assert 0 < states[0]['latency_ms'] < 2000


@pytest.mark.parametrize('sensor', ['mono', 'stereo', 'rgbd'])
def test_each_sensor_reaches_the_engine_and_odometry_comes_out(
    bench: Any, camcorder: Callable[..., Any], sensor: str
) -> None:
    bench.start({'sensor': sensor, **LOSSLESS})
    odometry, states = bench.collect(Odometry, 'odometry'), bench.states()
    camera = camcorder(sensor)
    left = np.full((48, 64), 10, np.uint8)
    right = np.full((48, 64), 20, np.uint8)
    depth = np.full((48, 64), 1.25, np.float32)
    pixels = {'mono': [left], 'stereo': [left, right], 'rgbd': [left, depth]}[sensor]
    camera.shoot(100 * MS, pixels)
    bench.wait(lambda: odometry and states, 'odometry')

    (engine,) = bench.engines
    (frame,) = engine.frames
    assert frame.stamp_ns == 100 * MS
    assert [int(view.image[0, 0]) for view in frame.views] == (
        [10, 20] if sensor == 'stereo' else [10]
    )
    assert engine.rig.baseline_m == pytest.approx(0.1 if sensor == 'stereo' else 0.0)
    if sensor == 'rgbd':
        np.testing.assert_array_equal(frame.views[0].depth, depth)
    message = odometry[0]
    assert stamp_ns(message.header.stamp) == 100 * MS
    assert message.header.frame_id == 'odom'
    # Nobody said where the camera sits, so the pose is the camera's and says so.
    assert message.child_frame_id == ('left_camera' if sensor == 'stereo' else 'camera')
    assert message.pose.covariance[1] == pytest.approx(0.1)
    assert message.pose.covariance[35] == 6.0
    assert message.twist.twist.angular.z == 0.5
    assert message.twist.covariance[0] == pytest.approx(0.01)
    assert states[0]['metric'] is (sensor != 'mono')


def test_lossless_answers_every_frame_in_order(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start({**LOSSLESS, 'ros.queue_size': 50})
    states = bench.states()
    camera = camcorder()
    stamps = [i * 10 * MS for i in range(1, 41)]
    for stamp in stamps:
        camera.shoot(stamp)
    bench.wait(lambda: len(states) == len(stamps), 'an answer to every frame')
    assert [state['stamp_ns'] for state in states] == stamps
    assert {state['status'] for state in states} == {'TRACKING'}
    assert states[-1]['counters']['dropped'] == 0


def test_lossless_frames_wait_for_their_calibration(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    node = bench.start(LOSSLESS)
    states = bench.states()
    camera = camcorder()
    calibrate, camera.calibrate = camera.calibrate, lambda stamp_ns: None
    for stamp in (1, 2, 3):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(node._worker.mailbox) == 3, 'the images to arrive')
    assert not states
    calibrate()
    bench.wait(lambda: len(states) == 3, 'answers')
    assert [state['stamp_ns'] for state in states] == [1 * MS, 2 * MS, 3 * MS]


def test_full_lossless_queue_is_said_for_every_frame_lost(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    node = bench.start({**LOSSLESS, 'ros.queue_size': 2})
    states = bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'the first answer')
    bench.engines[0].go.clear()
    camera.shoot(2 * MS)
    bench.wait(lambda: node._inputs.sets == 2 and not len(node._worker.mailbox), 'a frame in work')
    for stamp in range(3, 8):  # two find room, three push an older one out
        camera.shoot(stamp * MS)
        bench.wait(lambda: node._inputs.sets == stamp, 'the image to arrive')  # noqa: B023
    bench.engines[0].go.set()
    bench.wait(lambda: len(states) == 7, 'an answer to every frame')
    assert {state['stamp_ns'] for state in states} == {i * MS for i in range(1, 8)}
    skipped = [state for state in states if state['status'] == 'SKIPPED']
    assert [state['stamp_ns'] // MS for state in skipped] == [3, 4, 5]
    assert all('queue_size = 2' in state['message'] for state in skipped)


def test_newest_frame_wins_and_drops_are_counted(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    node = bench.start()
    states = bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'the first answer')
    engine = bench.engines[0]
    engine.go.clear()
    for stamp in range(2, 9):
        camera.shoot(stamp * MS)
        # Best effort: an image may be lost on the way, so each is waited for.
        bench.wait(lambda: node._inputs.sets == stamp, 'the image to arrive')  # noqa: B023
    engine.go.set()
    bench.wait(lambda: states[-1]['stamp_ns'] == 8 * MS, 'the newest frame')
    seen = [frame.stamp_ns // MS for frame in engine.frames]
    assert seen[0] == 1
    assert seen[-1] == 8
    assert len(seen) <= 3  # one may have been in work when the engine stopped
    counters = states[-1]['counters']
    assert counters['received'] == 8
    assert counters['dropped'] == 8 - len(seen)


def test_callbacks_do_not_wait_for_the_engine(bench: Any, camcorder: Callable[..., Any]) -> None:
    node = bench.start()
    states = bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'the first answer')
    bench.engines[0].go.clear()
    camera.shoot(2 * MS)
    camera.shoot(3 * MS)
    client = bench.tester.create_client(Trigger, 'odometry/reset')
    bench.wait(client.service_is_ready, 'the service')
    answer = client.call_async(Trigger.Request())
    bench.wait(answer.done, 'the answer while the engine is busy')
    assert answer.result().success
    assert node._worker.running


def test_reset_keeps_odom_continuous(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start(LOSSLESS)
    odometry = bench.collect(Odometry, 'odometry')
    camera = camcorder()
    for stamp in (1, 2, 3):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(odometry) == 3, 'odometry')
    client = bench.tester.create_client(Trigger, 'odometry/reset')
    bench.wait(client.service_is_ready, 'the service')
    bench.wait(client.call_async(Trigger.Request()).done, 'the answer')
    camera.shoot(4 * MS)
    camera.shoot(5 * MS)
    bench.wait(lambda: len(odometry) == 5, 'odometry after the reset')
    assert bench.engines[0].resets == 1
    # The engine is at its origin again; odom goes on from x = 2, in the direction of the camera.
    assert [m.pose.pose.position.x for m in odometry] == pytest.approx([0, 1, 2, 2, 3])


@pytest.mark.parametrize(
    ('simulated', 'xs'),
    [(False, [0, 1, 2, 2, 3]), (True, [0, 1, 2, 0, 1])],
    ids=['a robot goes on where it is', 'simulated time begins anew'],
)
def test_stamps_that_jump_back_reset(
    bench: Any, camcorder: Callable[..., Any], simulated: bool, xs: list[int]
) -> None:
    bench.start({'use_sim_time': simulated, **LOSSLESS})
    odometry, states = bench.collect(Odometry, 'odometry'), bench.states()
    camera = camcorder()
    for stamp in (5000, 5100, 5200, 500, 600):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(states) == 5, 'answers')
    assert bench.engines[0].resets == 1
    assert states[-1]['counters']['resets'] == 1
    bench.wait(lambda: len(odometry) == 5, 'odometry')
    assert [m.pose.pose.position.x for m in odometry] == pytest.approx(xs)


def test_frames_that_come_late_are_skipped_and_nothing_is_reset(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    bench.start(LOSSLESS)
    odometry, states = bench.collect(Odometry, 'odometry'), bench.states()
    camera = camcorder()
    for stamp in (1000, 1200, 1100, 1300):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(states) == 4, 'answers')
    assert bench.engines[0].resets == 0
    assert [s['status'] for s in states] == ['TRACKING', 'TRACKING', 'SKIPPED', 'TRACKING']
    assert '0.100 s before' in states[2]['message']
    assert states[-1]['counters']['skipped: late'] == 1
    bench.wait(lambda: len(odometry) == 3, 'odometry')
    assert [m.header.stamp.nanosec // MS for m in odometry] == [0, 200, 300]


def test_stereo_goes_on_after_stamps_jumped_back(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    """What waits in the synchroniser from before must not keep the new images out."""
    bench.start({'sensor': 'stereo', 'ros.queue_size': 3, **LOSSLESS})
    states = bench.states()
    camera = camcorder('stereo')
    from mv_matcher_ros.ros.conversions import message_from_image
    from mv_matcher_ros.ros.messages import header_message

    blank = np.zeros((48, 64), np.uint8)
    camera.shoot(1000 * MS)
    bench.wait(lambda: states, 'the first answer')
    for stamp in (2000, 2100, 2200):  # left without right fills its queue
        header = header_message(stamp * MS, 'left_camera')
        camera.images[0].publish(message_from_image(blank, 'mono8', header))
    for stamp in (10, 20, 30):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(states) == 4, 'answers')
    assert [state['stamp_ns'] // MS for state in states] == [1000, 10, 20, 30]
    assert states[-1]['counters']['unsynchronised'] == 3


def test_images_out_of_slop_are_not_paired(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start({'sensor': 'stereo', 'ros.sync_slop_s': 0.01, **LOSSLESS})
    states = bench.states()
    camera = camcorder('stereo')
    from mv_matcher_ros.ros.conversions import message_from_image
    from mv_matcher_ros.ros.messages import header_message

    camera.calibrate()
    blank = np.zeros((48, 64), np.uint8)
    for left, right in ((100, 150), (200, 205), (300, 300)):
        for publisher, stamp in zip(camera.images, (left, right), strict=True):
            header = header_message(stamp * MS, 'left_camera')
            publisher.publish(message_from_image(blank, 'mono8', header))
    bench.wait(lambda: len(states) == 2, 'two pairs')
    assert [state['stamp_ns'] // MS for state in states] == [200, 300]
    assert states[-1]['counters']['unsynchronised'] == 1


def test_bad_frames_are_skipped_counted_and_answered(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    bench.start(LOSSLESS)
    states = bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    camera.shoot(1 * MS)
    camera.shoot(2 * MS, [np.zeros((50, 70), np.uint8)])
    bench.wait(lambda: len(states) == 3, 'answers')

    def refuse(frame: Any, estimate: Any) -> Any:
        raise SourceError('not of this rig')

    bench.engines[0].answer = refuse
    camera.shoot(3 * MS)
    bench.wait(lambda: len(states) == 4, 'the answer')
    assert [s['status'] for s in states] == ['TRACKING', 'SKIPPED', 'SKIPPED', 'SKIPPED']
    assert 'stamp' in states[1]['message']
    assert '/image: the image is 70x50' in states[2]['message']
    assert '/camera_info' in states[2]['message']
    assert states[3]['message'] == 'not of this rig'
    assert states[3]['counters']['skipped: unusable image'] == 2
    assert states[3]['counters']['skipped: repeated stamp'] == 1


def test_without_a_pose_there_is_no_odometry(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start(LOSSLESS)
    odometry, states = bench.collect(Odometry, 'odometry'), bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: odometry and states, 'odometry')
    bench.engines[0].answer = lambda frame, estimate: replace(
        estimate, status=Status.LOST, odom_from_body=None, covariance=None, message='covered'
    )
    camera.shoot(2 * MS)
    bench.wait(lambda: len(states) == 2, 'the answer')
    bench.engines[0].answer = lambda frame, estimate: estimate
    camera.shoot(3 * MS)
    bench.wait(lambda: len(odometry) == 2, 'odometry again')
    assert (states[1]['status'], states[1]['message']) == ('LOST', 'covered')
    assert [stamp_ns(m.header.stamp) // MS for m in odometry] == [1, 3]


def test_path_landmarks_and_tracks(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start({**LOSSLESS, 'ros.path_length': 3})
    states = bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'the first answer')
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    clouds = bench.collect(PointCloud2, 'odometry/landmarks', latched)
    bench.wait(lambda: clouds, 'landmarks from before somebody listened')
    assert clouds[0].header.frame_id == 'odom'
    assert clouds[0].width == 4
    windows = bench.collect(PoseArray, 'odometry/keyframe_poses', latched)
    bench.wait(lambda: windows, 'keyframes from before somebody listened')
    assert windows[0].header.frame_id == 'odom'
    assert len(windows[0].poses) == 1

    paths, images = bench.collect(Path, 'path'), bench.collect(Image, 'odometry/tracks')
    outputs = bench.nodes[0]._outputs
    bench.wait(
        lambda: (
            outputs._path.get_subscription_count() and outputs._tracks.get_subscription_count()
        ),
        'the node to see the listeners',
    )
    outputs.body = 'base_link'  # poses are of it; images are the camera's all the same
    for stamp in range(2, 8):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(states) == 7 and images and paths, 'path and tracks')
    assert (images[0].encoding, images[0].height, images[0].width) == ('bgr8', 48, 64)
    assert images[0].header.frame_id == 'camera'
    assert 1 <= len(paths[-1].poses) <= 3
    assert paths[-1].header.frame_id == 'odom'


def test_an_error_in_the_last_frame_is_not_swallowed(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    node = bench.start(LOSSLESS)
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: bench.engines and bench.engines[0].frames, 'the first frame')
    bench.wait(lambda: node._health._in_work_s is None, 'the end of its work')
    (engine,) = bench.engines

    def crash(frame: Any, estimate: Any) -> Any:
        raise ZeroDivisionError('a defect')

    engine.answer = crash
    engine.go.clear()
    camera.shoot(2 * MS)
    bench.wait(lambda: node._health._in_work_s is not None, 'the frame in work')
    closing = threading.Thread(target=node.close)
    closing.start()
    bench.wait(node._worker._stopping.is_set, 'the end')
    engine.go.set()
    closing.join(10.0)
    assert isinstance(node.failure, ZeroDivisionError)


def test_crash_of_the_engine_ends_the_node(bench: Any, camcorder: Callable[..., Any]) -> None:
    node = bench.start(LOSSLESS)
    camera = camcorder()

    def crash(frame: Any, estimate: Any) -> Any:
        raise ZeroDivisionError('a defect')

    camera.shoot(1 * MS)
    bench.wait(lambda: bench.engines and bench.engines[0].frames, 'the engine')
    bench.engines[0].answer = crash
    camera.shoot(2 * MS)
    bench.wait(lambda: node.failure is not None, 'the failure')
    assert isinstance(node.failure, ZeroDivisionError)
    bench.wait(lambda: not node.context.ok(), 'the end of the context')


def test_thread_settings_reach_the_worker(bench: Any, camcorder: Callable[..., Any]) -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[tuple[int, str]] = []
    bench.start({**LOSSLESS, 'runtime.threads': 1})
    camera = camcorder()

    def look(frame: Any, estimate: Any) -> Any:
        seen.append((torch.get_num_threads(), threading.current_thread().name))
        return estimate

    camera.calibrate()
    bench.wait(lambda: bench.engines, 'the engine')
    bench.engines[0].answer = look
    camera.shoot(1 * MS)
    bench.wait(lambda: seen, 'a frame')
    torch.set_num_threads(before)
    assert seen == [(1, 'odometry')]


def test_latency_is_that_since_the_stamp(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start(LOSSLESS)
    latencies, states = bench.collect(Float32, 'odometry/latency'), bench.states()
    camera, now = camcorder(), bench.tester.get_clock().now
    camera.shoot(now().nanoseconds - 250 * MS)
    bench.wait(lambda: latencies, 'a latency')
    assert 250.0 < latencies[0].data < 2000.0
    assert states[0]['latency_ms'] < latencies[0].data - 249.0
