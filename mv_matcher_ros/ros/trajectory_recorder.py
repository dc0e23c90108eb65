# SPDX-License-Identifier: Apache-2.0
"""Writes down what the node publishes: a TUM file, latencies, rates, drops.

`python -m mv_matcher_ros.ros.trajectory_recorder --out DIR`, a process of its own, so that the
numbers are those of a subscriber and not of the node about itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.ros.dds_profile import apply_profile

_DEPTH = 1000
# Stamps of images that never got an answer must not pile up.
_SENT_KEPT = 2000


class TrajectoryRecorder:
    """Subscribes to odometry, state and camera_info and writes `odometry.tum` and `live.json`.

    Latency is the time from the publication of an image to the arrival of its odometry here. The
    image's time is that of its camera_info, which drivers publish with it: nothing large has to
    be received.

    Args:
        node: rclpy node.
        out: folder to write into; made if missing.
        odometry, state, camera_info: topics.
    """

    def __init__(
        self,
        node: Any,
        out: Path,
        odometry: str = 'odometry',
        state: str = 'odometry/state',
        camera_info: str = 'camera_info',
    ) -> None:
        from nav_msgs.msg import Odometry
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CameraInfo
        from std_msgs.msg import String

        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._rows = (out / 'odometry.tum').open('w', encoding='utf-8')
        self._sent_ns: dict[int, int] = {}
        self._latencies_ms: list[float] = []
        self._node_latencies_ms: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._last_state: dict[str, Any] = {}
        self._answered_ns: list[int] = []
        self.odometry_messages = 0
        self.last_s: float | None = None
        on_state = _with_time_sent(self._on_state)
        self._heard = [
            node.create_subscription(Odometry, odometry, self._on_odometry, _DEPTH),
            node.create_subscription(String, state, on_state, _DEPTH),
        ]
        qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        note = _with_time_sent(self._on_camera_info)
        self._heard.append(node.create_subscription(CameraInfo, camera_info, note, qos))
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node = node
        self._ready = node.create_publisher(String, '~/ready', latched)
        self._is_ready = False

    def announce(self) -> None:
        """Say on `~/ready` that everything is heard, once it is; a player may wait for that."""
        from std_msgs.msg import String

        if not self._is_ready and all(self._has_publisher(one) for one in self._heard):
            self._is_ready = True
            self._ready.publish(String(data='ready'))

    def _has_publisher(self, subscription: Any) -> bool:
        if hasattr(subscription, 'get_publisher_count'):  # since Kilted: those that are matched
            return bool(subscription.get_publisher_count())
        return bool(self._node.count_publishers(subscription.topic_name))

    def _on_camera_info(self, message: Any, sent_ns: int) -> None:
        from mv_matcher_ros.ros.messages import stamp_ns

        self._sent_ns[stamp_ns(message.header.stamp)] = sent_ns
        if len(self._sent_ns) > _SENT_KEPT:
            del self._sent_ns[next(iter(self._sent_ns))]

    def _on_odometry(self, message: Any) -> None:
        from mv_matcher_ros.files.trajectory import tum_row
        from mv_matcher_ros.ros.messages import matrix_from_pose, stamp_ns

        now_ns = time.time_ns()
        stamp = stamp_ns(message.header.stamp)
        sent_ns = self._sent_ns.pop(stamp, None)
        if sent_ns is not None:
            self._latencies_ms.append((now_ns - sent_ns) * 1e-6)
        self._rows.write(tum_row(stamp, matrix_from_pose(message.pose.pose)))
        self.odometry_messages += 1
        self.last_s = time.monotonic()

    def _on_state(self, message: Any, sent_ns: int) -> None:
        self._last_state = json.loads(message.data)
        self._statuses[self._last_state['status']] += 1
        self._node_latencies_ms.append(self._last_state['latency_ms'])
        self.last_s = time.monotonic()
        self._answered_ns.append(sent_ns)

    def summary(self) -> dict[str, Any]:
        """What was seen so far: counts, statuses, rate, latencies, the node's own counters."""
        times_ns = self._answered_ns
        span_s = (times_ns[-1] - times_ns[0]) * 1e-9 if len(times_ns) > 1 else 0.0
        return {
            'odometry_messages': self.odometry_messages,
            'answers': sum(self._statuses.values()),
            'statuses': dict(self._statuses),
            'metric': self._last_state.get('metric'),
            'rate_hz': round((len(times_ns) - 1) / span_s, 3) if span_s > 0 else None,
            'latency_ms': _percentiles(self._latencies_ms),
            'latency_in_node_ms': _percentiles(self._node_latencies_ms),
            'counters': self._last_state.get('counters', {}),
        }

    def close(self) -> None:
        """Write the summary and close the trajectory."""
        self._rows.close()
        text = json.dumps(self.summary(), indent=2)
        (self._out / 'live.json').write_text(text + '\n', encoding='utf-8')


def _with_time_sent(callback: Callable[[Any, int], None]) -> Callable[..., None]:
    """A subscription's callback that also learns when its message was sent, in ns since 1970."""
    from rclpy.subscription import Subscription

    def told(message: Any, info: Any) -> None:
        callback(message, int(info['source_timestamp']))

    def arrived(message: Any) -> None:
        callback(message, time.time_ns())

    # Before Iron only the arrival is known.
    return told if hasattr(Subscription, 'CallbackType') else arrived


def _percentiles(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return {'p50': None, 'p95': None, 'max': None, 'samples': 0}
    p50, p95 = (round(float(v), 3) for v in np.percentile(values, [50, 95]))
    return {'p50': p50, 'p95': p95, 'max': round(max(values), 3), 'samples': len(values)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('trajectory_recorder', description=__doc__.split('\n\n')[0])
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder for odometry.tum and live.json')
    add('--odometry', default='odometry', help='topic')
    add('--state', default='odometry/state', help='topic')
    add('--camera-info', default='camera_info', help='topic published with each image')
    add('--idle', type=float, default=5.0, help='end this many seconds after the last message')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Record until SIGINT, or until nothing comes any more; prints `live.json`."""
    apply_profile()
    try:
        import rclpy
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.utilities import remove_ros_args
    except ModuleNotFoundError:
        print(MissingDependencyError('rclpy', 'ros', 'the recorder'), file=sys.stderr)
        return 2
    given = list(sys.argv if arguments is None else ['trajectory_recorder', *arguments])
    options = _parser().parse_args(remove_ros_args(given)[1:])
    rclpy.init(args=given)
    node = rclpy.create_node('trajectory_recorder')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    recorder = TrajectoryRecorder(
        node, options.out, options.odometry, options.state, options.camera_info
    )
    try:
        while recorder.last_s is None or time.monotonic() - recorder.last_s < options.idle:
            executor.spin_once(timeout_sec=0.2)
            recorder.announce()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        recorder.close()
        rclpy.try_shutdown()
    print(json.dumps(recorder.summary()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
