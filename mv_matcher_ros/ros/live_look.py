# SPDX-License-Identifier: Apache-2.0
"""A look at a running ROS system as the odometry sees it: what there is, and how it comes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.camera_info import camera_from_info, info_from_message
from mv_matcher_ros.files.image_messages import raw_form
from mv_matcher_ros.files.images import UnreadableImageError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.diagnosis import RECORDING_S
from mv_matcher_ros.ros.messages import stamp_ns
from mv_matcher_ros.ros.stopping import init_without_signals
from mv_matcher_ros.ros.topic_hints import COMPRESSED, RAW, published

_INFO = 'sensor_msgs/msg/CameraInfo'


@dataclass
class Heard:
    """One topic: how often it came, how old its stamps were, and the last message in words.

    Attributes:
        topic: full name.
        publishers: how many there are, and their QoS reliability.
        times_s: time.monotonic() of each message.
        ages_s: of their stamps when they arrived.
        words: what the last message was.
        fault: what is wrong with it; empty when nothing is.
        frame: its frame_id.
    """

    topic: str
    publishers: str = ''
    times_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    words: str = ''
    fault: str = ''
    frame: str = ''

    @property
    def rate_hz(self) -> float:
        """Messages a second; 0 with less than two."""
        if len(self.times_s) < 2:
            return 0.0
        return (len(self.times_s) - 1) / max(self.times_s[-1] - self.times_s[0], 1e-9)

    @property
    def age_s(self) -> float | None:
        """Median age of a stamp; None where there is none, or it is a recording's."""
        if not self.ages_s or abs(median(self.ages_s)) > RECORDING_S:
            return None
        return median(self.ages_s)


@dataclass
class LiveLook:
    """What was found.

    Attributes:
        middleware: RMW, domain, range of discovery, and the Fast DDS profile.
        nodes: full names of all others.
        images, infos: topics of cameras.
        frames: parent of each frame on /tf_static.
        clock: messages on /clock; None where nobody publishes it.
        said: (name, level, message) of each of our nodes by /diagnostics, the last one.
    """

    middleware: str
    nodes: list[str] = field(default_factory=list)
    images: list[Heard] = field(default_factory=list)
    infos: list[Heard] = field(default_factory=list)
    frames: dict[str, str] = field(default_factory=dict)
    clock: int | None = None
    said: dict[str, tuple[int, str]] = field(default_factory=dict)


def look(seconds: float) -> LiveLook:
    """Listen for some seconds, on a node of its own in the default context.

    Image topics are subscribed to as a camera's are by default, best effort; the first few.
    """
    apply_profile()
    init_without_signals([])
    import rclpy

    node = rclpy.create_node('mv_matcher_doctor')
    try:
        return _Looker(node).look(seconds)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class _Looker:
    def __init__(self, node: Any) -> None:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.utilities import get_rmw_implementation_identifier

        self._node = node
        # rclpy.spin_once would take the node up and down again for every message.
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        profile = os.environ.get('FASTDDS_DEFAULT_PROFILES_FILE', 'none')
        self._found = LiveLook(
            f'{get_rmw_implementation_identifier()}, '
            f'ROS_DOMAIN_ID {os.environ.get("ROS_DOMAIN_ID", "0")}, '
            f'{os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")}, profile {profile}'
        )

    def look(self, seconds: float) -> LiveLook:
        """Half of the time to discover, half of it to listen; what is slow comes in both."""
        self._listen_to_the_rest()
        self._spin(0.4 * seconds)
        found = self._found
        own = self._node.get_fully_qualified_name()
        names = self._node.get_node_names_and_namespaces()
        found.nodes = sorted({f'{space.rstrip("/")}/{name}' for name, space in names} - {own})
        found.images = [self._listen(t, kind) for kind in (RAW, COMPRESSED)
                        for t in published(self._node, kind)]  # fmt: skip
        found.infos = [self._listen(t, _INFO) for t in published(self._node, _INFO)]
        self._spin(0.6 * seconds)
        return found

    def _spin(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def _listen(self, topic: str, kind: str) -> Heard:
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        heard = Heard(topic, _offers(self._node.get_publishers_info_by_topic(topic)))
        type_, describe = {
            RAW: (Image, _image), COMPRESSED: (CompressedImage, _compressed),
            _INFO: (CameraInfo, _info),
        }[kind]  # fmt: skip

        def take(message: Any) -> None:
            now_ns = self._node.get_clock().now().nanoseconds
            heard.times_s.append(time.monotonic())
            heard.ages_s.append((now_ns - stamp_ns(message.header.stamp)) * 1e-9)
            heard.words, heard.fault = describe(message)
            heard.frame = message.header.frame_id

        self._node.create_subscription(type_, topic, take, qos_profile_sensor_data)
        return heard

    def _listen_to_the_rest(self) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
        from rosgraph_msgs.msg import Clock

        self._node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnosis, 50)
        self._node.create_subscription(Clock, '/clock', self._on_clock, qos_profile_sensor_data)
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            return
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(TFMessage, '/tf_static', self._on_tf, latched)

    def _on_diagnosis(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith((': odometry', ': map')):
                level = int.from_bytes(status.level, 'little')
                self._found.said[status.name] = (level, status.message)

    def _on_clock(self, message: Any) -> None:
        self._found.clock = (self._found.clock or 0) + 1

    def _on_tf(self, message: Any) -> None:
        for transform in message.transforms:
            self._found.frames[transform.child_frame_id] = transform.header.frame_id


def _offers(publishers: Sequence[Any]) -> str:
    kinds = sorted({p.qos_profile.reliability.name.lower().replace('_', ' ') for p in publishers})
    return f'{len(publishers)} publisher{"s" * (len(publishers) != 1)}, {", ".join(kinds)}'


def _image(message: Any) -> tuple[str, str]:
    fault = ''
    with contextlib.suppress(SourceError):  # cv_bridge may know an encoding that is not known here
        try:
            raw_form(message, 'image')
        except UnreadableImageError:
            fault = f'{len(message.data)} bytes are no image of that size'
    return f'{message.width}x{message.height} {message.encoding}', fault


def _compressed(message: Any) -> tuple[str, str]:
    return f'{message.format}, {len(message.data) // 1024} KiB', ''


def _info(message: Any) -> tuple[str, str]:
    words = f'{message.width}x{message.height} {message.distortion_model or "no distortion"}'
    try:
        camera = camera_from_info(info_from_message(message), 'camera_info')
    except CalibrationError as error:
        return words, str(error)
    return f'{words}, fx {camera.intrinsics[0]:.1f}', ''
