# SPDX-License-Identifier: Apache-2.0
"""Pixels of sensor_msgs Image and CompressedImage messages, and back.

Works on any object with the fields of the message: of ROS 1 or ROS 2, out of a bag or live.
`step`, byte order and padding are respected.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.images import (
    UnreadableImageError,
    as_depth,
    as_view_image,
    decode,
    frozen,
)

# Channels and type of a pixel of each encoding, and how OpenCV turns it into grey or BGR (None: it
# is that). A Bayer pattern is named by its first two pixels in ROS, by the second row from the
# second column in OpenCV.
_ENCODINGS: dict[str, tuple[int, str, int | None]] = {
    'mono8': (1, 'u1', None),
    '8UC1': (1, 'u1', None),
    'mono16': (1, 'u2', None),
    '16UC1': (1, 'u2', None),
    '32FC1': (1, 'f4', None),
    'bgr8': (3, 'u1', None),
    '8UC3': (3, 'u1', None),
    'bgr16': (3, 'u2', None),
    'rgb8': (3, 'u1', cv2.COLOR_RGB2BGR),
    'rgb16': (3, 'u2', cv2.COLOR_RGB2BGR),
    'bgra8': (4, 'u1', cv2.COLOR_BGRA2BGR),
    '8UC4': (4, 'u1', cv2.COLOR_BGRA2BGR),
    'bgra16': (4, 'u2', cv2.COLOR_BGRA2BGR),
    'rgba8': (4, 'u1', cv2.COLOR_RGBA2BGR),
    'rgba16': (4, 'u2', cv2.COLOR_RGBA2BGR),
    'uyvy': (2, 'u1', cv2.COLOR_YUV2BGR_UYVY),
    'yuv422': (2, 'u1', cv2.COLOR_YUV2BGR_UYVY),
    'yuyv': (2, 'u1', cv2.COLOR_YUV2BGR_YUYV),
    'yuv422_yuy2': (2, 'u1', cv2.COLOR_YUV2BGR_YUYV),
} | {
    f'bayer_{pattern}{bits}': (1, f'u{bits // 8}', code)
    for pattern, code in {
        'rggb': cv2.COLOR_BayerBG2BGR,
        'bggr': cv2.COLOR_BayerRG2BGR,
        'gbrg': cv2.COLOR_BayerGR2BGR,
        'grbg': cv2.COLOR_BayerGB2BGR,
    }.items()
    for bits in (8, 16)
}
DEPTH_ENCODINGS = frozenset(('16UC1', 'mono16', '32FC1'))


def view_image(message: Any, what: str) -> NDArray[np.uint8]:
    """(H, W) grey or (H, W, 3) BGR uint8 of an Image or CompressedImage message.

    Args:
        message: anything with the fields of sensor_msgs/Image or sensor_msgs/CompressedImage.
        what: the topic, for messages.

    Raises:
        SourceError: an encoding that is no camera image.
        UnreadableImageError: the data are cut off or cannot be decoded.
    """
    if hasattr(message, 'format'):
        return _view_of_compressed(message, what)
    encoding = str(message.encoding)
    if encoding == '32FC1':
        raise SourceError(f'{what}: encoding 32FC1 is a depth image, not a camera image')
    pixels = _raw_pixels(message, what)
    code = _ENCODINGS[encoding][2]
    if code is not None:
        pixels = _converted(np.ascontiguousarray(pixels), code, what)
    return as_view_image(pixels, what)


def depth_image(message: Any, what: str) -> NDArray[np.float32]:
    """(H, W) float32 metres of a depth message (16UC1 millimetres, 32FC1 metres), 0 where unknown.

    Raises:
        SourceError: an encoding that is no depth image.
        UnreadableImageError: the data are cut off or cannot be decoded.
    """
    if hasattr(message, 'format'):
        return _depth_of_compressed(message, what)
    encoding = str(message.encoding)
    if encoding not in DEPTH_ENCODINGS:
        raise SourceError(
            f'{what}: encoding "{encoding}" is no depth image; known: 16UC1 (mm), 32FC1 (m)'
        )
    return as_depth(_raw_pixels(message, what), 1000.0, what)


def raw_form(message: Any, what: str) -> tuple[int, np.dtype[Any], int]:
    """How the pixels of a sensor_msgs/Image lie in its data: channels, type, bytes of a row.

    Args:
        message: of any encoding that is known.
        what: named in errors.

    Raises:
        SourceError: the encoding is unknown.
        UnreadableImageError: there are too few bytes for the size.
    """
    encoding = str(message.encoding)
    if encoding not in _ENCODINGS:
        raise SourceError(f'{what}: image encoding "{encoding}" is unknown')
    channels, kind, _ = _ENCODINGS[encoding]
    dtype = np.dtype(kind).newbyteorder('>' if message.is_bigendian else '<')
    width, height, step = int(message.width), int(message.height), int(message.step)
    row = width * channels * dtype.itemsize
    step = step or row  # some drivers leave step at zero
    size = len(message.data)
    if height <= 0 or width <= 0 or step < row or size < step * (height - 1) + row:
        raise UnreadableImageError(
            f'{what}: {size} bytes with step {step} are too few for {width}x{height} {encoding}'
        )
    return channels, dtype, step


def _raw_pixels(message: Any, what: str) -> NDArray[Any]:
    channels, dtype, step = raw_form(message, what)
    width, height = int(message.width), int(message.height)
    data = np.frombuffer(message.data, dtype=np.uint8)
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, channels * dtype.itemsize, dtype.itemsize)[: len(shape)]
    pixels = np.ndarray(shape, dtype, data, strides=strides)
    return pixels.astype(dtype.newbyteorder('='))


def _converted(pixels: NDArray[Any], code: int, what: str) -> NDArray[Any]:
    try:
        return cv2.cvtColor(pixels, code)
    except cv2.error:  # a row of 4:2:2 with half a pair, a mosaic of one pixel, of floats
        size = f'{pixels.shape[1]}x{pixels.shape[0]}'
        raise UnreadableImageError(
            f'{what}: {size} {pixels.dtype} pixels do not have the colours of their encoding'
        ) from None


def _view_of_compressed(message: Any, what: str) -> NDArray[np.uint8]:
    """JPEG and PNG of image_transport; `format` reads e.g. `bayer_rggb8; jpeg compressed bgr8`."""
    pixels: NDArray[Any] = decode(message.data, what)
    stored, _, rest = str(message.format).partition(';')
    code = _ENCODINGS.get(stored.strip(), (0, '', None))[2]
    if stored.startswith('bayer') and pixels.ndim == 2 and 'bgr8' not in rest and code is not None:
        pixels = _converted(pixels, code, what)
    return as_view_image(pixels, what)


def _depth_of_compressed(message: Any, what: str) -> NDArray[np.float32]:
    """PNG of image_transport `compressed`, or of `compressedDepth` with its header of 12 bytes.

    The header is an enumeration and two floats; 32FC1 is stored as inverse depth `a / depth + b`
    in 16 bits.
    """
    data = bytes(np.frombuffer(message.data, dtype=np.uint8))
    text = str(message.format)
    if 'compressedDepth' not in text:
        return as_depth(decode(data, what), 1000.0, what)
    if len(data) < 12:
        raise UnreadableImageError(f'{what}: {len(data)} bytes are too few for compressedDepth')
    _, a, b = struct.unpack('<iff', data[:12])
    pixels = decode(data[12:], what)
    if not text.startswith('32FC1'):
        return as_depth(pixels, 1000.0, what)
    if pixels.ndim != 2:
        raise UnreadableImageError(f'{what}: a depth image of {pixels.shape[2]} channels')
    quantised = pixels.astype(np.float32)
    with np.errstate(divide='ignore', invalid='ignore'):
        depth = np.float32(a) / (quantised - np.float32(b))
    return frozen(np.where((quantised > 0) & (depth > 0), depth, 0), np.float32)


def fields_of_image(pixels: NDArray[np.generic]) -> dict[str, Any]:
    """Fields of a raw Image message (all but the header) of grey, BGR or float32 depth pixels."""
    encodings = {(2, 'u1'): 'mono8', (3, 'u1'): 'bgr8', (2, 'u2'): '16UC1', (2, 'f4'): '32FC1'}
    data = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder('<'))
    return {
        'height': pixels.shape[0],
        'width': pixels.shape[1],
        'encoding': encodings[pixels.ndim, pixels.dtype.str[1:]],
        'is_bigendian': 0,
        'step': int(data.strides[0]),
        'data': data.reshape(-1).view(np.uint8),
    }


def fields_of_compressed(pixels: NDArray[np.uint8], form: str) -> dict[str, Any]:
    """Fields of a CompressedImage message (all but the header); `form` is `png` or `jpeg`."""
    encoding = 'mono8' if pixels.ndim == 2 else 'bgr8'
    _, data = cv2.imencode({'png': '.png', 'jpeg': '.jpg'}[form], pixels)
    return {'format': f'{encoding}; {form} compressed {encoding}', 'data': data.reshape(-1)}
