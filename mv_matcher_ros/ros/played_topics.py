# SPDX-License-Identifier: Apache-2.0
"""Where a recording is played to: publishers of its images, calibrations and mounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Frame
from mv_matcher_ros.ros.calibration import messages_from_rig
from mv_matcher_ros.ros.conversions import (
    compressed_from_depth,
    compressed_from_image,
    message_from_image,
)
from mv_matcher_ros.ros.inputs import image_topic, topics_of
from mv_matcher_ros.ros.messages import header_message, transform_message
from mv_matcher_ros.ros.mounting import tf2
from mv_matcher_ros.ros.topic_hints import listened_to
from mv_matcher_ros.runner import Source


class PlayedTopics:
    """Publishes the frames of a source on the topics of `inputs.topics_of`, and /tf_static.

    Args:
        node: rclpy node.
        source: recording.
        compressed: `jpeg` or `png`; empty: raw images. Depth is always PNG, in millimetres.
        frame_prefix: before the names of all frames.

    Attributes:
        images, infos: the publishers, in the order of `topics_of`.
        frames: names of the cameras' optical frames; the recording's own are not played.
    """

    def __init__(self, node: Any, source: Source, compressed: str, frame_prefix: str = '') -> None:
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        self._node = node
        self._rig = source.rig
        self._compressed = compressed
        images, infos = topics_of(source.sensor, len(source.rig.cameras) // 2)
        kind = CompressedImage if compressed else Image
        self.images = [
            node.create_publisher(kind, image_topic(node, name, bool(compressed)), 10)
            for name in images
        ]
        self.infos = [node.create_publisher(CameraInfo, topic, 10) for topic in infos]
        self._info_messages = messages_from_rig(source.rig)
        names = [topic.replace('/camera_info', '_camera') for topic in infos]
        if len(names) == 1:
            names = ['camera']
        self._prefix = frame_prefix
        self.frames = [frame_prefix + name for name in names]

    def broadcast_mounts(self, body_frame: str) -> None:
        """/tf_static, where the body is not the first camera, or there are several pairs."""
        if self._rig.body_axes != 'rep103' and len(self.frames) <= 2:
            return
        body_frame = self._prefix + body_frame
        self._broadcaster = tf2().StaticTransformBroadcaster(self._node)
        self._broadcaster.sendTransform(
            [
                transform_message(0, body_frame, frame, camera.body_from_camera)
                for frame, camera in zip(self.frames, self._rig.cameras, strict=True)
            ]
        )
        self._node.get_logger().info(f'/tf_static: {body_frame} -> {", ".join(self.frames)}')

    def messages(self, frame: Frame) -> list[Any]:
        """Image messages of a frame, in the order of the topics."""
        messages = []
        for view, name in zip(frame.views, self.frames, strict=True):
            header = header_message(frame.stamp_ns, name)
            if self._compressed:
                messages.append(compressed_from_image(view.image, self._compressed, header))
            else:
                encoding = 'mono8' if view.image.ndim == 2 else 'bgr8'
                messages.append(message_from_image(view.image, encoding, header))
            if view.depth is None:
                continue
            if self._compressed:
                messages.append(compressed_from_depth(view.depth, header))
            else:
                depth = np.ascontiguousarray(view.depth, np.float32)
                messages.append(message_from_image(depth, '32FC1', header))
        return messages

    def publish(self, stamp_ns: int, messages: Sequence[Any]) -> None:
        """Calibrations, then what `messages` made of the frame of this stamp, all but Nones."""
        for publisher, info, name in zip(
            self.infos, self._info_messages, self.frames, strict=True
        ):
            info.header = header_message(stamp_ns, name)
            publisher.publish(info)
        for publisher, message in zip(self.images, messages, strict=True):
            if message is not None:
                publisher.publish(message)

    def close(self) -> None:
        """Publish no more."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    def flush(self) -> None:
        """Wait until readers that acknowledge have everything."""
        from rclpy.duration import Duration

        for publisher in [*self.infos, *self.images]:
            publisher.wait_for_all_acked(Duration(seconds=2.0))

    def unheard(self) -> str:
        """Which images nobody subscribes to, and where some are awaited instead; or empty.

        Calibrations are not asked for: a node may have its own from a file.
        """
        deaf = [p.topic_name for p in self.images if p.get_subscription_count() == 0]
        if not deaf:
            return ''
        own = {publisher.topic_name for publisher in self._publishers}
        others = [topic for topic in listened_to(self._node) if topic not in own]
        hint = f' (images are awaited on {", ".join(others)})' if others else ''
        return f'nobody subscribes to {", ".join(deaf)}{hint}'

    def unmatched(self) -> bool:
        """Whether somebody is known but not matched yet: the first messages would be missed."""
        return any(
            p.get_subscription_count() < self._node.count_subscribers(p.topic_name)
            for p in self._publishers
        )

    @property
    def _publishers(self) -> list[Any]:
        return [*self.infos, *self.images]
