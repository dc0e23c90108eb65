# SPDX-License-Identifier: Apache-2.0
"""Input topics of the node: images of one time, and calibrations."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Sensor
from mv_matcher_ros.ros.messages import stamp_ns
from mv_matcher_ros.ros.standins import real_or_standin

# Relative names, to be remapped or put into a namespace: (image topics, camera_info topics) of
# each sensor.
TOPICS: dict[Sensor, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'mono': (('image',), ('camera_info',)),
    'stereo': (('left/image', 'right/image'), ('left/camera_info', 'right/camera_info')),
    'rgbd': (('image', 'depth'), ('camera_info',)),
}


# Of a depth camera whose images are not registered.
DEPTH_INFO = 'depth/camera_info'


def topics_of(sensor: Sensor, pairs: int = 1) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(image topics, camera_info topics); those of the second stereo pair `left_2/image`, …"""
    images, infos = TOPICS[sensor]
    for number in range(2, (pairs if sensor == 'stereo' else 1) + 1):
        images += tuple(name.replace('/', f'_{number}/') for name in TOPICS[sensor][0])
        infos += tuple(name.replace('/', f'_{number}/') for name in TOPICS[sensor][1])
    return images, infos


def mask_topics_of(sensor: Sensor, pairs: int = 1) -> tuple[str, ...]:
    """Masks of the only camera, or of the first one of each stereo pair: its features are used."""
    images = topics_of(sensor, pairs)[0]
    return tuple(name.replace('image', 'mask') for name in images[::2])


# The middleware drops in silence; when lossless, what is too much must get as far as the mailbox,
# where it is counted and answered.
_LOSSLESS_DEPTH = 200
_ARRIVALS_KEPT = 1000  # more than the diagnosis looks at, of any camera


@dataclass(frozen=True)
class MessageSet:
    """Images that belong together.

    Attributes:
        images: messages in the order of `topics_of`.
        stamp_ns: stamp of the first one.
        received_s: time.monotonic() when the set was complete.
    """

    images: tuple[Any, ...]
    stamp_ns: int
    received_s: float


class Arrival(NamedTuple):
    """When a message came, by time.monotonic() and by the node's clock, and its stamp."""

    received_s: float
    stamp_ns: int
    clock_ns: int


@dataclass
class Stream:
    """One input topic: its full name, how many messages came, their frame, and the last ones."""

    topic: str
    count: int = 0
    frame: str = ''
    arrivals: deque[Arrival] = field(default_factory=lambda: deque(maxlen=_ARRIVALS_KEPT))

    @property
    def stamp_ns(self) -> int | None:
        """Of the last message."""
        return self.arrivals[-1].stamp_ns if self.arrivals else None


def image_topic(node: Any, name: str, compressed: bool) -> str:
    """Full topic; transports are appended after remapping, as image_transport does."""
    topic: str = node.resolve_topic_name(name)
    if not compressed:
        return topic
    return f'{topic}/compressedDepth' if name == 'depth' else f'{topic}/compressed'


class Inputs:
    """Subscribes to what the sensor needs.

    Args:
        node: rclpy node.
        settings: of the node.
        deliver: called with each complete set in the executor's thread; must not block.

    Attributes:
        images, infos: the topics, in the order of `topics_of`, and of masks behind the images.
        masks: how many those are.
        camera_infos: the last CameraInfo of each, None before the first.
        sets: complete sets so far.
        complete: the last ones: time.monotonic() and the stamps of their images.
        incompatible_qos: name of the offending policy by topic.
        used: the CameraInfos that the engine was made from; empty before.
        raw: the images are not compressed.
    """

    def __init__(
        self, node: Any, settings: Settings, deliver: Callable[[MessageSet], None]
    ) -> None:
        self._node = node
        self._settings = settings
        self._deliver = deliver
        self.sets = 0
        self.incompatible_qos: dict[str, str] = {}
        self.complete: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=_ARRIVALS_KEPT)
        self.used: list[Any] = []
        images, infos = topics_of(settings.sensor, settings.stereo.pairs)
        self.raw = settings.ros.image_transport == 'raw'
        self.images = [Stream(image_topic(node, name, not self.raw)) for name in images]
        self.masks = 0
        if settings.ros.mask_topics:
            masks = mask_topics_of(settings.sensor, settings.stereo.pairs)
            self.images += [Stream(node.resolve_topic_name(name)) for name in masks]
            self.masks = len(masks)
        if settings.ros.calibration_file:
            infos = ()
        if settings.sensor == 'rgbd' and not settings.ros.depth_registered:
            infos = (*infos, DEPTH_INFO)
        self.infos = [Stream(node.resolve_topic_name(name)) for name in infos]
        self.camera_infos: list[Any] = [None] * len(self.infos)
        self._filters = real_or_standin('message_filters')
        self._subscriptions: list[Any] = []
        self._sync: Any = None
        self._subscribe()

    def _subscribe(self) -> None:
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        for index, stream in enumerate(self.infos):
            info = self._node.create_subscription(
                CameraInfo,
                stream.topic,
                lambda message, i=index: self._take_info(i, message),
                self._qos(),
                event_callbacks=self._events(stream.topic),
            )
            self._subscriptions.append(info)
        subscribers = []
        first_mask = len(self.images) - self.masks
        for number, stream in enumerate(self.images):
            subscriber = self._filters.Subscriber(
                self._node,
                Image if self.raw or number >= first_mask else CompressedImage,
                stream.topic,
                qos_profile=self._qos(),
                event_callbacks=self._events(stream.topic),
            )
            subscriber.registerCallback(self._count, stream)
            subscribers.append(subscriber)
            self._subscriptions.append(subscriber.sub)
        self._connect(subscribers)

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _connect(self, subscribers: list[Any]) -> None:
        """Images of several topics meet in a synchroniser."""
        if len(subscribers) == 1:
            subscribers[0].registerCallback(self._complete)
            return
        ros = self._settings.ros
        if ros.sync_slop_s > 0.0:
            self._sync = self._filters.ApproximateTimeSynchronizer(
                subscribers, ros.queue_size, ros.sync_slop_s
            )
        else:  # the approximate one wants differences below its slop, so 0 would match nothing
            self._sync = self._filters.TimeSynchronizer(subscribers, ros.queue_size)
        self._sync.registerCallback(self._complete)

    def _qos(self) -> Any:
        from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

        ros = self._settings.ros
        reliable = ros.lossless or ros.input_reliability == 'reliable'
        return QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=max(ros.queue_size, _LOSSLESS_DEPTH) if ros.lossless else ros.queue_size,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )

    def _events(self, topic: str) -> Any:
        try:
            from rclpy.event_handler import SubscriptionEventCallbacks
        except ImportError:  # Humble
            from rclpy.qos_event import SubscriptionEventCallbacks
        return SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._refuse_qos(topic, event)
        )

    def _refuse_qos(self, topic: str, event: Any) -> None:
        from rclpy.qos import qos_policy_name_from_kind

        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self.incompatible_qos[topic] = policy
        advice = (
            ': set ros.input_reliability to best_effort (and ros.lossless to false)'
            if 'RELIABILITY' in policy
            else ''
        )
        self._node.get_logger().error(
            f'{topic}: a publisher offers an incompatible QoS, policy {policy}; '
            f'nothing of it will be received{advice}'
        )

    def _take_info(self, index: int, message: Any) -> None:
        self.infos[index].count += 1
        self.camera_infos[index] = message

    def _count(self, message: Any, stream: Stream) -> None:
        stamp = stamp_ns(message.header.stamp)
        allowed_ns = self._settings.ros.clock_jump_s * 1e9
        jumped_back = stream.stamp_ns is not None and stream.stamp_ns - stamp > allowed_ns
        stream.count += 1
        stream.frame = message.header.frame_id
        clock_ns = self._node.get_clock().now().nanoseconds
        stream.arrivals.append(Arrival(time.monotonic(), stamp, clock_ns))
        if jumped_back and self._sync is not None:
            # What waits has stamps of a later time, and the synchroniser always throws the
            # smallest stamps away: it would drop everything that comes from now on.
            waiting = self._sync.queues[self.images.index(stream)]
            for later in [s for s in waiting if s > stamp]:
                waiting.pop(later, None)

    def _complete(self, *messages: Any) -> None:
        self.sets += 1
        stamps = tuple(stamp_ns(message.header.stamp) for message in messages)
        now_s = time.monotonic()
        self.complete.append((now_s, stamps))
        self._deliver(MessageSet(messages, stamps[0], now_s))

    @property
    def changed(self) -> set[str]:
        """Topics whose calibration is not the one in use."""
        return {
            stream.topic
            for stream, used, now in zip(self.infos, self.used, self.camera_infos, strict=False)
            if now is not None and not _same_calibration(used, now)
        }

    @property
    def unsynchronised(self) -> int:
        """Images of the first topic that found no partner so far (some may still wait)."""
        return self.images[0].count - self.sets


def _same_calibration(a: Any, b: Any) -> bool:
    return all(list(getattr(a, name)) == list(getattr(b, name)) for name in ('k', 'd', 'p')) and (
        (a.width, a.height, a.roi, a.binning_x, a.binning_y)
        == (b.width, b.height, b.roi, b.binning_x, b.binning_y)
    )
