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
from typing import Any, NamedTuple

import numpy as np

from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.handshake import Handshake
from mv_matcher_ros.ros.inputs import TOPICS
from mv_matcher_ros.ros.messages import matrix_from_pose, stamp_ns
from mv_matcher_ros.ros.stopping import init, spin_until

# Of the first camera of any sensor.
CAMERA_INFOS = tuple(sorted({infos[0] for _, infos in TOPICS.values()}))
_DEPTH = 1000
# Stamps of images that never get an odometry must not pile up.
_UNMATCHED_KEPT = 2000
# After a signal: what was sent by then still counts, and this much silence says that all of it has
# been read; a node that goes on publishing does not keep the recorder alive.
_SILENCE_S = 0.3
_LAST_WORDS_S = 3.0
# Nothing came for this long: what is waited for is said, and again after as long.
_SAY_S = 5.0


class Times(NamedTuple):
    """When a message was sent, and when it arrived in this process, in ns since 1970."""

    sent_ns: int
    arrived_ns: int


class TrajectoryRecorder:
    """Subscribes to odometry, state and camera_info and writes `odometry.tum` and `live.json`.

    Latency is the time from the publication of an image to the arrival of its odometry in this
    process. The image's time is that of its camera_info, which drivers publish with it: nothing
    large has to be received. Both latencies, this one and that inside the node, are of the same
    frames: those of which camera_info, odometry and state were all received.

    Args:
        node: rclpy node.
        out: folder to write into; made if missing.
        odometry, state: topics.
        camera_info: topics; of several, whichever is published.
    """

    def __init__(
        self,
        node: Any,
        out: Path,
        odometry: str = 'odometry',
        state: str = 'odometry/state',
        camera_info: Sequence[str] = CAMERA_INFOS,
    ) -> None:
        from nav_msgs.msg import Odometry
        from rclpy.clock import Clock, ClockType
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CameraInfo
        from std_msgs.msg import String

        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._rows = (out / 'odometry.tum').open('w', encoding='utf-8')
        # By stamp: when the image was sent, when its odometry arrived, how long the node took.
        self._sent_ns: dict[int, float] = {}
        self._arrived_ns: dict[int, float] = {}
        self._in_node_ms: dict[int, float] = {}
        self._latencies_ms: list[float] = []
        self._node_latencies_ms: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._last_state: dict[str, Any] = {}
        self._answered_ns: list[int] = []
        self._first_sent_ns: int | None = None
        self._first_pose_ns: int | None = None
        self.odometry_messages = 0
        self.last_s: float | None = None
        self.heard_s = time.monotonic()
        on_odometry, on_state = _with_times(self._on_odometry), _with_times(self._on_state)
        node.create_subscription(Odometry, odometry, on_odometry, _DEPTH)
        node.create_subscription(String, state, on_state, _DEPTH)
        qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        on_info = _with_times(self._on_camera_info)
        for topic in camera_info:
            node.create_subscription(CameraInfo, topic, on_info, qos)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # A player may wait for this, see `Playback.wait_for`.
        ready = node.create_publisher(String, '~/ready', latched)
        self._handshake = Handshake(node, state, lambda: ready.publish(String(data='ready')))
        self._node = node
        self._awaited = [node.resolve_topic_name(topic) for topic in (odometry, state)]
        # A steady clock: with use_sim_time the node's own stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._reminder = node.create_timer(_SAY_S, self._say_what_is_missing, clock=steady)

    def _say_what_is_missing(self) -> None:
        """Until the first message: that nobody publishes, or what the node says of itself."""
        if self.last_s is not None:
            self._reminder.cancel()
            return
        silent = [topic for topic in self._awaited if not self._node.count_publishers(topic)]
        if silent:
            said = f'waiting: nobody publishes {", ".join(silent)}'
        else:
            words = self._handshake.said
            said = f'waiting: nothing on {self._awaited[0]} yet'
            said += f'; the node says: {words}' if words else ''
        self._node.get_logger().info(said)

    def _on_camera_info(self, message: Any, times: Times) -> None:
        if self._first_sent_ns is None:
            self._first_sent_ns = times.sent_ns
        self._measure(stamp_ns(message.header.stamp), self._sent_ns, times.sent_ns)

    def _on_odometry(self, message: Any, times: Times) -> None:
        from mv_matcher_ros.files.trajectory import tum_row

        stamp = stamp_ns(message.header.stamp)
        if self._first_pose_ns is None:
            self._first_pose_ns = times.arrived_ns
        self._measure(stamp, self._arrived_ns, times.arrived_ns)
        self._rows.write(tum_row(stamp, matrix_from_pose(message.pose.pose)))
        self.odometry_messages += 1
        self.last_s = time.monotonic()

    def _on_state(self, message: Any, times: Times) -> None:
        self._last_state = json.loads(message.data)
        self._statuses[self._last_state['status']] += 1
        self._measure(
            self._last_state['stamp_ns'], self._in_node_ms, self._last_state['latency_ms']
        )
        self.last_s = time.monotonic()
        self._answered_ns.append(times.sent_ns)

    def _measure(self, stamp: int, side: dict[int, float], value: float) -> None:
        """Note one number of a frame; whichever of the three is read last completes it."""
        self.heard_s = time.monotonic()
        side[stamp] = value
        if all(stamp in known for known in (self._sent_ns, self._arrived_ns, self._in_node_ms)):
            latency_ns = self._arrived_ns.pop(stamp) - self._sent_ns.pop(stamp)
            self._latencies_ms.append(latency_ns * 1e-6)
            self._node_latencies_ms.append(self._in_node_ms.pop(stamp))
        elif len(side) > _UNMATCHED_KEPT:
            del side[next(iter(side))]

    def summary(self) -> dict[str, Any]:
        """What was seen so far: counts, statuses, rate, latencies, the node's own counters."""
        times_ns = self._answered_ns
        span_s = (times_ns[-1] - times_ns[0]) * 1e-9 if len(times_ns) > 1 else 0.0
        first_ns, pose_ns = self._first_sent_ns, self._first_pose_ns
        # From the first camera_info, with which the first image comes, to the first pose.
        first_s = None
        if first_ns is not None and pose_ns is not None:
            first_s = round((pose_ns - first_ns) * 1e-9, 3)
        return {
            'first_pose_s': first_s,
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


def _with_times(callback: Callable[[Any, Times], None]) -> Callable[..., None]:
    """A subscription's callback that also learns when its message was sent and when it arrived."""
    from rclpy.subscription import Subscription

    def told(message: Any, info: Any) -> None:
        callback(message, Times(int(info['source_timestamp']), int(info['received_timestamp'])))

    def untold(message: Any) -> None:
        now_ns = time.time_ns()
        callback(message, Times(now_ns, now_ns))

    # Before Iron only the time of the callback is known.
    return told if hasattr(Subscription, 'CallbackType') else untold


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
    add(
        '--camera-info',
        action='append',
        help=f'topic published with each image; default: {" and ".join(CAMERA_INFOS)}',
    )
    add('--idle', type=float, default=5.0, help='end this many seconds after the last message')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM, or until nothing comes any more; prints `live.json`."""
    apply_profile()
    try:
        import rclpy
        from rclpy.utilities import remove_ros_args
    except ModuleNotFoundError:
        print(MissingDependencyError('rclpy', 'ros', 'the recorder'), file=sys.stderr)
        return 2
    given = list(sys.argv if arguments is None else ['trajectory_recorder', *arguments])
    options = _parser().parse_args(remove_ros_args(given)[1:])
    stop = init(given)
    node = rclpy.create_node('trajectory_recorder')
    recorder = TrajectoryRecorder(
        node,
        options.out,
        options.odometry,
        options.state,
        options.camera_info or CAMERA_INFOS,
    )

    def idle() -> bool:
        return recorder.last_s is not None and time.monotonic() - recorder.last_s > options.idle

    try:
        spin_until(node, lambda: stop.made or idle())
        end_s = time.monotonic() + _LAST_WORDS_S
        spin_until(node, lambda: time.monotonic() > min(recorder.heard_s + _SILENCE_S, end_s))
    finally:
        recorder.close()
        rclpy.try_shutdown()
    print(json.dumps(recorder.summary()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
