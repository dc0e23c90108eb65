# SPDX-License-Identifier: Apache-2.0
"""Outputs of the mapping node: TF, corrected path, landmarks, loops, state."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Status
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.session import Taken
from mv_matcher_ros.ros.messages import (
    cloud_message,
    header_message,
    pose_message,
    transform_message,
)
from mv_matcher_ros.ros.mounting import tf2

# Thousands of poses and points take tens of milliseconds to serialise.
_PERIOD_S = 1.0
_LEVELS = {Status.TRACKING: 0, Status.RELOCALISED: 0, Status.LOST: 2}
_LOOP_COLOUR, _LOOP_WIDTH = (0.9, 0.2, 0.6, 0.9), 0.01


class MapPublishers:
    """Publishes what a map says.

    Args:
        node: rclpy node.
        settings: of the node.

    Attributes:
        odom: name of the frame that keyframes come in.
    """

    def __init__(self, node: Any, settings: Settings) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from nav_msgs.msg import Path
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import PointCloud2
        from std_msgs.msg import String
        from visualization_msgs.msg import Marker

        self._node, self._settings = node, settings
        self.odom = settings.ros.frames.odom
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._path = node.create_publisher(Path, 'map_path', latched)
        self._landmarks = node.create_publisher(PointCloud2, '~/landmarks', latched)
        self._loops = node.create_publisher(Marker, '~/loops', latched)
        self._state = node.create_publisher(String, '~/state', 100)
        self._diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._published_s, self._changed = -_PERIOD_S, False
        self._pictures = (self._path, self._landmarks, self._loops)
        self._audience = [0, 0, 0]  # of each, when it was published
        self._tf: Any = None
        try:
            self._tf = tf2().TransformBroadcaster(node)
        except MvMatcherError as error:
            if settings.ros.publish_map_tf:
                node.get_logger().error(str(error))

    def change(self, settings: Settings) -> None:
        """Take settings that were changed while the node runs."""
        self._settings = settings

    @property
    def may_have_tf(self) -> bool:
        """Whether there is TF: something is said on it, or will be when that is asked for."""
        return self._tf is not None

    @property
    def has_tf(self) -> bool:
        """Whether there is TF, and something is said on it."""
        return self.may_have_tf and self._settings.ros.publish_map_tf

    def transform(self, stamp_ns: int, map_from_odom: Array) -> None:
        """map → odom, as of now."""
        if self.has_tf:
            parent = self._settings.ros.frames.map
            self._tf.sendTransform(transform_message(stamp_ns, parent, self.odom, map_from_odom))

    def publish(self, taken: Taken, world: Map) -> None:
        """What a keyframe brought; the map itself is shown now and then (`due`)."""
        from std_msgs.msg import String

        state = {
            'stamp_ns': taken.stamp_ns,
            'status': taken.status.value,
            'metric': world.metric,
            'message': taken.message,
            'counts': taken.counts,
        }
        self._state.publish(String(data=json.dumps(state)))
        self._changed = True
        if time.monotonic() - self._published_s > _PERIOD_S:
            self.show(taken.stamp_ns, world)

    def due(self) -> bool:
        """Whether the map is to be shown: it has changed since, or somebody has come who has not
        seen it. Says so once."""
        counts = [picture.get_subscription_count() for picture in self._pictures]
        came = any(now > then for now, then in zip(counts, self._audience, strict=True))
        self._audience = counts
        late = self._changed and time.monotonic() - self._published_s > _PERIOD_S
        self._changed = self._changed and not late
        return came or late

    def show(self, stamp_ns: int, world: Map, latch: bool = False) -> None:
        """Path, landmarks and loops of a map, to those who listen.

        Args:
            stamp_ns: of the messages.
            world: the map.
            latch: also for who comes later, when nobody may be there to ask `due`.
        """
        self._published_s, self._changed = time.monotonic(), False
        self._audience = [picture.get_subscription_count() for picture in self._pictures]
        name = self._settings.ros.frames.map
        header = header_message(stamp_ns, name)
        path, landmarks, loops = self._audience
        if path or latch:
            self._path.publish(self._poses(header, world))
        if landmarks or latch:
            points = world.points_in_map(np.arange(len(world.landmarks), dtype=np.int32))
            known = np.asarray(points[np.isfinite(points).all(1)], np.float32)
            self._landmarks.publish(cloud_message(stamp_ns, name, known))
        if loops or latch:
            self._loops.publish(self._lines(header, world))

    @staticmethod
    def _poses(header: Any, world: Map) -> Any:
        """nav_msgs/Path of the keyframes."""
        from geometry_msgs.msg import PoseStamped
        from nav_msgs.msg import Path

        poses = [
            PoseStamped(
                header=header_message(k.stamp_ns, header.frame_id),
                pose=pose_message(world.placed(k.key)[0]),
            )
            for k in world.keyframes.values()
        ]
        return Path(header=header, poses=poses)

    @staticmethod
    def _lines(header: Any, world: Map) -> Any:
        """visualization_msgs/Marker with a line for each loop."""
        from geometry_msgs.msg import Point
        from std_msgs.msg import ColorRGBA
        from visualization_msgs.msg import Marker

        marker = Marker(header=header, ns='loops', id=0, type=Marker.LINE_LIST, action=Marker.ADD)
        marker.scale.x = _LOOP_WIDTH
        marker.pose.orientation.w = 1.0
        red, green, blue, alpha = _LOOP_COLOUR
        marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
        for edge in world.edges:
            if edge.loop and edge.a in world.pose and edge.b in world.pose:
                for key in (edge.a, edge.b):
                    x, y, z = (float(v) for v in world.pose[key][:3, 3])
                    marker.points.append(Point(x=x, y=y, z=z))
        return marker

    def diagnose(
        self,
        last: Taken | None,
        problem: str,
        advice: str,
        values: Mapping[str, object],
        idle: str = '',
    ) -> None:
        """/diagnostics with one status.

        Args:
            last: what the last keyframe brought.
            problem: ERROR.
            advice: at least WARN.
            values: by key.
            idle: why nothing is done, where somebody wants it so: WARN.
        """
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

        name = self._node.get_fully_qualified_name()
        status = DiagnosticStatus(name=f'{name}: map', hardware_id='')
        level, summary = 1, 'waiting for keyframes'
        if last is not None:
            level = _LEVELS.get(last.status, 1)
            summary = f'{last.status.value}: {last.message}' if last.message else last.status.value
            values = {**values, **last.counts}
        if advice:
            level, summary = max(level, 1), f'{summary}; {advice}'
        if idle:
            level, summary = 1, idle
        if problem:
            level, summary = 2, f'{idle}; {problem}' if idle else problem
        status.level, status.message = bytes([level]), summary
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._diagnostics.publish(message)
