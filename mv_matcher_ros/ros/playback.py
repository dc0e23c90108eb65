# SPDX-License-Identifier: Apache-2.0
"""Playing a source of frames to topics: in real time, or lossless, as fast as the node answers."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.ros.handshake import Handshake
from mv_matcher_ros.ros.messages import time_message
from mv_matcher_ros.ros.played_topics import PlayedTopics
from mv_matcher_ros.runner import Source

_CLOCK_PERIOD_S = 0.02
_LAST_ANSWER_S = 5.0  # wait at the end, for the answers that are counted
_FIRST_ANSWER_S = 10.0  # the same where none came yet: a node that starts takes a while
_DISCOVERY_S = 1.0  # a node that is there is known by then
_SAY_S = 2.0  # waiting for longer than this is said
_LATE_S = 0.01  # a frame published later than this after its time was late


@dataclass(frozen=True)
class Playback:
    """How a recording is played.

    Attributes:
        rate: 1 is real time; not used when lossless.
        lossless: wait for the node's answer to every frame.
        ahead: frames under way without an answer; at most the node's `ros.queue_size`.
        clock: publish /clock.
        compressed: play CompressedImage, `jpeg` or `png`; empty: raw images.
        body_frame: parent of the cameras on /tf_static, where the recording knows its body.
        frame_prefix: before the names of that frame and of the cameras'.
        state_topic: where the node answers.
        wait_for: names of recorders that must say on `NAME/ready` that they hear the node.
        timeout_s: how long to wait for subscribers, and for an answer.
    """

    rate: float = 1.0
    lossless: bool = False
    ahead: int = 2
    clock: bool = False
    compressed: str = ''
    body_frame: str = 'base_link'
    frame_prefix: str = ''
    state_topic: str = 'odometry/state'
    wait_for: tuple[str, ...] = ()
    timeout_s: float = 60.0


class BagPlayer:
    """Publishes the frames of a source when it is time, and counts the node's answers.

    Args:
        node: rclpy node that nobody else spins.
        source: recording.
        playback: how.
    """

    def __init__(self, node: Any, source: Source, playback: Playback) -> None:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from rosgraph_msgs.msg import Clock
        from std_msgs.msg import String

        self._node = node
        self._source = source
        self._playback = playback
        self._topics = PlayedTopics(node, source, playback.compressed, playback.frame_prefix)
        self._clock = node.create_publisher(Clock, '/clock', 10) if playback.clock else None
        self._pending: list[int] = []
        self._published_ns: int | None = None
        self._answered_ns: int | None = None
        self.answers: Counter[str] = Counter()
        self.published = 0
        self.late = 0
        self.played_s = 0.0
        node.create_subscription(String, playback.state_topic, self._on_state, 1000)
        self._ready: set[str] = set()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for name in playback.wait_for:
            node.create_subscription(
                String, f'{name}/ready', lambda _, n=name: self._ready.add(n), latched
            )
        self._handshake = Handshake(node, playback.state_topic, lambda: None)
        # rclpy.spin_once would take the node up and down again for every message.
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._topics.broadcast_mounts(playback.body_frame)

    def play(self) -> None:
        """Publish everything.

        Raises:
            SourceError: nobody listens, no frame is answered, or (lossless) one is not.
        """
        self._wait_for_subscribers()
        first_ns: int | None = None
        start_s = 0.0
        for frame in self._source:
            messages = self._topics.messages(frame)
            if first_ns is None:
                first_ns, start_s = frame.stamp_ns, time.monotonic()
            if self._playback.lossless:
                self._wait_for_answers(self._playback.ahead - 1)
                self._pending.append(frame.stamp_ns)
            else:
                due_s = start_s + (frame.stamp_ns - first_ns) * 1e-9 / self._playback.rate
                self._sleep_until(due_s, frame.stamp_ns)
            self._publish_clock(frame.stamp_ns)
            self._topics.publish(frame.stamp_ns, messages)
            self.published += 1
            self._published_ns = frame.stamp_ns
        self._topics.flush()
        if self._playback.lossless:
            self._wait_for_answers(0)
        else:
            self._wait_for_the_last()
        self.played_s = time.monotonic() - start_s

    def _publish_clock(self, nanoseconds: int) -> None:
        if self._clock is None:
            return
        from rosgraph_msgs.msg import Clock

        self._clock.publish(Clock(clock=time_message(nanoseconds)))

    def _sleep_until(self, due_s: float, stamp_ns: int) -> None:
        """Wait for a frame's time; answers are read and the clock runs on meanwhile."""
        while (left_s := due_s - time.monotonic()) > 0.0:
            self._publish_clock(stamp_ns - round(left_s * self._playback.rate * 1e9))
            self._spin(min(left_s, _CLOCK_PERIOD_S))
        self.late += time.monotonic() - due_s > _LATE_S

    def _spin(self, timeout_s: float = 0.05) -> None:
        self._executor.spin_once(timeout_sec=timeout_s)

    def _wait_for_subscribers(self) -> None:
        """Wait until every topic has a listener, and whoever else must be there is there."""
        start_s, said = time.monotonic(), ''
        while lacking := self._lacking():
            waited_s = time.monotonic() - start_s
            if waited_s > self._playback.timeout_s:
                raise SourceError(
                    f'{lacking} after {self._playback.timeout_s:g} s: is the node running, for '
                    f'{self._source.sensor}, on the same topics and ROS_DOMAIN_ID?'
                )
            if waited_s > _SAY_S and lacking != said:
                said = lacking
                self._node.get_logger().info(
                    f'waiting for a node for {self._source.sensor}, at most '
                    f'{self._playback.timeout_s:g} s: {lacking}'
                )
            self._spin()

    def _lacking(self) -> str:
        """What hinders the start; empty when all are there."""
        unheard = self._topics.unheard()
        parts = [unheard] if unheard else []
        if self._playback.lossless and not self._handshake.is_sure:
            state = self._node.resolve_topic_name(self._playback.state_topic)
            parts.append(f'no node answers on {state}')
        parts += [f'{n} is not ready' for n in self._playback.wait_for if n not in self._ready]
        if not parts and self._topics.unmatched():
            parts.append('subscribers of other QoS, or not matched')
        return ' and '.join(parts)

    def _on_state(self, message: Any) -> None:
        state = json.loads(message.data)
        self.answers[state['status']] += 1
        self._answered_ns = state['stamp_ns']
        if not self._playback.lossless or state['stamp_ns'] not in self._pending:
            return
        if state['stamp_ns'] != self._pending[0]:
            raise SourceError(
                f'the node answered stamp {state["stamp_ns"]} before {self._pending[0]}, '
                f'so it dropped a frame: set its parameter ros.lossless'
            )
        self._pending.pop(0)

    def _wait_for_answers(self, most: int) -> None:
        """Wait until at most so many frames are under way."""
        deadline_s = time.monotonic() + self._playback.timeout_s
        while len(self._pending) > most:
            self._spin()
            if self._pending and self._topics.images[0].get_subscription_count() == 0:
                raise SourceError(
                    f'the node went away before it answered stamp {self._pending[0]} '
                    f'({self.published} frames published)'
                )
            if len(self._pending) > most and time.monotonic() > deadline_s:
                raise SourceError(
                    f'no answer to stamp {self._pending[0]} on {self._playback.state_topic} in '
                    f'{self._playback.timeout_s:g} s: is its parameter ros.lossless set?'
                    f'{self._words_of_the_node()}'
                )

    def _wait_for_the_last(self) -> None:
        """The newest frame wins, so the last one is answered, if somebody answers here at all.

        Raises:
            SourceError: frames were published, and none was answered.
        """
        start_s = time.monotonic()
        state = self._node.resolve_topic_name(self._playback.state_topic)
        while self._answered_ns != self._published_ns:
            patience_s = _LAST_ANSWER_S if self.answers else _FIRST_ANSWER_S
            if not self.answers and not self._node.count_publishers(state):
                patience_s = _DISCOVERY_S
            if time.monotonic() - start_s > min(patience_s, self._playback.timeout_s):
                break
            self._spin()
        if not self.published or self.answers:
            return
        if not self._node.count_publishers(state):
            raise SourceError(
                f'{self.published} frames were published, but nobody publishes {state}: whoever '
                'listened (RViz?) is no odometry node, or --state-topic has to name its topic'
            )
        raise SourceError(
            f'none of {self.published} frames was answered on {state}: see the log of the '
            f'node, or name its topic with --state-topic{self._words_of_the_node()}'
        )

    def _words_of_the_node(self) -> str:
        """What its diagnostics say, to be put behind an error."""
        return f'; the node says: {self._handshake.said}' if self._handshake.said else ''
