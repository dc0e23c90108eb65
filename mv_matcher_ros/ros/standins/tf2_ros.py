# SPDX-License-Identifier: Apache-2.0
"""Stand-in for `tf2_ros`: broadcasters, listener, and a buffer for look-ups."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.ros.standins.tf_transformations import (
    quaternion_from_matrix,
    quaternion_matrix,
)

Matrix = NDArray[np.float64]
_CACHE_NS = 10_000_000_000  # tf2's default


class TransformException(Exception):  # noqa: N818 (the real package's name)
    """Root of what a look-up can raise."""


class LookupException(TransformException):
    """A frame is not known at all."""


class ConnectivityException(TransformException):
    """Both frames are known but not connected."""


class ExtrapolationException(TransformException):
    """The chain is not known at the time asked for."""


def _tf_message() -> Any:
    from tf2_msgs.msg import TFMessage

    return TFMessage


def _qos(depth: int, *, latched: bool) -> Any:
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile

    durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
    return QoSProfile(depth=depth, durability=durability, history=HistoryPolicy.KEEP_LAST)


class TransformBroadcaster:
    """Publishes on /tf."""

    def __init__(self, node: Any, qos: Any = None) -> None:
        self.pub_tf = node.create_publisher(_tf_message(), '/tf', qos or _qos(100, latched=False))

    def sendTransform(self, transform: Any) -> None:  # noqa: N802
        """Publish one TransformStamped or several."""
        several = list(transform) if isinstance(transform, (list, tuple)) else [transform]
        self.pub_tf.publish(_tf_message()(transforms=several))


class StaticTransformBroadcaster:
    """Publishes on /tf_static: all transforms so far, latched."""

    def __init__(self, node: Any, qos: Any = None) -> None:
        self.pub_tf = node.create_publisher(
            _tf_message(), '/tf_static', qos or _qos(1, latched=True)
        )
        self._sent: dict[str, Any] = {}

    def sendTransform(self, transform: Any) -> None:  # noqa: N802
        """Publish one TransformStamped or several, together with those sent before."""
        several = list(transform) if isinstance(transform, (list, tuple)) else [transform]
        self._sent.update({one.child_frame_id: one for one in several})
        self.pub_tf.publish(_tf_message()(transforms=list(self._sent.values())))


class _Edge:
    """Poses of one frame in its parent over time; a static one has a single pose without time."""

    def __init__(self, parent: str, cache_ns: int) -> None:
        self.parent = parent
        self._cache_ns = cache_ns
        self.static: Matrix | None = None
        self.stamps: list[int] = []
        self.poses: dict[int, Matrix] = {}

    def add(self, stamp_ns: int, parent_from_child: Matrix) -> None:
        if stamp_ns not in self.poses:
            insort(self.stamps, stamp_ns)
        self.poses[stamp_ns] = parent_from_child
        while self.stamps[-1] - self.stamps[0] > self._cache_ns:
            del self.poses[self.stamps.pop(0)]

    def at(self, stamp_ns: int) -> Matrix:
        """Pose at a time, interpolated between its neighbours."""
        if self.static is not None:
            return self.static
        if not self.stamps[0] <= stamp_ns <= self.stamps[-1]:
            raise ExtrapolationException(
                f'{self.parent}: asked for {stamp_ns} ns, known '
                f'from {self.stamps[0]} to {self.stamps[-1]}'
            )
        right = bisect_left(self.stamps, stamp_ns)
        after = self.stamps[right]
        if after == stamp_ns:
            return self.poses[after]
        before = self.stamps[right - 1]
        return _interpolate(
            self.poses[before], self.poses[after], (stamp_ns - before) / (after - before)
        )


def _interpolate(a: Matrix, b: Matrix, share: float) -> Matrix:
    """Straight line for the position, slerp for the rotation."""
    qa, qb = quaternion_from_matrix(a), quaternion_from_matrix(b)
    qb = -qb if float(qa @ qb) < 0 else qb
    angle = float(np.arccos(np.clip(qa @ qb, -1.0, 1.0)))
    if angle < 1e-9:
        rotation = quaternion_matrix(qa)
    else:
        rotation = quaternion_matrix(np.sin((1 - share) * angle) * qa + np.sin(share * angle) * qb)
    rotation[:3, 3] = (1 - share) * a[:3, 3] + share * b[:3, 3]
    return rotation


def _matrix(transform: Any) -> Matrix:
    t, q = transform.translation, transform.rotation
    matrix = quaternion_matrix([q.x, q.y, q.z, q.w])
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix


class Buffer:
    """Transforms by child frame, looked up along the tree.

    Args:
        cache_time: rclpy Duration for which they are kept; None: ten seconds.
        node: not used here.
    """

    def __init__(self, cache_time: Any = None, node: Any = None) -> None:
        self._cache_ns = _CACHE_NS if cache_time is None else int(cache_time.nanoseconds)
        self._edges: dict[str, _Edge] = {}
        self._lock = threading.Lock()

    def set_transform(self, transform: Any, authority: str) -> None:
        """Take one dynamic TransformStamped."""
        self._store(transform, static=False)

    def set_transform_static(self, transform: Any, authority: str) -> None:
        """Take one static TransformStamped."""
        self._store(transform, static=True)

    def _store(self, message: Any, *, static: bool) -> None:
        parent = message.header.frame_id.lstrip('/')
        child = message.child_frame_id.lstrip('/')
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        with self._lock:
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent:
                edge = self._edges[child] = _Edge(parent, self._cache_ns)
            if static:
                edge.static = _matrix(message.transform)
            else:
                edge.add(stamp_ns, _matrix(message.transform))

    def clear(self) -> None:
        """Forget everything but the static transforms."""
        with self._lock:
            self._edges = {c: e for c, e in self._edges.items() if e.static is not None}

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Any, timeout: Any = None
    ) -> Any:
        """TransformStamped that maps points of source to target; time zero: the newest.

        Raises:
            LookupException, ConnectivityException, ExtrapolationException: as the real package
                does.
        """
        from geometry_msgs.msg import TransformStamped

        target, source = target_frame.lstrip('/'), source_frame.lstrip('/')
        with self._lock:
            up, down = self._chain(source), self._chain(target)
            shared = next((frame for frame in up if frame in down), None)
            if shared is None:
                raise ConnectivityException(
                    f'"{target}" and "{source}" are not in the same tree of transforms'
                )
            chains = [chain[: chain.index(shared)] for chain in (up, down)]
            stamp_ns = int(time.nanoseconds) or self._newest_common(chains[0] + chains[1])
            root_from_source, root_from_target = (self._compose(c, stamp_ns) for c in chains)
        matrix = np.linalg.inv(root_from_target) @ root_from_source
        answer = TransformStamped()
        answer.header.frame_id, answer.child_frame_id = target, source
        answer.header.stamp.sec, answer.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        t, q = answer.transform.translation, answer.transform.rotation
        t.x, t.y, t.z = (float(v) for v in matrix[:3, 3])
        q.x, q.y, q.z, q.w = (float(v) for v in quaternion_from_matrix(matrix))
        return answer

    def _chain(self, frame: str) -> list[str]:
        """The frame and its ancestors, nearest first."""
        if frame not in self._edges and all(e.parent != frame for e in self._edges.values()):
            raise LookupException(f'"{frame}" does not exist in the tree of transforms')
        chain = [frame]
        while chain[-1] in self._edges and self._edges[chain[-1]].parent not in chain:
            chain.append(self._edges[chain[-1]].parent)
        return chain

    def _newest_common(self, frames: Sequence[str]) -> int:
        newest = [self._edges[f].stamps[-1] for f in frames if self._edges[f].static is None]
        return min(newest, default=0)

    def _compose(self, chain: Sequence[str], stamp_ns: int) -> Matrix:
        root_from_frame = np.eye(4)
        for frame in chain:
            root_from_frame = self._edges[frame].at(stamp_ns) @ root_from_frame
        return root_from_frame


class TransformListener:
    """Fills a buffer from /tf and /tf_static while the node is spun by its executor."""

    def __init__(self, buffer: Buffer, node: Any, *, spin_thread: bool = False) -> None:
        self._buffer = buffer
        self._node = node
        message = _tf_message()
        self.tf_sub = node.create_subscription(
            message, '/tf', self._dynamic, _qos(100, latched=False)
        )
        self.tf_static_sub = node.create_subscription(
            message, '/tf_static', self._static, _qos(100, latched=True)
        )

    def unregister(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self.tf_sub)
        self._node.destroy_subscription(self.tf_static_sub)

    def _dynamic(self, message: Any) -> None:
        for transform in message.transforms:
            self._buffer.set_transform(transform, 'default_authority')

    def _static(self, message: Any) -> None:
        for transform in message.transforms:
            self._buffer.set_transform_static(transform, 'default_authority')
