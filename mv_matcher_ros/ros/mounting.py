# SPDX-License-Identifier: Apache-2.0
"""Where the cameras sit on the robot, from TF, and who else has a say about their frames."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.ros.messages import matrix_from_transform
from mv_matcher_ros.ros.standins import real_or_standin

NO_TF2_MSGS = (
    'tf2_msgs is not installed, so there is no TF; in a ROS distribution: '
    'apt install ros-$ROS_DISTRO-tf2-msgs, with ROS from pip: interfaces/build_tf2_msgs.sh VENV'
)


_POLL_S = 0.002


def tf2() -> Any:
    """tf2_ros, or its stand-in.

    Raises:
        MvMatcherError: tf2_msgs is not installed.
    """
    try:
        import tf2_msgs.msg  # noqa: F401
    except ImportError:
        raise MvMatcherError(NO_TF2_MSGS) from None
    return real_or_standin('tf2_ros')


class CameraMounts:
    """Looks `body_from_camera` up in TF, once: listening stops when all are found.

    Args:
        node: rclpy node that is spun by another thread than the one that asks.
        body: name of the body frame.
        patience_s: how long a missing transform is nothing to complain about.

    Raises:
        MvMatcherError: tf2_msgs is not installed.
    """

    def __init__(self, node: Any, body: str, patience_s: float) -> None:
        self._tf2 = tf2()
        self.body = body
        self._patience_s = patience_s
        self._asked_s: float | None = None
        self._closed = False
        self._buffer = self._tf2.Buffer(node=node)
        self._listener = self._tf2.TransformListener(self._buffer, node)

    def look_up(self, cameras: Sequence[str]) -> list[Array] | str:
        """Mountings of all camera frames, if TF knows them by now.

        Args:
            cameras: names of the optical frames.

        Returns:
            (4, 4) `body_from_camera` of each; or what to complain about, empty while it is early.
        """
        from rclpy.time import Time

        if self._asked_s is None:
            self._asked_s = time.monotonic()
        found = []
        for camera in cameras:
            try:
                answer = self._buffer.lookup_transform(self.body, camera, Time())
            except self._tf2.TransformException as error:
                if time.monotonic() - self._asked_s < self._patience_s:
                    return ''
                return (
                    f'no transform {self.body} <- {camera} in TF ('
                    f'waited {self._patience_s:g} s and still wait): {error}'
                )
            found.append(matrix_from_transform(answer.transform))
        self.close()
        return found

    def close(self) -> None:
        """Listen no more."""
        if not self._closed:
            self._closed = True
            self._listener.unregister()


class MotionGuess:
    """Where something else says that the body is, on TF.

    Args:
        node: rclpy node that is spun by another thread than the one that asks.
        frame: in which the body's pose is known, and does not jump.
        wait_s: how long a pose that is not there yet is waited for.
        kept_s: how old the poses are that can be asked for.

    Attributes:
        frame: as given; may be changed.
        why: why the last pose asked for is not known; empty where it is.

    Raises:
        MvMatcherError: tf2_msgs is not installed.
    """

    def __init__(self, node: Any, frame: str, wait_s: float, kept_s: float = 10.0) -> None:
        from rclpy.duration import Duration

        self._tf2 = tf2()
        self.frame = frame
        self._wait_s = wait_s
        self._buffer = self._tf2.Buffer(Duration(seconds=kept_s), node=node)
        self._listener = self._tf2.TransformListener(self._buffer, node)
        self.why = ''

    def at(self, stamp_ns: int, body: str) -> Array | None:
        """(4, 4) guess_from_body at a time; None, and `why`, where TF does not know it in time."""
        from rclpy.time import Time

        deadline_s = time.monotonic() + self._wait_s
        while True:
            try:
                answer = self._buffer.lookup_transform(
                    self.frame, body, Time(nanoseconds=stamp_ns)
                )
            except self._tf2.TransformException as error:
                if time.monotonic() < deadline_s:
                    time.sleep(_POLL_S)
                    continue
                self.why = f'no motion guess {self.frame} <- {body} in TF: {error}'
                return None
            self.why = ''
            return matrix_from_transform(answer.transform)

    def clear(self) -> None:
        """Forget what was said: the clock was set back, and what comes now is older."""
        self._buffer.clear()

    def close(self) -> None:
        """Listen no more."""
        self._listener.unregister()


class StaticParents:
    """Parent of each frame on /tf_static; /tf is heavy on a robot, and mounts are static.

    Raises:
        MvMatcherError: tf2_msgs is not installed.
    """

    def __init__(self, node: Any) -> None:
        tf2()
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from tf2_msgs.msg import TFMessage

        self._parents: dict[str, str] = {}
        qos = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(TFMessage, '/tf_static', self._take, qos)

    def _take(self, message: Any) -> None:
        for transform in message.transforms:
            self._parents[transform.child_frame_id] = transform.header.frame_id

    def of(self, frame: str) -> str | None:
        """The parent of a frame, None if it has none."""
        return self._parents.get(frame)
