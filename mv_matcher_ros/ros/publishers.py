# SPDX-License-Identifier: Apache-2.0
"""Outputs of the node: odometry, TF, path, landmarks, debug image, state of every frame."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Estimate, Frame
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.ros.conversions import message_from_image
from mv_matcher_ros.ros.drawing import draw_tracks
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe, keyframe_message
from mv_matcher_ros.ros.messages import (
    cloud_message,
    header_message,
    odometry_message,
    pose_message,
    state_message,
    transform_message,
)
from mv_matcher_ros.ros.mounting import StaticParents, tf2

# A path of thousands of poses takes tens of milliseconds to serialise: nobody needs it at the
# image rate.
_PATH_PERIOD_S = 0.5
# Answers to every frame must survive a burst of a player that is ahead.
_STATE_DEPTH = 1000


# Of the node that makes them, and what a mapping node listens to.
KEYFRAMES = '~/keyframes'


class Publishers:
    """Publishes what an engine says.

    Args:
        node: rclpy node.
        settings: of the node; may be replaced while it runs.

    Attributes:
        body: name of the frame that poses are of.
        camera: name of the frame of the first camera's images.
    """

    def __init__(self, node: Any, settings: Settings) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseArray
        from nav_msgs.msg import Odometry, Path
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import Image, PointCloud2
        from std_msgs.msg import Float32, String, UInt8MultiArray

        self._node = node
        self.settings = settings
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._odometry = node.create_publisher(Odometry, 'odometry', 50)
        self._path = node.create_publisher(Path, 'path', 1)
        self._landmarks = node.create_publisher(PointCloud2, '~/landmarks', latched)
        self._window = node.create_publisher(PoseArray, '~/keyframe_poses', latched)
        self._tracks = node.create_publisher(Image, '~/tracks', 1)
        self._keyframes: Any = None
        if settings.ros.publish_keyframes:
            history = QoSProfile(
                depth=settings.ros.keyframe_history,
                durability=DurabilityPolicy.TRANSIENT_LOCAL,
            )
            self._keyframes = node.create_publisher(UInt8MultiArray, KEYFRAMES, history)
        self._state = node.create_publisher(String, '~/state', _STATE_DEPTH)
        self._latency = node.create_publisher(Float32, '~/latency', 10)
        self.diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._poses: deque[Any] = deque(maxlen=settings.ros.path_length)
        self._path_s = 0.0
        self._tf: Any = None
        self._parents: StaticParents | None = None
        self.body = self.camera = settings.ros.frames.body
        try:
            self._tf = tf2().TransformBroadcaster(node)
            self._parents = StaticParents(node)
        except MvMatcherError as error:
            if settings.ros.publish_tf:
                node.get_logger().error(str(error))

    def publish(
        self, frame: Frame, estimate: Estimate, counters: Mapping[str, int], received_s: float
    ) -> float:
        """Publish the estimate of one frame, odometry first; returns its latency in ms.

        The latency is that from `received_s` to the odometry, so a subscriber always sees a
        longer one. Without a pose there is no odometry and no TF: nothing stands in for an
        unknown pose.
        """
        from geometry_msgs.msg import PoseArray

        frames = self.settings.ros.frames
        latency_ms = (time.monotonic() - received_s) * 1e3
        if estimate.odom_from_body is not None:
            odometry = odometry_message(estimate, frames.odom, self.body)
            latency_ms = (time.monotonic() - received_s) * 1e3
            self._odometry.publish(odometry)
            self._publish_tf(frame, estimate)
        self._state.publish(state_message(estimate, counters, latency_ms))
        self._publish_latency(estimate.stamp_ns)
        if estimate.odom_from_body is not None:
            self._publish_path(estimate)
        if estimate.landmarks is not None:
            self._landmarks.publish(
                cloud_message(estimate.stamp_ns, frames.odom, estimate.landmarks)
            )
        if estimate.keyframes is not None:
            header = header_message(estimate.stamp_ns, frames.odom)
            poses = [pose_message(pose) for pose in estimate.keyframes]
            self._window.publish(PoseArray(header=header, poses=poses))
        if self._tracks.get_subscription_count():
            header = header_message(estimate.stamp_ns, self.camera)
            canvas = draw_tracks(frame.views[0].image, estimate)
            self._tracks.publish(message_from_image(canvas, 'bgr8', header))
        return latency_ms

    def skip(
        self, estimate: Estimate, counters: Mapping[str, int], received_s: float, reason: str
    ) -> None:
        """Answer a frame that was not processed."""
        latency_ms = (time.monotonic() - received_s) * 1e3
        self._state.publish(state_message(estimate, counters, latency_ms, reason))

    def keyframe(self, sent: SentKeyframe) -> None:
        """Publish a keyframe for a map, if that is wanted."""
        if self._keyframes is not None:
            self._keyframes.publish(keyframe_message(sent))

    def clear_path(self) -> None:
        """Forget the path, after a reset."""
        self._poses.clear()

    def change(self, settings: Settings) -> None:
        """Take settings that were changed while the node runs."""
        self.settings = settings
        self._poses = deque(self._poses, maxlen=settings.ros.path_length)

    def _publish_tf(self, frame: Frame, estimate: Estimate) -> None:
        """odom -> body; or odom -> frame of the guess, whose child the body already is."""
        assert estimate.odom_from_body is not None
        child, pose = self.settings.ros.guess_frame, estimate.odom_from_body
        if child and frame.guess is None:
            return
        if frame.guess is not None:
            pose = pose @ np.linalg.inv(frame.guess)
        child = child or self.body
        if self._tf is not None and self.settings.ros.publish_tf and self._tf_is_ours(child):
            odom = self.settings.ros.frames.odom
            self._tf.sendTransform(transform_message(estimate.stamp_ns, odom, child, pose))

    def _publish_latency(self, stamp_ns: int) -> None:
        """Milliseconds since the stamp of the image, by the clock of this node."""
        from std_msgs.msg import Float32

        if self._latency.get_subscription_count():
            since_ns = self._node.get_clock().now().nanoseconds - stamp_ns
            self._latency.publish(Float32(data=since_ns * 1e-6))

    def _publish_path(self, estimate: Estimate) -> None:
        from geometry_msgs.msg import PoseStamped
        from nav_msgs.msg import Path

        assert estimate.odom_from_body is not None
        header = header_message(estimate.stamp_ns, self.settings.ros.frames.odom)
        self._poses.append(PoseStamped(header=header, pose=pose_message(estimate.odom_from_body)))
        now_s = time.monotonic()
        if now_s - self._path_s >= _PATH_PERIOD_S and self._path.get_subscription_count():
            self._path_s = now_s
            self._path.publish(Path(header=header, poses=list(self._poses)))

    def _tf_is_ours(self, child: str) -> bool:
        """A frame has one parent: odom -> camera would tear it off the robot that mounts it."""
        parent = self._parents.of(child) if self._parents is not None else None
        if parent is None or parent == self.settings.ros.frames.odom:
            return True
        self._node.get_logger().error(
            f'no TF {self.settings.ros.frames.odom} -> {child} is published: "{child}" '
            f'has the parent "{parent}" on /tf_static; set ros.extrinsics_from_tf (and '
            f'ros.frames.body) for the pose of the robot, or ros.publish_tf to false',
            throttle_duration_sec=10.0,
        )
        return False
