# SPDX-License-Identifier: Apache-2.0
"""A camera and an outside observer of a node that runs in a process of its own.

What is published, when, with which stamps and with which bytes is up to the caller: drivers do
worse than any recording. What the node publishes is noted with the time at which it arrived.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Array, Frame
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.handshake import Handshake
from mv_matcher_ros.ros.messages import matrix_from_pose, stamp_ns
from mv_matcher_ros.ros.played_topics import PlayedTopics
from mv_matcher_ros.runner import Source

_DEPTH = 1000
_POLL_S = 0.002


@dataclass(frozen=True)
class Pose:
    """An odometry that arrived: stamp, time.monotonic(), (4, 4) pose, (6, 6) covariance."""

    stamp_ns: int
    arrived_s: float
    odom_from_body: Array
    covariance: Array


@dataclass(frozen=True)
class State:
    """A state that arrived: stamp, time.monotonic(), and what the node said."""

    stamp_ns: int
    arrived_s: float
    status: str
    message: str


class Wire:
    """Publishes as a camera does and hears what the node says, in a context of its own.

    Args:
        source: whose rig and sensor are published; frames need not be its own.

    Attributes:
        poses, states: what has arrived so far.
        map_keyframes: when the mapping node spoke, about once a second, and how many keyframes
            its map had.
    """

    def __init__(self, source: Source) -> None:
        apply_profile()
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from nav_msgs.msg import Odometry
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from std_msgs.msg import String

        self._source = source
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('wire', context=self._context)
        self.poses: list[Pose] = []
        self.states: list[State] = []
        self.map_keyframes: list[tuple[float, int]] = []
        self._mapping_said = False
        self._node.create_subscription(Odometry, 'odometry', self._on_pose, _DEPTH)
        self._node.create_subscription(String, 'odometry/state', self._on_state, _DEPTH)
        self._node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnosis, 10)
        self._camera = PlayedTopics(self._node, source, '')
        self._camera.broadcast_mounts('base_link')
        self._handshake = Handshake(self._node, 'odometry/state', lambda: None)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='wire', daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException, ShutdownException

        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

    def wait_for_node(
        self, alive: Callable[[], bool], mapping: bool = False, timeout_s: float = 60.0
    ) -> None:
        """Wait until the node hears the camera and is heard.

        Args:
            alive: whether its process runs; there is no use in waiting for a dead one.
            mapping: wait for a mapping node, too.
            timeout_s: at most.

        Raises:
            MvMatcherError: it is dead, or does not answer in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._lacks(mapping):
            if not alive():
                raise MvMatcherError('the node ended before it was ready')
            if time.monotonic() > deadline_s:
                raise MvMatcherError(
                    f'the node is not ready after {timeout_s:g} s: {self._camera.unheard()}'
                )
            time.sleep(_POLL_S)

    def _lacks(self, mapping: bool) -> bool:
        """Whether something is not there yet."""
        deaf = bool(self._camera.unheard()) or self._camera.unmatched()
        return deaf or not self._handshake.is_sure or (mapping and not self._mapping_said)

    def messages(self, frame: Frame, stamp: int) -> list[Any]:
        """Image messages of a frame with another stamp in ns, in the order of the topics."""
        return self._camera.messages(replace(frame, stamp_ns=stamp))

    def restart_camera(self) -> None:
        """The publishers go, and others come, as if the driver had been started again."""
        self._camera.close()
        self._camera = PlayedTopics(self._node, self._source, '')

    def publish(self, stamp: int, messages: Sequence[Any]) -> None:
        """Publish the calibrations with a stamp in ns, and the images that are not None."""
        self._camera.publish(stamp, messages)

    @contextlib.contextmanager
    def deaf_subscribers(self) -> Iterator[None]:
        """Somebody who subscribes to everything, reliably, and never reads."""
        import rclpy
        from nav_msgs.msg import Odometry, Path
        from rclpy.context import Context
        from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image, PointCloud2
        from std_msgs.msg import String

        context = Context()
        rclpy.init(context=context)
        node = rclpy.create_node('deaf', context=context)
        everything = QoSProfile(
            history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE, depth=1
        )
        for kind, topic in (
            (Odometry, 'odometry'),
            (Path, 'path'),
            (String, 'odometry/state'),
            (PointCloud2, 'odometry/landmarks'),
            (Image, 'odometry/tracks'),
        ):
            node.create_subscription(kind, topic, lambda message: None, everything)
        try:
            yield
        finally:
            node.destroy_node()
            rclpy.try_shutdown(context=context)

    def close(self) -> None:
        """Leave the wire."""
        import rclpy

        self._executor.shutdown()
        self._thread.join(5.0)
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _on_pose(self, message: Any) -> None:
        self.poses.append(
            Pose(
                stamp_ns(message.header.stamp),
                time.monotonic(),
                matrix_from_pose(message.pose.pose),
                np.asarray(message.pose.covariance, np.float64).reshape(6, 6),
            )
        )

    def _on_state(self, message: Any) -> None:
        said = json.loads(message.data)
        self.states.append(
            State(said['stamp_ns'], time.monotonic(), said['status'], said['message'])
        )

    def _on_diagnosis(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith(': map'):
                self._mapping_said = True
                said = {value.key: value.value for value in status.values}
                self.map_keyframes.append((time.monotonic(), int(said.get('keyframes', 0))))
