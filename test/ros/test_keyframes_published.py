# SPDX-License-Identifier: Apache-2.0
"""Keyframes of the odometry node for a mapping node: in odom, across a reset, and to the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

from mv_matcher_ros.ros.engine_node import odometry_engine
from mv_matcher_ros.ros.keyframe_messages import keyframe_from_message
from mv_matcher_ros.ros.messages import matrix_from_pose, stamp_ns
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def test_keyframes_go_out_in_odom(bench: Any, camcorder: Callable[..., Any]) -> None:
    from rclpy.qos import DurabilityPolicy, QoSProfile

    source = room_loop('stereo', 40, size=(320, 240), rate_hz=20.0)
    node = bench.start(
        {
            'sensor': 'stereo', 'ros.lossless': True, 'ros.queue_size': 100,
            'ros.publish_keyframes': True, 'detector.name': 'sift', 'matching.matcher': 'nearest',
            'keyframes.parallax_px': 15.0, 'keyframes.map_lag': 2,
        },
        engine_factory=odometry_engine,
    )  # fmt: skip
    latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    messages = bench.collect(UInt8MultiArray, 'odometry/keyframes', latched)
    odometry = bench.collect(Odometry, 'odometry')
    camera = camcorder('stereo', source.rig)
    frames = list(source)
    for frame in frames[:25]:
        camera.shoot(frame.stamp_ns, [view.image for view in frame.views])
    bench.wait(lambda: len(odometry) == 25, 'odometry')
    client = bench.tester.create_client(Trigger, 'odometry/reset')
    bench.wait(client.service_is_ready, 'the service')
    bench.wait(client.call_async(Trigger.Request()).done, 'the answer')
    for frame in frames[25:]:
        camera.shoot(frame.stamp_ns, [view.image for view in frame.views])
    bench.wait(lambda: len(odometry) == 40, 'odometry after the reset')
    node.close()  # what is left is told, too
    bench.wait(lambda: len(messages) >= 8, 'keyframes')
    sent = [keyframe_from_message(message) for message in messages]
    stamps = [one.record.stamp_ns for one in sent]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] > frames[25].stamp_ns
    assert {one.record.segment for one in sent} == {0, 1}
    assert len({one.run for one in sent}) == 1
    assert {(one.sensor, one.odom_frame) for one in sent} == {('stereo', 'odom')}
    published = {stamp_ns(m.header.stamp): matrix_from_pose(m.pose.pose) for m in odometry}
    for one in sent:
        np.testing.assert_allclose(
            one.record.odom_from_body, published[one.record.stamp_ns], atol=1e-6
        )
