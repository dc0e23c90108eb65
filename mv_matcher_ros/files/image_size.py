# SPDX-License-Identifier: Apache-2.0
"""How large an encoded image says it is, before anything is decoded.

A few bytes may claim to be an image of gigabytes, and OpenCV makes room for it first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

Size = tuple[int, int]
# Markers of JPEG that begin a frame, and so hold the size (ITU T.81, table B.1).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_TYPES = {3: 'H', 4: 'I'}


def stored_size(data: memoryview) -> Size | None:
    """(width, height) of the bytes of a PNG, JPEG, BMP, PNM, WebP or TIFF; None: none of these.

    These are the forms that are read (`images.IMAGE_SUFFIXES`).
    """
    for magic, size in _FORMS.items():
        if re.match(magic, data, re.DOTALL):
            try:
                return size(data)
            except (struct.error, ValueError, IndexError):
                return None
    return None


def _png(data: memoryview) -> Size:
    width, height = struct.unpack_from('>II', data, 16)
    return width, height


def _jpeg(data: memoryview) -> Size:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError('no marker')
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD7 or marker == 0x01:  # filling, no content
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from('>HH', data, at + 5)
            return width, height
        (length,) = struct.unpack_from('>H', data, at + 2)
        at += 2 + max(length, 2)


def _bmp(data: memoryview) -> Size:
    (header,) = struct.unpack_from('<I', data, 14)
    width, height = struct.unpack_from('<HH' if header == 12 else '<ii', data, 18)
    return abs(width), abs(height)  # rows from above have a negative height


def _pnm(data: memoryview) -> Size:
    words = re.sub(rb'#[^\n]*', b' ', data[:4096]).split()
    return int(words[1]), int(words[2])


def _webp(data: memoryview) -> Size:
    form = bytes(data[12:16])
    if form == b'VP8X':
        low = struct.unpack_from('<HBHB', data, 24)
        return 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16)
    if form == b'VP8L':
        (bits,) = struct.unpack_from('<I', data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from('<HH', data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(data: memoryview) -> Size:
    order = '<' if data[:2] == b'II' else '>'
    (start,) = struct.unpack_from(f'{order}I', data, 4)
    (count,) = struct.unpack_from(f'{order}H', data, start)
    found: dict[int, int] = {}
    for entry in range(count):
        at = start + 2 + 12 * entry
        tag, kind = struct.unpack_from(f'{order}HH', data, at)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and kind in _TIFF_TYPES:
            (side,) = struct.unpack_from(order + _TIFF_TYPES[kind], data, at + 8)
            found[tag] = max(side, found.get(tag, 0))
    if len(found) != 2:
        raise ValueError('no size')
    return found[_TIFF_WIDTH], found[_TIFF_HEIGHT]


_FORMS: dict[bytes, Callable[[memoryview], Size]] = {
    rb'\x89PNG\r\n\x1a\n': _png,
    rb'\xff\xd8\xff': _jpeg,
    rb'BM': _bmp,
    rb'P[1-6]\s': _pnm,
    rb'RIFF....WEBP': _webp,
    rb'II\*\0|MM\0\*': _tiff,
}
