# SPDX-License-Identifier: Apache-2.0
"""The size that an image says it has is found before OpenCV makes room for it."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from mv_matcher_ros.files.image_size import stored_size
from mv_matcher_ros.files.images import IMAGE_SUFFIXES, MOST_PIXELS, UnreadableImageError, decode


@pytest.mark.parametrize('suffix', sorted(IMAGE_SUFFIXES))
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (7, 300), (257, 64)])
@pytest.mark.parametrize('colour', [False, True])
def test_it_is_that_of_the_decoded_image(
    suffix: str, height: int, width: int, colour: bool
) -> None:
    if (suffix == '.pgm') == colour and suffix in ('.pgm', '.ppm'):
        return
    shape = (height, width, 3) if colour else (height, width)
    data = cv2.imencode(suffix, np.full(shape, 7, np.uint8))[1].tobytes()
    assert stored_size(memoryview(data)) == (width, height)
    assert decode(data, 'x').shape[:2] == (height, width)


@pytest.mark.parametrize('option', [cv2.IMWRITE_JPEG_PROGRESSIVE, cv2.IMWRITE_JPEG_RST_INTERVAL])
def test_other_jpegs(option: int) -> None:
    data = cv2.imencode('.jpg', np.zeros((40, 30), np.uint8), [option, 1])[1].tobytes()
    exif = b'\xff\xe1' + struct.pack('>H', 60000) + bytes(59998)
    assert stored_size(memoryview(data)) == (30, 40)
    assert stored_size(memoryview(data[:2] + exif + data[2:])) == (30, 40)


def huge_png() -> bytes:
    """68 bytes that say they are three gigabytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)

    head = struct.pack('>IIBBBBB', 32000, 32000, 8, 2, 0, 0, 0)
    parts = (chunk(b'IHDR', head), chunk(b'IDAT', zlib.compress(bytes(9))), chunk(b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def test_what_says_it_is_larger_than_any_image_is_not_decoded() -> None:
    with pytest.raises(
        UnreadableImageError, match=f'it has 32000x32000 pixels; no more than {MOST_PIXELS} are'
    ):
        decode(huge_png(), 'x')


@given(some.binary(max_size=64), some.sampled_from([
    b'', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'BM', b'P5 ', b'RIFF1234WEBPVP8X',
    b'RIFF1234WEBPVP8L', b'RIFF1234WEBPVP8 ', b'II*\0', b'MM\0*',
]))  # fmt: skip
def test_any_bytes_have_a_size_or_none(data: bytes, magic: bytes) -> None:
    size = stored_size(memoryview(magic + data))
    assert size is None or len(size) == 2
