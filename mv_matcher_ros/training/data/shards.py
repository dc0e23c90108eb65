# SPDX-License-Identifier: Apache-2.0
"""Rendered tuples on disk: one zip file of JPEG images, PNG depths and a JSON list a shard.

Depth is kept as its inverse in 16 bits, in steps of the view's largest one / 65535: that is even
in disparity, which is what moves pixels. A file is written aside and renamed, so that a shard is
whole or not there.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.images import UnreadableImageError, decode
from mv_matcher_ros.worlds.mipmaps import Floats
from mv_matcher_ros.worlds.view_tuples import ViewTuple

FORMAT = 1
JPEG_QUALITY = 95
_LIST = 'tuples.json'
_STEPS = 65535


@dataclass(frozen=True)
class TupleEntry:
    """What a shard says of a tuple without its images.

    Attributes:
        seed: numbers it was made from.
        world: name of the place.
        baseline: video, wide or stereo.
        views: number of views.
        world_from_camera: (V, 4, 4) metres.
        intrinsics: (V, 3, 3) pixels.
        overlap: (V, V) share of a's points that b sees.
        inverse_depth_step: (V,) 1/m per unit of the stored depth images.
    """

    seed: tuple[int, ...]
    world: str
    baseline: str
    views: int
    world_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    overlap: Floats
    inverse_depth_step: NDArray[np.float64]


def write_shard(path: Path, tuples: Sequence[ViewTuple], seeds: Sequence[tuple[int, ...]]) -> None:
    """Write tuples into `path`, all or nothing.

    Raises:
        SourceError: the place cannot be written.
    """
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(aside, 'w', zipfile.ZIP_STORED) as archive:
            entries = [
                _write_tuple(archive, number, views, seed)
                for number, (views, seed) in enumerate(zip(tuples, seeds, strict=True))
            ]
            content = {'format': FORMAT, 'tuples': entries}
            archive.writestr(_member(_LIST), json.dumps(content))
        aside.replace(path)
    except OSError as error:
        raise SourceError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        aside.unlink(missing_ok=True)


def _write_tuple(
    archive: zipfile.ZipFile, number: int, views: ViewTuple, seed: tuple[int, ...]
) -> dict[str, Any]:
    steps = []
    for view, (image, depth) in enumerate(zip(views.images, views.depths, strict=True)):
        stored, step = encode_depth(depth)
        steps.append(step)
        for ending, pixels, options in (
            ('jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]),
            ('png', stored, [cv2.IMWRITE_PNG_COMPRESSION, 6]),
        ):
            data = cv2.imencode(f'.{ending}', pixels, options)[1].tobytes()
            archive.writestr(_member(_file(number, view, ending)), data)
    return {
        'seed': list(seed),
        'world': views.world,
        'baseline': views.baseline,
        'views': len(views.images),
        'world_from_camera': views.world_from_camera.tolist(),
        'intrinsics': views.intrinsics.tolist(),
        'overlap': np.round(views.overlap.astype(np.float64), 4).tolist(),
        'inverse_depth_step': steps,
    }


def _member(name: str) -> zipfile.ZipInfo:
    """A member without the time of day: the same seed gives the same bytes."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _file(number: int, view: int, ending: str) -> str:
    return f'{number:04d}/{view}.{ending}'


def encode_depth(depth: Floats) -> tuple[NDArray[np.uint16], float]:
    """(H, W) uint16 inverse depth of (H, W) metres, 0 where unknown, and 1/m per unit."""
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=known)
    step = float(inverse.max()) / _STEPS
    if step == 0.0:
        return np.zeros(depth.shape, np.uint16), 1.0
    stored = np.where(known, np.maximum(np.rint(inverse / step), 1.0), 0.0)
    return stored.astype(np.uint16), step


def decode_depth(stored: NDArray[np.generic], step: float) -> Floats:
    """(H, W) float32 metres, 0 where unknown, of `encode_depth`."""
    units = stored.astype(np.float64)
    found = np.divide(1.0 / step, units, out=np.zeros(units.shape), where=units > 0)
    return found.astype(np.float32)


class Shard:
    """One shard, open for reading tuples in any order.

    Args:
        path: file that `write_shard` made.

    Raises:
        SourceError: no such file, not a shard, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            content = json.loads(self._archive.read(_LIST))
            version = content['format']
            self.entries = tuple(_entry(item) for item in content['tuples'])
        except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise SourceError(f'{path}: not a shard of tuples ({error})') from None
        if version != FORMAT:
            raise SourceError(
                f'{path}: a shard of format {version}, this version reads {FORMAT}: render again'
            )

    def __len__(self) -> int:
        return len(self.entries)

    def images(self, number: int, views: Sequence[int]) -> list[NDArray[np.uint8]]:
        """(H, W) grey images of some views of tuple `number`."""
        return [self._pixels(number, view, 'jpg').astype(np.uint8) for view in views]

    def depths(self, number: int, views: Sequence[int]) -> list[Floats]:
        """(H, W) metres of some views of tuple `number`, 0 where unknown."""
        steps = self.entries[number].inverse_depth_step
        return [decode_depth(self._pixels(number, v, 'png'), float(steps[v])) for v in views]

    def close(self) -> None:
        """Give the file back."""
        self._archive.close()

    def _pixels(self, number: int, view: int, ending: str) -> NDArray[np.generic]:
        name = _file(number, view, ending)
        try:
            data = self._archive.read(name)
            return decode(data, f'{self.path}:{name}')
        except (OSError, KeyError, zipfile.BadZipFile, UnreadableImageError) as error:
            raise SourceError(
                f'{self.path}: tuple {number} cannot be read ({error}): delete the shard and '
                f'render it again'
            ) from None


def _entry(item: dict[str, Any]) -> TupleEntry:
    return TupleEntry(
        tuple(int(number) for number in item['seed']),
        str(item['world']),
        str(item['baseline']),
        int(item['views']),
        np.array(item['world_from_camera'], np.float64),
        np.array(item['intrinsics'], np.float64),
        np.array(item['overlap'], np.float32),
        np.array(item['inverse_depth_step'], np.float64),
    )
