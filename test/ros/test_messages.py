# SPDX-License-Identifier: Apache-2.0
"""Estimates as messages: frames, order of the covariance, what is unknown."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Estimate, Status, TrackView
from mv_matcher_ros.ros.continuity import Continuity
from mv_matcher_ros.ros.drawing import draw_tracks
from mv_matcher_ros.ros.messages import (
    UNKNOWN_VARIANCE,
    cloud_message,
    diagnostics_message,
    matrix_from_pose,
    odometry_message,
    stamp_ns,
    state_message,
    time_message,
    transform_message,
)

pytestmark = pytest.mark.ros

POSE = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
STAMP = 1_403_636_579_763_555_584  # needs more than a double


def test_odometry_keeps_the_order_of_rep103() -> None:
    covariance = np.arange(36.0).reshape(6, 6)
    covariance += covariance.T
    twist_covariance = np.diag([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    estimate = Estimate(
        STAMP, Status.TRACKING, POSE, covariance, np.arange(1.0, 7.0), twist_covariance
    )
    message = odometry_message(estimate, 'odom', 'base_link')
    assert stamp_ns(message.header.stamp) == STAMP
    assert (message.header.frame_id, message.child_frame_id) == ('odom', 'base_link')
    np.testing.assert_allclose(matrix_from_pose(message.pose.pose), POSE, atol=1e-15)
    # Row-major, x y z rx ry rz: cov(x, rz) is entry 5, cov(ry, ry) is entry 28.
    assert message.pose.covariance[5] == covariance[0, 5]
    assert message.pose.covariance[28] == covariance[4, 4]
    np.testing.assert_array_equal(np.reshape(message.pose.covariance, (6, 6)), covariance)
    np.testing.assert_array_equal(np.reshape(message.twist.covariance, (6, 6)), twist_covariance)
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    assert (linear.x, linear.y, linear.z) == (1, 2, 3)
    assert (angular.x, angular.y, angular.z) == (4, 5, 6)


def test_unknown_is_never_perfect() -> None:
    message = odometry_message(Estimate(1, Status.DEGRADED, POSE), 'odom', 'base_link')
    for covariance in (message.pose.covariance, message.twist.covariance):
        np.testing.assert_array_equal(np.diag(np.reshape(covariance, (6, 6))), UNKNOWN_VARIANCE)


def test_transform_and_time() -> None:
    message = transform_message(STAMP, 'odom', 'base_link', POSE)
    assert stamp_ns(message.header.stamp) == STAMP
    assert stamp_ns(time_message(STAMP)) == STAMP
    q = message.transform.rotation
    np.testing.assert_allclose([q.x, q.y, q.z, q.w], [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    assert message.transform.translation.z == 3.0


def test_cloud_has_the_points() -> None:
    points = np.array([[1, 2, 3], [4, 5, np.nan]], np.float32)
    message = cloud_message(1, 'odom', points)
    read = np.frombuffer(message.data, np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(read, points)
    assert (message.width, message.point_step, message.is_dense) == (2, 12, False)
    assert cloud_message(1, 'odom', points[:0]).width == 0


def test_state_and_diagnostics_say_that_mono_is_not_metric() -> None:
    estimate = Estimate(STAMP, Status.LOST, message='dark', metric=False)
    state = json.loads(state_message(estimate, {'dropped': 3}, 12.0).data)
    assert state['stamp_ns'] == STAMP
    assert (state['status'], state['metric'], state['message']) == ('LOST', False, 'dark')
    assert state['counters'] == {'dropped': 3}
    skipped = json.loads(state_message(estimate, {}, 1.0, 'unreadable').data)
    assert (skipped['status'], skipped['message']) == ('SKIPPED', 'unreadable')

    message = diagnostics_message(
        time_message(1), '/odometry', estimate, '', {'scale': 'arbitrary'}
    )
    status = message.status[0]
    assert status.level == status.ERROR
    assert status.message == 'LOST: dark'
    assert [(v.key, v.value) for v in status.values] == [('scale', 'arbitrary')]
    fine = Estimate(1, Status.TRACKING, POSE)
    assert diagnostics_message(time_message(1), 'n', fine, '', {}).status[0].level == status.OK
    bad = diagnostics_message(time_message(1), 'n', fine, 'no image on /image', {}).status[0]
    assert (bad.level, bad.message) == (status.ERROR, 'no image on /image')


def estimate_at(x: float, covariance: float = 0.01) -> Estimate:
    pose = np.eye(4)
    pose[0, 3] = x
    return Estimate(
        1,
        Status.TRACKING,
        pose,
        np.eye(6) * covariance,
        landmarks=np.array([[x, 0, 0]], np.float32),
        keyframes=np.stack([pose, np.eye(4)]),
    )


def test_odom_goes_on_after_a_reset() -> None:
    continuity = Continuity(np.eye(4))
    turned = Estimate(1, Status.TRACKING, POSE, np.diag([0.0, 0, 0, 0, 0, 0.04]))
    assert continuity.apply(turned, 7.0) is turned  # bit-equal as long as nothing was reset
    continuity.go_on(7.0)
    first = continuity.apply(estimate_at(0.0, 0.0), 7.0)
    np.testing.assert_allclose(first.odom_from_body, POSE)
    moved = continuity.apply(estimate_at(2.0), 7.1)
    # POSE looks along +y, so 2 m ahead is 2 m in y.
    np.testing.assert_allclose(moved.odom_from_body[:3, 3], [1, 4, 3])
    np.testing.assert_allclose(moved.landmarks, [[1, 4, 3]])
    np.testing.assert_allclose(moved.keyframes[0], moved.odom_from_body)
    np.testing.assert_allclose(moved.keyframes[1], POSE)
    # The yaw that was uncertain at the reset swings the position sideways: (2 m)² · 0.04 rad².
    assert moved.covariance[0, 0] == pytest.approx(0.01 + 4 * 0.04)
    assert moved.covariance[1, 1] == pytest.approx(0.01)
    assert moved.covariance[5, 5] == pytest.approx(0.01 + 0.04)
    lost = continuity.apply(Estimate(3, Status.LOST), 7.2)
    assert lost.odom_from_body is None
    continuity.begin_again()
    np.testing.assert_array_equal(
        continuity.apply(estimate_at(5.0), 7.3).odom_from_body[0, 3], 5.0
    )


def test_what_moves_on_during_a_reset_is_thought_of_and_admitted() -> None:
    """Ahead at 2 m/s, turning at 1 rad/s; nobody looked for 0.1 s, or for 3 s."""
    twist = np.array([2.0, 0, 0, 0, 0, 1.0])
    before = replace(estimate_at(1.0, 0.0), twist=twist)
    shortly, long = Continuity(np.eye(4)), Continuity(np.eye(4))
    for continuity, after_s in ((shortly, 0.1), (long, 3.0)):
        continuity.apply(before, 5.0)
        continuity.go_on(5.0 + after_s)
    first = shortly.apply(estimate_at(0.0, 0.0), 5.1)
    np.testing.assert_allclose(first.odom_from_body[:2, 3], [1.2, 0.01], atol=1e-3)
    assert first.odom_from_body[1, 0] == pytest.approx(np.sin(0.1))
    # As far as an acceleration may have taken it off.
    assert 0.005 < np.sqrt(first.covariance[0, 0]) < 0.03
    first = long.apply(estimate_at(0.0, 0.0), 8.0)
    np.testing.assert_allclose(first.odom_from_body, before.odom_from_body)
    assert np.sqrt(first.covariance[0, 0]) > 6.0  # it may be 6 m on


@pytest.mark.parametrize('channels', [(), (3,)])
def test_tracks_are_drawn(channels: tuple[int, ...]) -> None:
    image = np.full((240, 320, *channels), 80, np.uint8)
    tracks = TrackView(
        np.array([[100, 100], [200, 150], [50, 60]], np.float32),
        np.array([[90, 100], [np.nan, np.nan], [40, 60]], np.float32),
        np.array([True, True, False]),
        np.array([5, 1, 2]),
    )
    drawn = draw_tracks(image, Estimate(1, Status.TRACKING, POSE, tracks=tracks))
    assert drawn.shape == (240, 320, 3)
    assert drawn[100, 95, 1] > 150  # green line of the inlier
    assert drawn[60, 45, 2] > 150  # red line of the outlier
    assert (image == 80).all()
    assert draw_tracks(image, Estimate(1, Status.LOST)).shape == (240, 320, 3)
