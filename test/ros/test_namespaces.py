# SPDX-License-Identifier: Apache-2.0
"""Two robots on one network: topics by namespace, frames by prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from mv_matcher_ros.ros.messages import transform_message
from mv_matcher_ros.ros.mounting import tf2
from mv_matcher_ros.ros.playback import BagPlayer, Playback
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = pytest.mark.ros

MS = 1_000_000
ROBOTS = ('robot1', 'robot2')
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def shot(bench: Any, camera: Any, states: list[Any], frames: int, grey: int) -> None:
    """So many images of one grey, each answered before the next."""
    picture = np.full((48, 64), grey, np.uint8)
    for index in range(1, frames + 1):
        camera.shoot(index * 100 * MS, [picture])
        bench.wait(lambda n=index: len(states) >= n, f'answer {index}')


def edges(messages: list[TFMessage]) -> set[tuple[str, str]]:
    """(parent, child) of all transforms."""
    return {(t.header.frame_id, t.child_frame_id) for m in messages for t in m.transforms}


def test_each_robot_gets_its_own_images_and_says_its_own_pose(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    for robot in ROBOTS:
        bench.start({'ros.lossless': True, 'ros.frames.prefix': f'{robot}/'}, namespace=robot)
    tf = bench.collect(TFMessage, '/tf')
    states = {robot: bench.states(f'{robot}/odometry/state') for robot in ROBOTS}
    odometry = {robot: bench.collect(Odometry, f'{robot}/odometry') for robot in ROBOTS}
    cameras = {robot: camcorder(robot=robot) for robot in ROBOTS}
    greys = {'robot1': (3, 50), 'robot2': (5, 200)}
    for robot, (frames, grey) in greys.items():
        shot(bench, cameras[robot], states[robot], frames, grey)

    bench.wait(lambda: len(odometry['robot2']) == 5, 'the last odometry')
    engines = {engine.settings.ros.frames.odom: engine for engine in bench.engines}
    for robot, (frames, grey) in greys.items():
        seen = [int(frame.views[0].image.mean()) for frame in engines[f'{robot}/odom'].frames]
        assert seen == [grey] * frames
        assert len(states[robot]) == len(odometry[robot]) == frames
        names = {(m.header.frame_id, m.child_frame_id) for m in odometry[robot]}
        assert names == {(f'{robot}/odom', f'{robot}/camera')}
    # One /tf for all, and nothing of one robot hangs at the other.
    bench.wait(lambda: len(tf) == 8, 'the last transform')
    assert edges(tf) == {(f'{robot}/odom', f'{robot}/camera') for robot in ROBOTS}


def test_prefix_is_of_the_body_too_and_parameters_are_as_given(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    parameters = {
        'ros.lossless': True, 'ros.extrinsics_from_tf': True, 'ros.frames.prefix': 'robot1/',
    }  # fmt: skip
    node = bench.start(parameters, namespace='robot1')
    mounts = tf2().StaticTransformBroadcaster(bench.tester)
    mounts.sendTransform(transform_message(0, 'robot1/base_link', 'robot1/camera', np.eye(4)))
    tf, states = bench.collect(TFMessage, '/tf'), bench.states('robot1/odometry/state')
    shot(bench, camcorder(robot='robot1'), states, 1, 90)
    bench.wait(lambda: tf, 'a transform')
    assert edges(tf) == {('robot1/odom', 'robot1/base_link')}
    assert node.get_parameter('ros.frames.odom').value == 'odom'
    assert node.get_parameter('ros.frames.prefix').value == 'robot1/'
    # A change of another parameter reads all settings again, and must not put it there twice.
    (result,) = node.set_parameters([Parameter('ros.path_length', value=7)])
    assert result.successful
    assert node.settings.ros.frames.odom == 'robot1/odom'
    assert node.settings.ros.frames.map == 'robot1/map'
    assert node.settings.ros.guess_frame == ''


def test_tf_of_a_robot_can_stay_in_its_namespace(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    """As nav2 does with several robots: the same names of frames, a /tf for each."""
    words = ['--ros-args', '-r', '/tf:=tf', '-r', '/tf_static:=tf_static']
    bench.start({'ros.lossless': True}, namespace='robot1', cli_args=words)
    own, states = bench.collect(TFMessage, '/robot1/tf'), bench.states('robot1/odometry/state')
    shot(bench, camcorder(robot='robot1'), states, 1, 90)
    bench.wait(lambda: own, 'a transform')
    assert not bench.tester.count_publishers('/tf')
    assert not bench.tester.count_subscribers('/tf_static')


def test_player_puts_the_prefix_before_its_frames(bench: Any) -> None:
    node = bench.start(
        {
            'sensor': 'stereo',
            'ros.lossless': True,
            'ros.extrinsics_from_tf': True,
            'ros.frames.prefix': 'robot1/',
        }
    )
    source = room_loop('stereo', 2, (64, 48))  # the rig's body is base_link
    how = Playback(lossless=True, timeout_s=20.0, frame_prefix='robot1/')
    BagPlayer(bench.lonely, source, how).play()
    assert node._outputs.body == 'robot1/base_link'
    mounts: list[TFMessage] = []
    bench.tester.create_subscription(TFMessage, '/tf_static', mounts.append, LATCHED)
    bench.wait(lambda: mounts, 'the mounts')
    assert edges(mounts) == {
        ('robot1/base_link', f'robot1/{side}_camera') for side in ('left', 'right')
    }
