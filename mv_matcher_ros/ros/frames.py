# SPDX-License-Identifier: Apache-2.0
"""Messages of one time as a frame, checked against the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Camera, Frame, Rig, Sensor, View
from mv_matcher_ros.errors import CalibrationError, GeometryError
from mv_matcher_ros.geometry.depth_registration import DepthRegistration
from mv_matcher_ros.ros.conversions import depth_from_message, image_from_message
from mv_matcher_ros.ros.inputs import MessageSet

Mask = NDArray[np.bool_]


def frame_from_messages(
    taken: MessageSet,
    sensor: Sensor,
    rig: Rig,
    topics: Sequence[str],
    index: int,
    masks: Sequence[Mask] = (),
    register: DepthRegistration | None = None,
) -> Frame:
    """Frame of the images that belong together.

    Args:
        taken: messages in the order of `inputs.topics_of`, then masks in that of `mask_topics_of`.
        sensor: which of them are images and which is depth.
        rig: the images must have the sizes of its cameras.
        topics: of the messages, named in errors.
        index: position in the stream.
        register: moves depth that is of a camera of its own.
        masks: that hold for every frame, of the cameras that `mask_topics_of` lists; or none.

    Raises:
        SourceError: an image cannot be read.
        CalibrationError: its size is not that of its camera_info, or depth or a mask is not
            registered to the image.
    """
    if sensor == 'rgbd':
        image = image_from_message(taken.images[0], topics[0])
        depth = depth_from_message(taken.images[1], topics[1])
        views = [View(image, _registered(depth, register, topics[1]))]
    else:
        views = [
            View(image_from_message(message, topic))
            for message, topic, _ in zip(taken.images, topics, rig.cameras, strict=False)
        ]
    for view, camera, topic in zip(views, rig.cameras, topics, strict=False):
        _check_size(view.image, camera, topic)
    if sensor == 'rgbd' and views[0].depth is not None:
        depth, image = views[0].depth, views[0].image
        if depth.shape != image.shape[:2]:
            raise CalibrationError(
                f'{topics[1]}: depth is {depth.shape[1]}x{depth.shape[0]}, the image on '
                f'{topics[0]} is {image.shape[1]}x{image.shape[0]}: it must be registered to it '
                '(or set ros.depth_registered to false)'
            )
    first = max(len(views), 2 if sensor == 'rgbd' else 1)
    found = [_mask(m, t) for m, t in zip(taken.images[first:], topics[first:], strict=True)]
    for layer in (list(masks), found):
        for number, mask in enumerate(layer):
            place = 2 * number  # the first camera of each stereo pair, or the only one
            _check_size(mask, rig.cameras[place], topics[first + number] if found else 'mask')
            before = views[place].mask
            together = mask if before is None else mask & before
            views[place] = replace(views[place], mask=together)
    return Frame(taken.stamp_ns, tuple(views), index)


def _registered(
    depth: NDArray[np.float32], register: DepthRegistration | None, topic: str
) -> NDArray[np.float32]:
    try:
        return depth if register is None else register(depth)
    except GeometryError as error:
        raise CalibrationError(f'{topic}: {error}') from None


def _mask(message: Any, topic: str) -> Mask:
    """(H, W) bool of a mask message, True where it is not black."""
    image = image_from_message(message, topic)
    return (image if image.ndim == 2 else image.max(axis=2)) > 0


def _check_size(image: NDArray[Any], camera: Camera, topic: str) -> None:
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise CalibrationError(
            f'{topic}: the image is {width}x{height}, but {camera.name} is for '
            f'{camera.width}x{camera.height}'
        )
