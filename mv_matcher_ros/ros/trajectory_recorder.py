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
from collections.abc import Sequence
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
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rclpy.subscription import Subscription
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
        self._span_s: list[float] = []
        self.odometry_messages = 0
        self.last_s: float | None = None
        node.create_subscription(Odometry, odometry, self._on_odometry, _DEPTH)
        node.create_subscription(String, state, self._on_state, _DEPTH)
        qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        # Before Iron a callback cannot learn when its message was sent: its arrival must do.
        tells = hasattr(Subscription, 'CallbackType')
        callback = self._on_sent if tells else self._on_info
        node.create_subscription(CameraInfo, camera_info, callback, qos)

    def _on_sent(self, message: Any, info: Any) -> None:
        self._note(message, int(info['source_timestamp']))

    def _on_info(self, message: Any) -> None:
        self._note(message, time.time_ns())

    def _note(self, message: Any, sent_ns: int) -> None:
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

    def _on_state(self, message: Any) -> None:
        self._last_state = json.loads(message.data)
        self._statuses[self._last_state['status']] += 1
        self._node_latencies_ms.append(self._last_state['latency_ms'])
        self.last_s = time.monotonic()
        self._span_s.append(self.last_s)

    def summary(self) -> dict[str, Any]:
        """What was seen so far: counts, statuses, rate, latencies, the node's own counters."""
        span_s = self._span_s[-1] - self._span_s[0] if len(self._span_s) > 1 else 0.0
        return {
            'odometry_messages': self.odometry_messages,
            'answers': sum(self._statuses.values()),
            'statuses': dict(self._statuses),
            'metric': self._last_state.get('metric'),
            'rate_hz': round((len(self._span_s) - 1) / span_s, 3) if span_s > 0 else None,
            'latency_ms': _percentiles(self._latencies_ms),
            'latency_in_node_ms': _percentiles(self._node_latencies_ms),
            'counters': self._last_state.get('counters', {}),
        }

    def close(self) -> None:
        """Write the summary and close the trajectory."""
        self._rows.close()
        text = json.dumps(self.summary(), indent=2)
        (self._out / 'live.json').write_text(text + '\n', encoding='utf-8')


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
        from rclpy.executors import ExternalShutdownException
        from rclpy.utilities import remove_ros_args
    except ModuleNotFoundError:
        print(MissingDependencyError('rclpy', 'ros', 'the recorder'), file=sys.stderr)
        return 2
    given = list(sys.argv if arguments is None else ['trajectory_recorder', *arguments])
    options = _parser().parse_args(remove_ros_args(given)[1:])
    rclpy.init(args=given)
    node = rclpy.create_node('trajectory_recorder')
    recorder = TrajectoryRecorder(
        node, options.out, options.odometry, options.state, options.camera_info
    )
    try:
        while recorder.last_s is None or time.monotonic() - recorder.last_s < options.idle:
            rclpy.spin_once(node, timeout_sec=0.2)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        recorder.close()
        rclpy.try_shutdown()
    print(json.dumps(recorder.summary()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
