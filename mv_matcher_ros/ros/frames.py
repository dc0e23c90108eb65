# SPDX-License-Identifier: Apache-2.0
"""Messages of one time as a frame, checked against the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from mv_matcher_ros.datatypes import Camera, Frame, Rig, Sensor, View
from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.ros.conversions import depth_from_message, image_from_message
from mv_matcher_ros.ros.inputs import MessageSet


def frame_from_messages(
    taken: MessageSet, sensor: Sensor, rig: Rig, topics: Sequence[str], index: int
) -> Frame:
    """Frame of the images that belong together.

    Args:
        taken: messages in the order of `inputs.TOPICS`.
        sensor: which of them are images and which is depth.
        rig: the images must have the sizes of its cameras.
        topics: of the messages, named in errors.
        index: position in the stream.

    Raises:
        SourceError: an image cannot be read.
        CalibrationError: its size is not that of its camera_info, or depth is not registered to
            the image.
    """
    if sensor == 'rgbd':
        image = image_from_message(taken.images[0], topics[0])
        views: tuple[View, ...] = (View(image, depth_from_message(taken.images[1], topics[1])),)
    else:
        views = tuple(
            View(image_from_message(message, topic))
            for message, topic in zip(taken.images, topics, strict=True)
        )
    for view, camera, topic in zip(views, rig.cameras, topics, strict=False):
        _check_size(view, camera, topic)
    if sensor == 'rgbd' and views[0].depth is not None:
        depth, image = views[0].depth, views[0].image
        if depth.shape != image.shape[:2]:
            raise CalibrationError(
                f'{topics[1]}: depth is {depth.shape[1]}x{depth.shape[0]}, the image on '
                f'{topics[0]} is {image.shape[1]}x{image.shape[0]}: it must be registered to it'
            )
    return Frame(taken.stamp_ns, views, index)


def _check_size(view: View, camera: Camera, topic: str) -> None:
    height, width = view.image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise CalibrationError(
            f'{topic}: the image is {width}x{height}, but {camera.name} is for '
            f'{camera.width}x{camera.height}'
        )
