# SPDX-License-Identifier: Apache-2.0
"""Laws of what goes over topics: it comes back as it was, through the wire format of ROS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

sys.path.insert(0, str(Path(__file__).parent))
from test_keyframe_messages import record, same, sent_of

from mv_matcher_ros.datatypes import Estimate, Rig, Status
from mv_matcher_ros.ros.conversions import (
    compressed_from_depth,
    compressed_from_image,
    depth_from_message,
    image_from_message,
    message_from_image,
)
from mv_matcher_ros.ros.keyframe_messages import keyframe_from_message, keyframe_message
from mv_matcher_ros.ros.messages import (
    header_message,
    matrix_from_pose,
    matrix_from_transform,
    odometry_message,
    pose_message,
    stamp_ns,
    time_message,
    transform_message,
)

pytestmark = pytest.mark.ros
SIDES, SEEDS = some.integers(1, 9), some.integers(0, 2**32 - 1)
STAMPS = some.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1)


def sent(message: Any) -> Any:
    """The message after it has been bytes."""
    from rclpy.serialization import deserialize_message, serialize_message

    return deserialize_message(serialize_message(message), type(message))


@some.composite
def poses(draw: some.DrawFn) -> np.ndarray:
    """Transforms; turns next to none and to half ones among them."""
    one = some.sampled_from((0.0, 1.0, -1.0, 1e-8)) | some.floats(-1, 1)
    x, y, z, w = draw(some.tuples(one, one, one, one))
    length = np.sqrt(x * x + y * y + z * z + w * w)
    assume(length > 1e-3)
    x, y, z, w = np.array((x, y, z, w)) / length
    pose = np.eye(4)
    pose[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    pose[:3, 3] = [draw(some.floats(-1e6, 1e6)) for _ in range(3)]
    return pose


@given(STAMPS)
def test_stamps_come_back(nanoseconds: int) -> None:
    assert stamp_ns(sent(time_message(nanoseconds))) == nanoseconds


@given(poses(), STAMPS)
def test_poses_come_back(pose: np.ndarray, nanoseconds: int) -> None:
    np.testing.assert_allclose(matrix_from_pose(sent(pose_message(pose))), pose, atol=1e-9)
    message = sent(transform_message(nanoseconds, 'a', 'b', pose))
    np.testing.assert_allclose(matrix_from_transform(message.transform), pose, atol=1e-9)


@given(poses(), SEEDS)
def test_covariances_keep_their_order(pose: np.ndarray, seed: int) -> None:
    """x y z rx ry rz on both sides (REP-103): row 3, column 1 of the message is theirs of ours."""
    rng = np.random.default_rng(seed)
    first, second = (root @ root.T for root in rng.normal(size=(2, 6, 6)))
    twist = rng.normal(size=6)
    estimate = Estimate(5, Status.TRACKING, pose, first, twist, second)
    message = sent(odometry_message(estimate, 'odom', 'base'))
    np.testing.assert_array_equal(np.reshape(message.pose.covariance, (6, 6)), first)
    np.testing.assert_array_equal(np.reshape(message.twist.covariance, (6, 6)), second)
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    found = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
    np.testing.assert_array_equal(found, twist)


@given(SIDES, SIDES, some.booleans(), SEEDS)
def test_images_come_back(height: int, width: int, colour: bool, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    header = header_message(5, 'camera')
    raw = message_from_image(pixels, 'bgr8' if colour else 'mono8', header)
    for message in (raw, compressed_from_image(pixels, 'png', header)):
        np.testing.assert_array_equal(image_from_message(sent(message), '/image'), pixels)


@given(SIDES, SIDES, SEEDS)
def test_depth_comes_back(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.001, 65.0, (height, width)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = 0
    header = header_message(5, 'camera')
    raw = sent(message_from_image(depth, '32FC1', header))
    np.testing.assert_array_equal(depth_from_message(raw, '/depth'), depth)
    packed = sent(compressed_from_depth(depth, header))
    np.testing.assert_allclose(depth_from_message(packed, '/depth'), depth, atol=5.01e-4)


@given(some.integers(0, 40), some.none() | some.integers(0, 2**62), some.text(max_size=9))
def test_keyframes_come_back(count: int, before: int | None, name: str) -> None:
    assume('\x00' not in name)  # numpy's text ends with zeros
    one = sent_of(record(count, before))
    one = type(one)(**{**vars(one), 'run': name, 'rig': Rig(one.rig.cameras[: 1 + count % 2])})
    same(keyframe_from_message(sent(keyframe_message(one))), one)
