# SPDX-License-Identifier: Apache-2.0
"""Estimates as ROS messages."""

from __future__ import annotations

import array
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Estimate, Status
from mv_matcher_ros.ros.standins import real_or_standin

_NS = 1_000_000_000
# Variance of what is not known; robot_localization reads zero as perfect.
UNKNOWN_VARIANCE = 1e6
# Word of the state topic for a frame that never reached the engine; the others are those of
# `Status`.
SKIPPED = 'SKIPPED'

_LEVELS = {Status.TRACKING: 0, Status.LOST: 2}  # OK, ERROR; everything else warns

_tf_transformations: Any = None


def _transformations() -> Any:
    """tf_transformations where it works (an old transforms3d does not), else its stand-in."""
    global _tf_transformations
    if _tf_transformations is None:
        _tf_transformations = real_or_standin(
            'tf_transformations', lambda module: module.quaternion_from_matrix(np.eye(4))
        )
    return _tf_transformations


def stamp_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(stamp.sec) * _NS + int(stamp.nanosec)


def time_message(nanoseconds: int) -> Any:
    """builtin_interfaces/Time of nanoseconds."""
    from builtin_interfaces.msg import Time

    seconds, rest = divmod(int(nanoseconds), _NS)
    return Time(sec=seconds, nanosec=rest)


def header_message(nanoseconds: int, frame: str) -> Any:
    """std_msgs/Header."""
    from std_msgs.msg import Header

    return Header(stamp=time_message(nanoseconds), frame_id=frame)


def pose_message(matrix: Array) -> Any:
    """geometry_msgs/Pose of a (4, 4) transform."""
    from geometry_msgs.msg import Point, Pose, Quaternion

    x, y, z = (float(v) for v in matrix[:3, 3])
    qx, qy, qz, qw = (float(v) for v in _transformations().quaternion_from_matrix(matrix))
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def transform_message(nanoseconds: int, parent: str, child: str, parent_from_child: Array) -> Any:
    """geometry_msgs/TransformStamped of a (4, 4) pose of `child` in `parent`."""
    from geometry_msgs.msg import TransformStamped, Vector3

    pose = pose_message(parent_from_child)
    message = TransformStamped(header=header_message(nanoseconds, parent), child_frame_id=child)
    p = pose.position
    message.transform.translation = Vector3(x=p.x, y=p.y, z=p.z)
    message.transform.rotation = pose.orientation
    return message


def matrix_from_transform(transform: Any) -> Array:
    """(4, 4) of a geometry_msgs/Transform."""
    return _matrix(transform.translation, transform.rotation)


def matrix_from_pose(pose: Any) -> Array:
    """(4, 4) of a geometry_msgs/Pose."""
    return _matrix(pose.position, pose.orientation)


def _matrix(t: Any, q: Any) -> Array:
    matrix: Array = np.array(_transformations().quaternion_matrix([q.x, q.y, q.z, q.w]))
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix


def _covariance(matrix: Array | None) -> list[float]:
    """36 numbers, row-major; both sides order x y z rx ry rz."""
    known = np.eye(6) * UNKNOWN_VARIANCE if matrix is None else np.asarray(matrix, np.float64)
    return [float(v) for v in known.ravel()]


def odometry_message(estimate: Estimate, odom: str, body: str) -> Any:
    """nav_msgs/Odometry: pose and covariance in `odom`, twist and its own in `body` (REP-105).

    Args:
        estimate: with a pose; what else it does not know gets `UNKNOWN_VARIANCE`.
        odom, body: names of the frames.
    """
    from nav_msgs.msg import Odometry

    assert estimate.odom_from_body is not None
    message = Odometry(header=header_message(estimate.stamp_ns, odom), child_frame_id=body)
    message.pose.pose = pose_message(estimate.odom_from_body)
    message.pose.covariance = _covariance(estimate.covariance)
    if estimate.twist is not None:
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = (
            float(v) for v in estimate.twist
        )
    known = None if estimate.twist is None else estimate.twist_covariance
    message.twist.covariance = _covariance(known)
    return message


def cloud_message(nanoseconds: int, frame: str, points: NDArray[np.float32]) -> Any:
    """sensor_msgs/PointCloud2 of (P, 3) points."""
    from sensor_msgs.msg import PointCloud2, PointField

    xyz = np.ascontiguousarray(points, '<f4').reshape(-1, 3)
    message = PointCloud2(header=header_message(nanoseconds, frame), height=1, width=len(xyz))
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate('xyz')
    ]
    message.point_step, message.row_step = 12, 12 * len(xyz)
    message.is_bigendian, message.is_dense = False, bool(np.isfinite(xyz).all())
    message.data = array.array('B', xyz.tobytes())
    return message


def state_message(
    estimate: Estimate, counters: Mapping[str, int], latency_ms: float, skipped: str = ''
) -> Any:
    """std_msgs/String with one line of JSON about one frame; every frame taken gets one.

    Keys: `stamp_ns` of the frame, `status` (a `Status`, or SKIPPED if the frame never reached the
    engine), `metric` (false: lengths have no unit, as in any mono odometry), `message`,
    `keyframe`, `latency_ms` from the image's arrival to its odometry, `stages_ms`, `counts` of the
    engine and `counters` of the node.

    Args:
        estimate: of the frame.
        counters: received, processed, dropped, … since the start.
        latency_ms: from the image's arrival.
        skipped: why the frame was not processed.
    """
    from std_msgs.msg import String

    state = {
        'stamp_ns': estimate.stamp_ns,
        'status': SKIPPED if skipped else estimate.status.value,
        'metric': estimate.metric,
        'message': skipped or estimate.message,
        'keyframe': estimate.is_keyframe,
        'latency_ms': round(latency_ms, 3),
        'stages_ms': {name: round(float(ms), 3) for name, ms in estimate.latency_ms.items()},
        'counts': {name: int(count) for name, count in estimate.counts.items()},
        'counters': dict(counters),
    }
    return String(data=json.dumps(state))


def diagnostics_message(
    stamp: Any,
    name: str,
    estimate: Estimate | None,
    problem: str,
    values: Mapping[str, object],
    idle: str = '',
    warnings: Sequence[str] = (),
) -> Any:
    """diagnostic_msgs/DiagnosticArray with one status.

    Args:
        stamp: builtin_interfaces/Time of now.
        name: of the node.
        estimate: the last one, None before the first.
        problem: what hinders the node just now; empty if nothing does.
        values: keys and values to list.
        idle: why the node does nothing, where that is as somebody wants it.
        warnings: what is not as it should be, and does not keep it from working.
    """
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    status = DiagnosticStatus(name=f'{name}: odometry', hardware_id='')
    level = 1 if estimate is None else _LEVELS.get(estimate.status, 1)
    summary = 'waiting for input' if estimate is None else estimate.status.value
    if estimate is not None and estimate.message:
        summary = f'{summary}: {estimate.message}'
    if idle:
        level, summary = 1, idle
    if warnings:
        level, summary = max(level, 1), '; '.join([summary, *warnings])
    if problem:
        level, summary = 2, f'{idle}; {problem}' if idle else problem
    status.level, status.message = bytes([level]), summary
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    message = DiagnosticArray(status=[status])
    message.header.stamp = stamp
    return message
