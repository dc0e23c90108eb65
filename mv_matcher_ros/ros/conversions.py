# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back.

The work is done by `files.image_messages`, which reads bags: an image that comes over a topic has
the same bytes as out of a recording, on every machine. An installed cv_bridge adds the encodings
it knows.
"""

from __future__ import annotations

import array
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.image_messages import depth_image, fields_of_compressed, view_image
from mv_matcher_ros.files.images import UnreadableImageError
from mv_matcher_ros.ros.standins import working_module

Image8 = NDArray[np.uint8]
Depth = NDArray[np.float32]
_DEPTH_HEADER_BYTES = 12  # of compressedDepth; zeros for 16UC1


def _swaps_bytes(module: ModuleType) -> None:
    """Raise unless this cv_bridge works with this numpy.

    One that was built for numpy 1 dies on numpy 2 with AttributeError, at import or only when it
    swaps bytes.
    """
    from sensor_msgs.msg import Image

    message = Image(height=1, width=1, encoding='16UC1', step=2, is_bigendian=1)
    message.data = array.array('B', [1, 2])
    if int(module.CvBridge().imgmsg_to_cv2(message, 'passthrough')[0, 0]) != 0x0102:
        raise ImportError('cv_bridge swaps bytes wrongly')


def image_from_message(message: Any, topic: str) -> Image8:
    """Image of a sensor_msgs Image or CompressedImage for the engine.

    Args:
        message: mono, bgr, rgb, bgra, rgba and bayer with 8 or 16 bits, 4:2:2 YUV, JPEG, PNG, and
            what else an installed cv_bridge turns into bgr8; any step and byte order.
        topic: named in errors.

    Returns:
        (H, W) grey or (H, W, 3) BGR uint8, read-only.

    Raises:
        SourceError: the encoding is none of those, or the data does not fit the size.
    """
    try:
        return view_image(message, topic)
    except UnreadableImageError:
        raise
    except SourceError:  # an encoding that is no camera image, or not known
        bridge = working_module('cv_bridge', _swaps_bytes)
        if bridge is None or not hasattr(message, 'encoding'):
            raise
        try:
            image: Image8 = bridge.CvBridge().imgmsg_to_cv2(message, 'bgr8')
        except Exception as error:  # cv_bridge raises its own and OpenCV's
            raise SourceError(f'{topic}: encoding "{message.encoding}": {error}') from None
        return image


def depth_from_message(message: Any, topic: str) -> Depth:
    """Depth of a sensor_msgs Image or CompressedImage.

    Args:
        message: 16UC1 millimetres or 32FC1 metres (REP-118), raw, as PNG, or as `compressedDepth`
            in PNG.
        topic: named in errors.

    Returns:
        (H, W) float32 metres, 0 where unknown.

    Raises:
        SourceError: another encoding, or the data does not fit the size.
    """
    if 'rvl' in getattr(message, 'format', '').lower():
        raise SourceError(f'{topic}: compressedDepth in RVL is not read; set its format to png')
    return depth_image(message, topic)


def message_from_image(image: NDArray[Any], encoding: str, header: Any) -> Any:
    """sensor_msgs/Image of an array.

    Args:
        image: (H, W) or (H, W, C); its type must be that of `encoding`.
        encoding: e.g. `mono8`, `bgr8`, `32FC1`.
        header: std_msgs/Header of the message.
    """
    from sensor_msgs.msg import Image

    message = Image(header=header, height=image.shape[0], width=image.shape[1], encoding=encoding)
    message.step = image.nbytes // image.shape[0]
    message.is_bigendian = int(image.dtype.str[0] == '>')
    # array.array is taken as it is; an ndarray would be checked value by value, 40 ms a VGA image.
    message.data = array.array('B', image.tobytes())
    return message


def compressed_from_image(image: NDArray[np.uint8], form: str, header: Any) -> Any:
    """sensor_msgs/CompressedImage of an array.

    Args:
        image: (H, W) grey or (H, W, 3) BGR.
        form: `jpeg` or `png`.
        header: std_msgs/Header of the message.
    """
    fields = fields_of_compressed(image, form)
    return _compressed(header, fields['format'], fields['data'].tobytes())


def compressed_from_depth(depth: NDArray[np.floating[Any]], header: Any) -> Any:
    """sensor_msgs/CompressedImage, `compressedDepth` as PNG, of a depth image.

    Args:
        depth: (H, W) metres; rounded to millimetres, 0 where unknown or beyond 65 m.
        header: std_msgs/Header of the message.
    """
    millimetres = np.rint(np.nan_to_num(depth, posinf=0.0, neginf=0.0) * 1e3)
    millimetres[(millimetres < 0) | (millimetres > np.iinfo(np.uint16).max)] = 0
    data = cv2.imencode('.png', millimetres.astype(np.uint16))[1].tobytes()
    return _compressed(header, '16UC1; compressedDepth png', bytes(_DEPTH_HEADER_BYTES) + data)


def _compressed(header: Any, form: str, data: bytes) -> Any:
    from sensor_msgs.msg import CompressedImage

    return CompressedImage(header=header, format=form, data=array.array('B', data))
