# SPDX-License-Identifier: Apache-2.0
"""Image files and image messages become the pixels that were stored."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.image_messages import (
    depth_image,
    fields_of_compressed,
    fields_of_image,
    view_image,
)
from mv_matcher_ros.files.images import (
    UnreadableImageError,
    image_files,
    read_depth,
    read_image,
    read_mask,
)

SHAPE = (6, 10)


def raw(encoding: str, pixels: np.ndarray, padding: int = 0, big: bool = False) -> Any:
    """An Image message whose rows are `padding` bytes longer than their pixels."""
    stored = pixels.astype(pixels.dtype.newbyteorder('>' if big else '<'))
    rows = stored.reshape(len(stored), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(
        encoding=encoding,
        height=pixels.shape[0],
        width=pixels.shape[1],
        step=rows.shape[1],
        is_bigendian=int(big),
        data=rows.ravel(),
    )


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tiff'])
@pytest.mark.parametrize('shape', [SHAPE, (*SHAPE, 3)])
def test_grey_stays_grey_and_colour_is_bgr(
    tmp_path: Path, rng: np.random.Generator, suffix: str, shape: tuple[int, ...]
) -> None:
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f'a{suffix}'
    cv2.imwrite(str(path), image)
    read = read_image(path)
    np.testing.assert_array_equal(read, image)
    assert read.dtype == np.uint8
    assert not read.flags.writeable


def test_transparency_is_dropped_and_16_bits_are_scaled(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, (*SHAPE, 4), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    np.testing.assert_array_equal(read_image(tmp_path / 'a.png'), image[:, :, :3])
    deep = np.linspace(0, 65535, 60).reshape(SHAPE).astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'b.png'), deep)
    expected = np.rint(deep.astype(np.float64) * 255 / 65535).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / 'b.png'), expected)


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
@pytest.mark.parametrize('kept', [0.0, 0.3, 0.7, 0.98])
def test_cut_images_are_unreadable(
    tmp_path: Path, rng: np.random.Generator, suffix: str, kept: float
) -> None:
    """Decoders fill the missing part of a cut image with grey; a tracker must not see that."""
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    _, data = cv2.imencode(suffix, image)
    path = tmp_path / f'cut{suffix}'
    path.write_bytes(data.tobytes()[: int(kept * len(data))])
    with pytest.raises(UnreadableImageError, match='cut'):
        read_image(path)


def test_missing_image_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match='No such file'):
        read_image(tmp_path / 'none.png')


def test_natural_order(tmp_path: Path) -> None:
    for name in ('10.png', '9.png', 'a2b10.png', 'a2b9.png', '.hidden.png', 'note.txt'):
        (tmp_path / name).touch()
    assert [p.name for p in image_files(tmp_path)] == ['9.png', '10.png', 'a2b9.png', 'a2b10.png']


def test_depth_files(tmp_path: Path, rng: np.random.Generator) -> None:
    millimetres = rng.integers(0, 5000, SHAPE, dtype=np.uint16)
    millimetres[0, 0] = 0
    cv2.imwrite(str(tmp_path / 'mm.png'), millimetres)
    depth = read_depth(tmp_path / 'mm.png', 1000.0)
    np.testing.assert_array_equal(depth, millimetres.astype(np.float32) / 1000)
    with pytest.raises(CalibrationError, match='depth_scale'):
        read_depth(tmp_path / 'mm.png', None)
    metres = rng.uniform(0.1, 90.0, SHAPE).astype('<f4')
    metres[0, :3] = np.inf, np.nan, -1.0
    cv2.imwrite(str(tmp_path / 'f.png'), metres.view(np.uint8).reshape(*SHAPE, 4))
    read = read_depth(tmp_path / 'f.png', None)
    assert read[0, :3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(read[1:], metres[1:])
    np.save(tmp_path / 'f.npy', metres)
    np.testing.assert_array_equal(read_depth(tmp_path / 'f.npy', None), read)
    cv2.imwrite(str(tmp_path / 'grey.png'), np.zeros(SHAPE, np.uint8))
    with pytest.raises(UnreadableImageError, match='not a depth image'):
        read_depth(tmp_path / 'grey.png', 1000.0)


def test_masks(tmp_path: Path) -> None:
    mask = np.zeros((*SHAPE, 3), np.uint8)
    mask[2:, :, 1] = 255
    cv2.imwrite(str(tmp_path / 'm.png'), mask)
    read = read_mask(tmp_path / 'm.png', (10, 6))
    assert read.dtype == np.bool_
    assert not read[:2].any()
    assert read[2:].all()
    with pytest.raises(CalibrationError, match=r'mask is 10x6, but the camera is 20x6'):
        read_mask(tmp_path / 'm.png', (20, 6))
    with pytest.raises(CalibrationError, match=r'mask .*none\.png'):
        read_mask(tmp_path / 'none.png', (10, 6))


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ['mono8', '8UC1', 'bgr8', '8UC3', 'rgb8', 'bgra8', 'rgba8'])
def test_raw_messages(rng: np.random.Generator, encoding: str, padding: int) -> None:
    channels = {'m': 1, '8': int(encoding[3]) if encoding[0] == '8' else 0}.get(
        encoding[0], len(encoding) - 1
    )
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    expected = pixels if channels == 1 else pixels[:, :, :3]
    if encoding.startswith('rgb'):
        expected = expected[:, :, ::-1]
    np.testing.assert_array_equal(view_image(raw(encoding, pixels, padding), 't'), expected)


@pytest.mark.parametrize('big', [False, True])
def test_16_bit_messages_of_either_byte_order(rng: np.random.Generator, big: bool) -> None:
    pixels = rng.integers(0, 65536, SHAPE, dtype=np.uint16)
    expected = np.rint(pixels.astype(np.float64) * 255 / 65535).astype(np.uint8)
    np.testing.assert_array_equal(view_image(raw('mono16', pixels, 4, big), 't'), expected)
    depth = depth_image(raw('16UC1', pixels, 4, big), 't')
    np.testing.assert_array_equal(depth, pixels.astype(np.float32) / 1000)
    metres = rng.uniform(0.5, 9, SHAPE).astype(np.float32)
    metres[0, 0] = np.nan
    read = depth_image(raw('32FC1', metres, 8, big), 't')
    assert read[0, 0] == 0
    np.testing.assert_array_equal(read[1:], metres[1:])


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer_colours_come_out_right(pattern: str, bits: int) -> None:
    """A scene of one colour gives that colour whatever the pattern."""
    blue_green_red = (10, 100, 200)
    scale = 257 if bits == 16 else 1
    mosaic = np.zeros((8, 8), np.uint16 if bits == 16 else np.uint8)
    for i, letter in enumerate(pattern):
        mosaic[i // 2 :: 2, i % 2 :: 2] = blue_green_red['bgr'.index(letter)] * scale
    colour = view_image(raw(f'bayer_{pattern}{bits}', mosaic), 't')
    assert np.abs(colour[2:-2, 2:-2].astype(int) - blue_green_red).max() <= 1


@pytest.mark.parametrize(
    'encoding',
    ['mono8', 'mono16', 'rgb8', 'bgra8', 'rgba8', 'bayer_rggb8', 'bayer_gbrg8', 'uyvy', 'yuyv'],
)
def test_agrees_with_rosbags_image(rng: np.random.Generator, encoding: str) -> None:
    from rosbags import image

    channels = {'rgb8': 3, 'bgra8': 4, 'rgba8': 4, 'uyvy': 2, 'yuyv': 2}.get(encoding, 1)
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    dtype = np.uint16 if encoding == 'mono16' else np.uint8
    message = raw(encoding, rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype))
    target = 'mono8' if encoding.startswith('mono') else 'bgr8'
    expected = image.message_to_cvimage(message, target).astype(int)
    # The other one cuts 16 bits off, this one rounds.
    assert np.abs(view_image(message, 't').astype(int) - expected).max() <= (encoding == 'mono16')


def test_bad_messages() -> None:
    pixels = np.zeros(SHAPE, np.uint8)
    with pytest.raises(SourceError, match='/cam: image encoding "yolo" is unknown'):
        view_image(raw('yolo', pixels), '/cam')
    with pytest.raises(SourceError, match='32FC1 is a depth image'):
        view_image(raw('32FC1', pixels.astype(np.float32)), '/cam')
    with pytest.raises(SourceError, match='"mono8" is no depth image'):
        depth_image(raw('mono8', pixels), '/cam')
    short = raw('mono8', pixels)
    short.data = short.data[:-1]
    with pytest.raises(UnreadableImageError, match='too few for 10x6 mono8'):
        view_image(short, '/cam')
    narrow = raw('bgr8', np.zeros((*SHAPE, 3), np.uint8))
    narrow.step = 10
    with pytest.raises(UnreadableImageError, match='step 10'):
        view_image(narrow, '/cam')


def compressed(form: str, pixels: np.ndarray, suffix: str = '.png', head: bytes = b'') -> Any:
    _, data = cv2.imencode(suffix, pixels)
    return SimpleNamespace(format=form, data=np.frombuffer(head + data.tobytes(), np.uint8))


def test_compressed_messages(rng: np.random.Generator) -> None:
    colour = rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        view_image(compressed('rgb8; png compressed bgr8', colour), 't'), colour
    )
    grey = colour[:, :, 0]
    np.testing.assert_array_equal(view_image(compressed('mono8; png compressed', grey), 't'), grey)
    mosaic = compressed('bayer_rggb8; png compressed ', grey)
    expected = view_image(raw('bayer_rggb8', grey), 't')
    np.testing.assert_array_equal(view_image(mosaic, 't'), expected)
    broken = compressed('jpeg', colour, '.jpg')
    broken.data = broken.data[:100]
    with pytest.raises(UnreadableImageError):
        view_image(broken, 't')


def test_compressed_depth(rng: np.random.Generator) -> None:
    millimetres = rng.integers(1, 5000, SHAPE, dtype=np.uint16)
    expected = millimetres.astype(np.float32) / 1000
    header = struct.pack('<iff', 0, 0.0, 0.0)
    for form, head in (('16UC1; png compressed', b''), ('16UC1; compressedDepth png', header)):
        read = depth_image(compressed(form, millimetres, head=head), 't')
        np.testing.assert_array_equal(read, expected)
    # Inverse depth of image_transport: quantisation 100, at most 10 m.
    a = 100.0 * 101.0
    b = 1.0 - a / 10.0
    depth = rng.uniform(0.5, 9.0, SHAPE).astype(np.float32)
    quantised = (a / depth + b).astype(np.uint16)
    quantised[0, 0] = 0
    head = struct.pack('<iff', 0, a, b)
    read = depth_image(compressed('32FC1; compressedDepth png', quantised, head=head), 't')
    assert read[0, 0] == 0
    np.testing.assert_allclose(read[1:], depth[1:], rtol=0.01)
    with pytest.raises(UnreadableImageError, match='too few'):
        depth_image(SimpleNamespace(format='16UC1; compressedDepth', data=b'123'), 't')


def test_fields_round_trip(rng: np.random.Generator) -> None:
    for shape in (SHAPE, (*SHAPE, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(
            view_image(SimpleNamespace(**fields_of_image(image)), 't'), image
        )
        message = SimpleNamespace(**fields_of_compressed(image, 'png'))
        np.testing.assert_array_equal(view_image(message, 't'), image)
    depth = rng.uniform(0.5, 5, SHAPE).astype(np.float32)
    np.testing.assert_array_equal(
        depth_image(SimpleNamespace(**fields_of_image(depth)), 't'), depth
    )
