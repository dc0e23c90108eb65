# SPDX-License-Identifier: Apache-2.0
"""Images of every encoding, with padding and either byte order, as real ROS messages."""

from __future__ import annotations

import array
import struct
import sys
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.ros import conversions, standins
from mv_matcher_ros.ros.conversions import (
    depth_from_message,
    image_from_message,
    message_from_image,
)
from mv_matcher_ros.ros.messages import header_message

pytestmark = pytest.mark.ros

HEIGHT, WIDTH = 10, 14
BGR = np.empty((HEIGHT, WIDTH, 3), np.uint8)
BGR[...] = [200, 100, 20]
BGR[:5, :7] = [10, 60, 220]
GREY = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)


def image_message(
    pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False
) -> Image:
    """Message of pixels, each row followed by `padding` bytes of noise."""
    if big_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder('>'))
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=padded.shape[1])
    message.is_bigendian = int(big_endian)
    message.data = array.array('B', padded.tobytes())
    return message


def alpha(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full(pixels.shape[:2], 9, pixels.dtype)])


def mosaic(pattern: str) -> np.ndarray:
    """What a sensor of this pattern sees of BGR: ROS names the pattern by its first 2x2 pixels."""
    raw = np.empty((HEIGHT, WIDTH), np.uint8)
    for position, letter in enumerate(pattern):
        row, column = divmod(position, 2)
        raw[row::2, column::2] = BGR[row::2, column::2, 'bgr'.index(letter)]
    return raw


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize(
    ('encoding', 'pixels', 'expected'),
    [
        ('mono8', GREY, GREY),
        ('8UC1', GREY, GREY),
        ('bgr8', BGR, BGR),
        ('8UC3', BGR, BGR),
        ('rgb8', BGR[..., ::-1], BGR),
        ('bgra8', alpha(BGR), BGR),
        ('8UC4', alpha(BGR), BGR),
        ('rgba8', alpha(BGR[..., ::-1]), BGR),
        ('mono16', GREY.astype(np.uint16) * 257, GREY),
        ('16UC1', GREY.astype(np.uint16) * 257, GREY),
        ('rgb16', BGR[..., ::-1].astype(np.uint16) * 257, BGR),
    ],
)
def test_image_has_exactly_the_pixels_sent(
    encoding: str, pixels: np.ndarray, expected: np.ndarray, padding: int
) -> None:
    image = image_from_message(image_message(pixels, encoding, padding), '/camera/image')
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8
    assert not image.flags.writeable


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_patterns_are_named_by_their_first_pixels(pattern: str, bits: int) -> None:
    raw = mosaic(pattern) if bits == 8 else mosaic(pattern).astype(np.uint16) * 257
    image = image_from_message(image_message(raw, f'bayer_{pattern}{bits}'), '/image')
    for row, column in ((2, 3), (8, 11)):  # inside both areas of one colour
        np.testing.assert_allclose(image[row, column], BGR[row, column], atol=1)


@pytest.mark.parametrize(
    ('encoding', 'order'),
    [('yuv422_yuy2', (0, 1)), ('yuyv', (0, 1)), ('uyvy', (1, 0)), ('yuv422', (1, 0))],
)
def test_yuv422(encoding: str, order: tuple[int, int]) -> None:
    """Luma and chroma by BT.601 video range, written out for one flat colour."""
    blue, green, red = 200.0, 100.0, 20.0
    y = 16 + (65.738 * red + 129.057 * green + 25.064 * blue) / 256
    u = 128 + (-37.945 * red - 74.494 * green + 112.439 * blue) / 256
    v = 128 + (112.439 * red - 94.154 * green - 18.285 * blue) / 256
    pixels = np.empty((HEIGHT, WIDTH, 2), np.uint8)
    pixels[..., order[0]] = round(y)
    pixels[:, 0::2, order[1]], pixels[:, 1::2, order[1]] = round(u), round(v)
    image = image_from_message(image_message(pixels, encoding, padding=4), '/image')
    np.testing.assert_allclose(image[3, 3], [blue, green, red], atol=3)


def test_sixteen_bits_of_either_byte_order() -> None:
    pixels = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 311).reshape(HEIGHT, WIDTH)
    little = image_from_message(image_message(pixels, 'mono16'), '/image')
    big = image_from_message(image_message(pixels, 'mono16', big_endian=True), '/image')
    np.testing.assert_array_equal(little, big)
    assert little.max() > 150


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('padding', [0, 8])
def test_depth_is_in_metres_and_zero_where_unknown(padding: int, big_endian: bool) -> None:
    metres = np.linspace(0.5, 5.0, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    metres[0, :3] = [np.nan, np.inf, 0.0]
    depth = depth_from_message(image_message(metres, '32FC1', padding, big_endian), '/depth')
    np.testing.assert_array_equal(depth, np.where(np.isfinite(metres), metres, 0))
    millimetres = np.nan_to_num(metres * 1000, posinf=0.0).astype(np.uint16)
    depth = depth_from_message(image_message(millimetres, '16UC1', padding, big_endian), '/depth')
    np.testing.assert_allclose(depth, millimetres / 1000.0, rtol=1e-6)
    assert depth.dtype == np.float32


@pytest.mark.parametrize(
    ('message', 'says'),
    [
        (image_message(GREY, '64FC7'), '64FC7'),
        (image_message(GREY.astype(np.float32), '32FC1'), '32FC1'),
        (Image(height=4, width=4, encoding='mono8', step=4, data=b'123'), 'too few'),
        (Image(height=4, width=4, encoding='bgr8', step=4, data=bytes(100)), 'too few'),
        (Image(encoding='mono8'), '0x0'),
    ],
)
def test_what_is_no_image_is_refused_by_topic_name(message: Image, says: str) -> None:
    with pytest.raises(SourceError, match=f'/front/image.*{says}'):
        image_from_message(message, '/front/image')


def compressed(
    kind: str, extension: str, pixels: np.ndarray, head: bytes = b''
) -> CompressedImage:
    _, data = cv2.imencode(extension, pixels)
    return CompressedImage(format=kind, data=array.array('B', head + data.tobytes()))


def test_compressed_images() -> None:
    png = compressed('bgr8; png compressed bgr8', '.png', BGR)
    np.testing.assert_array_equal(image_from_message(png, '/image'), BGR)
    grey = compressed('mono8; png compressed mono8', '.png', GREY)
    np.testing.assert_array_equal(image_from_message(grey, '/image'), GREY)
    jpeg = image_from_message(compressed('rgb8; jpeg compressed bgr8', '.jpg', BGR), '/image')
    assert jpeg.shape == BGR.shape
    np.testing.assert_allclose(jpeg[2, 2], BGR[2, 2], atol=8)
    with pytest.raises(SourceError, match='/image'):
        image_from_message(CompressedImage(format='jpeg', data=b'not a jpeg'), '/image')


def test_compressed_depth() -> None:
    metres = np.linspace(0.5, 5.0, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    millimetres = (metres * 1000).astype(np.uint16)
    millimetres[0, 0] = 0
    head = struct.pack('<iff', 0, 0.0, 0.0)
    message = compressed('16UC1; compressedDepth png', '.png', millimetres, head)
    np.testing.assert_allclose(depth_from_message(message, '/d'), millimetres / 1000, rtol=1e-6)

    # compressed_depth_image_transport stores 32FC1 as inverse depth: q = a / depth + b.
    a, b = 100.0 * 101.0, 1.0 - 100.0 * 101.0 / 10.0
    inverse = (a / metres + b).astype(np.uint16)
    inverse[0, 0] = 0
    head = struct.pack('<iff', 0, a, b)
    depth = depth_from_message(
        compressed('32FC1; compressedDepth png', '.png', inverse, head), '/d'
    )
    assert depth[0, 0] == 0.0
    np.testing.assert_allclose(depth[1:], metres[1:], rtol=2e-3)
    with pytest.raises(SourceError, match='RVL'):
        depth_from_message(CompressedImage(format='16UC1; compressedDepth rvl'), '/d')


def test_written_image_is_read_again_and_is_fast() -> None:
    for pixels, encoding in ((BGR, 'bgr8'), (GREY, 'mono8'), (BGR[:, ::2], 'bgr8')):
        message = message_from_image(pixels, encoding, header_message(5, 'camera'))
        assert isinstance(message.data, array.array)  # an ndarray would cost 40 ms a VGA image
        np.testing.assert_array_equal(image_from_message(message, '/image'), pixels)
    depth = np.full((3, 4), 1.5, np.float32)
    message = message_from_image(depth, '32FC1', header_message(5, 'camera'))
    np.testing.assert_array_equal(depth_from_message(message, '/depth'), depth)


def _bridge(answer: Any) -> ModuleType:
    """A cv_bridge module with one method that answers."""
    module = ModuleType('cv_bridge')

    class CvBridge:
        def imgmsg_to_cv2(self, message: Any, desired_encoding: str) -> Any:
            return answer(message, desired_encoding)

    module.CvBridge = CvBridge  # type: ignore[attr-defined]
    return module


@pytest.fixture
def _fresh_choice() -> Any:
    standins.working_module.cache_clear()
    yield
    standins.working_module.cache_clear()


@pytest.mark.usefixtures('_fresh_choice')
def test_installed_cv_bridge_adds_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(message: Any, desired: str) -> Any:
        if desired == 'passthrough':
            return np.array([[0x0102]])
        assert (message.encoding, desired) == ('nv21', 'bgr8')
        return BGR

    monkeypatch.setitem(sys.modules, 'cv_bridge', _bridge(answer))
    assert image_from_message(image_message(GREY, 'nv21'), '/image') is BGR


@pytest.mark.usefixtures('_fresh_choice')
def test_broken_cv_bridge_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for numpy 1 it imports on numpy 2 and dies with AttributeError when it swaps bytes."""

    def answer(message: Any, desired: str) -> Any:
        raise AttributeError('`newbyteorder` was removed from the ndarray class')

    monkeypatch.setitem(sys.modules, 'cv_bridge', _bridge(answer))
    assert standins.working_module('cv_bridge', conversions._swaps_bytes) is None
    with pytest.raises(SourceError, match='nv21'):
        image_from_message(image_message(GREY, 'nv21'), '/image')
