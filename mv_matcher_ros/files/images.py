# SPDX-License-Identifier: Apache-2.0
"""Image, depth and mask files as the arrays of a `View`; grey stays grey, colour is BGR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.image_size import stored_size
from mv_matcher_ros.npy import array_from_npy

IMAGE_SUFFIXES = frozenset(
    ('.png', '.jpg', '.jpeg', '.bmp', '.pgm', '.ppm', '.tif', '.tiff', '.webp')
)
# No camera's image has more; decoding one takes up to eight bytes a pixel.
MOST_PIXELS = 1 << 26


class UnreadableImageError(SourceError):
    """One image of a recording cannot be decoded; the recording goes on without it."""


def is_image(path: Path) -> bool:
    """Whether the name says that this is an image and not a file that some system left behind."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')


def image_files(folder: Path) -> list[Path]:
    """Images of a folder in natural order: `9.png` before `10.png`."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if is_image(p)), key=lambda p: natural_key(p.name))


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that takes runs of digits as numbers."""
    parts: list[tuple[int, int | str]] = []
    run = ''
    for character in name + '\0':
        if run and character.isdecimal() != run[-1].isdecimal():
            parts.append((0, int(run)) if run[-1].isdecimal() else (1, run))
            run = ''
        run += character
    return tuple(parts)


def decode(data: bytes | NDArray[np.uint8], what: str) -> NDArray[np.generic]:
    """Pixels of an encoded image exactly as stored (depth, channels).

    Raises:
        UnreadableImageError: not an image, cut off, or larger than any camera's.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    size = stored_size(buffer.data)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise UnreadableImageError(
            f'{what}: says that it has {size[0]}x{size[1]} pixels; no more than {MOST_PIXELS} are '
            'decoded'
        )
    # OpenCV fills what is missing of a cut JPEG with grey and calls it a success; some versions do
    # so for PNG.
    head, tail = bytes(buffer[:4]), bytes(buffer[-4096:])
    cut = (head[:2] == b'\xff\xd8' and b'\xff\xd9' not in tail) or (
        head == b'\x89PNG' and b'IEND' not in tail
    )
    image = None
    if size is not None and not cut:
        try:
            image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        except cv2.error:
            image = None
    if image is None:
        raise UnreadableImageError(f'{what}: cannot be decoded as an image')
    return np.asarray(image)


def read_pixels(path: Path) -> NDArray[np.generic]:
    """Pixels of an image file exactly as stored.

    Raises:
        UnreadableImageError: missing, not an image, or cut off.
    """
    if path.suffix.lower() == '.npy':
        try:
            return array_from_npy(path.read_bytes())
        except (OSError, ValueError):
            raise UnreadableImageError(f'{path}: cannot be read as a numpy array') from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f'{path}: {error.strerror}') from None
    return decode(data, str(path))


def as_view_image(pixels: NDArray[np.generic], what: str) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 of stored pixels: transparency dropped, 16 bits scaled to 8.

    Raises:
        UnreadableImageError: a type of pixel that no camera image has.
    """
    if pixels.dtype == np.uint16:  # 65535 becomes 255, rounded
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UnreadableImageError(f'{what}: pixels are {pixels.dtype}, expected 8 or 16 bits')
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):  # grey, grey with transparency
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise UnreadableImageError(f'{what}: {pixels.shape[2]} channels are no camera image')
    return frozen(pixels, np.uint8)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W) grey or (H, W, 3) BGR uint8 of an image file.

    Raises:
        UnreadableImageError: missing, not an image, or cut off.
    """
    return as_view_image(read_pixels(path), str(path))


def as_depth(pixels: NDArray[np.generic], scale: float | None, what: str) -> NDArray[np.float32]:
    """(H, W) float32 metres of stored depth; 0 where unknown.

    Args:
        pixels: (H, W) uint16 in units of 1/scale metres; (H, W) floats in metres; or (H, W, 4)
            uint8, whose four bytes are one little-endian float32 in metres (TartanAir).
        scale: stored value of one metre, for uint16.
        what: file or topic, for messages.

    Raises:
        UnreadableImageError: another type of pixel.
        CalibrationError: whole numbers without a scale.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint8:
        depth = np.ascontiguousarray(pixels).view('<f4')[:, :, 0].astype(np.float32)
    elif pixels.ndim == 2 and pixels.dtype == np.uint16:
        if not scale:
            raise CalibrationError(f'{what}: depth in whole numbers needs "depth_scale"')
        depth = pixels.astype(np.float32) / np.float32(scale)
    elif pixels.ndim == 2 and np.issubdtype(pixels.dtype, np.floating):
        depth = pixels.astype(np.float32)
    else:
        raise UnreadableImageError(
            f'{what}: {pixels.dtype} of shape {pixels.shape} is not a depth image'
        )
    return frozen(np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)), np.float32)


def read_depth(path: Path, scale: float | None) -> NDArray[np.float32]:
    """(H, W) float32 metres of a depth file, 0 where unknown; see `as_depth`."""
    return as_depth(read_pixels(path), scale, str(path))


def read_mask(path: Path | str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool of a mask image, True where it is not black.

    Args:
        path: image file.
        size: (width, height) the mask must have.

    Raises:
        CalibrationError: the mask cannot be read or has another size than the camera.
    """
    try:
        pixels = read_pixels(Path(path))
    except UnreadableImageError as error:
        raise CalibrationError(f'mask {error}') from None
    if pixels.ndim == 3:  # a transparency channel says nothing about use
        pixels = pixels[:, :, :3].max(axis=2) if pixels.shape[2] > 2 else pixels[:, :, 0]
    height, width = pixels.shape
    if (width, height) != size:
        raise CalibrationError(
            f'{path}: mask is {width}x{height}, but the camera is {size[0]}x{size[1]}'
        )
    return frozen(pixels != 0, np.bool_)


def frozen(array: NDArray[Any], dtype: type) -> NDArray[Any]:
    """`array` contiguous and read-only: frames are shared between threads and sinks."""
    array = np.ascontiguousarray(array, dtype=dtype)
    array.setflags(write=False)
    return array
