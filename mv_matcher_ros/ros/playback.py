# SPDX-License-Identifier: Apache-2.0
"""Playing a source of frames to topics: in real time, or lossless, as fast as the node answers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Frame
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.ros.calibration import messages_from_rig
from mv_matcher_ros.ros.conversions import message_from_image
from mv_matcher_ros.ros.handshake import Handshake
from mv_matcher_ros.ros.inputs import TOPICS
from mv_matcher_ros.ros.messages import header_message, time_message, transform_message
from mv_matcher_ros.ros.mounting import tf2
from mv_matcher_ros.runner import Source

_CLOCK_PERIOD_S = 0.02
_LAST_ANSWER_S = 5.0  # wait at the end, for the answers that are counted
_LATE_S = 0.01  # a frame published later than this after its time was late


@dataclass(frozen=True)
class Playback:
    """How a recording is played.

    Attributes:
        rate: 1 is real time; not used when lossless.
        lossless: wait for the node's answer to every frame.
        ahead: frames under way without an answer; at most the node's `ros.queue_size`.
        clock: publish /clock.
        body_frame: parent of the cameras on /tf_static, where the recording knows its body.
        state_topic: where the node answers.
        wait_for: names of recorders that must say on `NAME/ready` that they hear the node.
        timeout_s: how long to wait for subscribers, and for an answer.
    """

    rate: float = 1.0
    lossless: bool = False
    ahead: int = 2
    clock: bool = False
    body_frame: str = 'base_link'
    state_topic: str = 'odometry/state'
    wait_for: tuple[str, ...] = ()
    timeout_s: float = 60.0


class BagPlayer:
    """Publishes the frames of a source on the topics of `inputs.TOPICS`, and /tf_static.

    Args:
        node: rclpy node that nobody else spins.
        source: recording.
        playback: how.
    """

    def __init__(self, node: Any, source: Source, playback: Playback) -> None:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CameraInfo, Image
        from std_msgs.msg import String

        self._node = node
        self._source = source
        self._playback = playback
        images, infos = TOPICS[source.sensor]
        self._images = [node.create_publisher(Image, topic, 10) for topic in images]
        self._infos = [node.create_publisher(CameraInfo, topic, 10) for topic in infos]
        self._clock = node.create_publisher(Clock, '/clock', 10) if playback.clock else None
        self._info_messages = messages_from_rig(source.rig)
        several = len(self._info_messages) > 1
        self._frames = ['left_camera', 'right_camera'] if several else ['camera']
        self._pending: list[int] = []
        self._published_ns: int | None = None
        self._answered_ns: int | None = None
        self.answers: Counter[str] = Counter()
        self.published = 0
        self.late = 0
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
        self._broadcast_mounts()

    def _broadcast_mounts(self) -> None:
        """/tf_static, where the body is another frame than the first camera."""
        if self._source.rig.body_axes != 'rep103':
            return
        self._broadcaster = tf2().StaticTransformBroadcaster(self._node)
        self._broadcaster.sendTransform(
            [
                transform_message(0, self._playback.body_frame, frame, camera.body_from_camera)
                for frame, camera in zip(self._frames, self._source.rig.cameras, strict=True)
            ]
        )

    def play(self) -> None:
        """Publish everything.

        Raises:
            SourceError: nobody listens, or (lossless) a frame is not answered.
        """
        self._wait_for_subscribers()
        first_ns: int | None = None
        start_s = 0.0
        for frame in self._source:
            messages = self._messages(frame)
            if first_ns is None:
                first_ns, start_s = frame.stamp_ns, time.monotonic()
            if self._playback.lossless:
                self._wait_for_answers(self._playback.ahead - 1)
                self._pending.append(frame.stamp_ns)
            else:
                due_s = start_s + (frame.stamp_ns - first_ns) * 1e-9 / self._playback.rate
                self._sleep_until(due_s, frame.stamp_ns)
            self._publish(frame, messages)
        self._flush()
        if self._playback.lossless:
            self._wait_for_answers(0)
        else:
            self._wait_for_the_last()

    def _messages(self, frame: Frame) -> list[Any]:
        messages = []
        for index, view in enumerate(frame.views):
            header = header_message(frame.stamp_ns, self._frames[index])
            encoding = 'mono8' if view.image.ndim == 2 else 'bgr8'
            messages.append(message_from_image(view.image, encoding, header))
            if view.depth is not None:
                depth = np.ascontiguousarray(view.depth, np.float32)
                messages.append(message_from_image(depth, '32FC1', header))
        return messages

    def _publish(self, frame: Frame, messages: Sequence[Any]) -> None:
        self._publish_clock(frame.stamp_ns)
        for publisher, info, camera in zip(
            self._infos, self._info_messages, self._frames, strict=True
        ):
            info.header = header_message(frame.stamp_ns, camera)
            publisher.publish(info)
        for publisher, message in zip(self._images, messages, strict=True):
            publisher.publish(message)
        self.published += 1
        self._published_ns = frame.stamp_ns

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
        deadline_s = time.monotonic() + self._playback.timeout_s
        while lacking := self._lacking():
            if time.monotonic() > deadline_s:
                raise SourceError(
                    f'{lacking} after {self._playback.timeout_s:g} s: is the node running, for '
                    f'{self._source.sensor}, on the same topics and ROS_DOMAIN_ID?'
                )
            self._spin()

    def _lacking(self) -> str:
        """What hinders the start; empty when all are there."""
        publishers = [*self._infos, *self._images]
        deaf = [p.topic_name for p in publishers if p.get_subscription_count() == 0]
        parts = [f'nobody subscribes to {", ".join(deaf)}'] if deaf else []
        if self._playback.lossless and not self._handshake.is_sure:
            state = self._node.resolve_topic_name(self._playback.state_topic)
            parts.append(f'no node answers on {state}')
        parts += [f'{n} is not ready' for n in self._playback.wait_for if n not in self._ready]
        # Somebody who is known but not matched yet would miss the first messages.
        if not parts and any(
            p.get_subscription_count() < self._node.count_subscribers(p.topic_name)
            for p in publishers
        ):
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
            if self._pending and self._images[0].get_subscription_count() == 0:
                raise SourceError(
                    f'the node went away before it answered stamp {self._pending[0]} '
                    f'({self.published} frames published)'
                )
            if len(self._pending) > most and time.monotonic() > deadline_s:
                raise SourceError(
                    f'no answer to stamp {self._pending[0]} on {self._playback.state_topic} in '
                    f'{self._playback.timeout_s:g} s: is its parameter ros.lossless set?'
                )

    def _wait_for_the_last(self) -> None:
        """The newest frame wins, so the last one is answered, if somebody answers here at all."""
        deadline_s = time.monotonic() + _LAST_ANSWER_S
        while self.answers and self._answered_ns != self._published_ns:
            self._spin()
            if time.monotonic() > deadline_s:
                return

    def _flush(self) -> None:
        from rclpy.duration import Duration

        for publisher in [*self._infos, *self._images]:
            publisher.wait_for_all_acked(Duration(seconds=2.0))
