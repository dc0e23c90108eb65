# SPDX-License-Identifier: Apache-2.0
"""Pairs of clean views with an exact map between them: what the detector learns from.

Rendered tuples give views of one place with depth and pose, photos give views that a homography
connects. Both are the same each time they are asked for, so that a teacher is asked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.data.correspondence import Map, PosedView, by_depth, by_homography
from mv_matcher_ros.training.data.datasets import TupleDataset
from mv_matcher_ros.training.data.tuple_sources import read_photo
from mv_matcher_ros.worlds.mipmaps import Pixels


@dataclass(frozen=True)
class ViewPair:
    """Two views, without augmentation.

    Attributes:
        images: (2, H, W) uint8.
        forth, back: where points of the first view lie in the second, and the other way.
        name: where it comes from.
    """

    images: Pixels
    forth: Map
    back: Map
    name: str

    @property
    def both(self) -> tuple[Map, Map]:
        """The map of each view's points into the other view."""
        return self.forth, self.back


@dataclass(frozen=True)
class HomographyRange:
    """How far two views of a photo may differ.

    Attributes:
        shrink: range of photo pixels per pixel of the view (below 1: enlarged).
        zoom: largest factor between the two views.
        turn_deg: standard deviation of the turn between the views.
        tilt: largest perspective: share by which a corner moves.
        shift: largest displacement as a share of the view.
    """

    shrink: tuple[float, float] = (0.9, 3.0)
    zoom: float = 1.6
    turn_deg: float = 15.0
    tilt: float = 0.2
    shift: float = 0.25


class PhotoPairs:
    """Views of photos that homographies connect.

    Args:
        photos: image files.
        size: (width, height) of the views.
        variants: pairs of one photo.
        seed: of the homographies.
        limits: how far the views may differ.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        size: tuple[int, int],
        variants: int = 8,
        seed: int = 0,
        limits: HomographyRange | None = None,
    ) -> None:
        self._photos, self._size, self._seed = tuple(photos), size, seed
        self._limits = HomographyRange() if limits is None else limits
        self._variants = variants

    def __len__(self) -> int:
        return len(self._photos) * self._variants

    def pair(self, index: int) -> ViewPair:
        """Pair `index`: photo after photo, then their next variants.

        Raises:
            SourceError: a photo cannot be read.
        """
        path = self._photos[index % len(self._photos)]
        rng = np.random.default_rng((self._seed, 23, index))
        photo = _photo(path)
        width, height = self._size
        base = view_from_photo(photo.shape, self._size, self._limits, rng)
        views_from_photo = [base, second_view(self._size, self._limits, rng) @ base]
        if rng.random() < 0.5:
            views_from_photo.reverse()
        images = np.stack([_warped(photo, matrix, self._size) for matrix in views_from_photo])
        a, b = (torch.from_numpy(matrix) for matrix in views_from_photo)
        # What lies beyond the photo's edge is mirrored into the view and has no partner.
        forth = _within(by_homography(b @ a.inverse(), width, height), a.inverse(), photo.shape)
        back = _within(by_homography(a @ b.inverse(), width, height), b.inverse(), photo.shape)
        return ViewPair(images, forth, back, f'{path.name} {index // len(self._photos)}')


class TuplePairs:
    """Two views of each rendered tuple, shrunk to a width.

    Args:
        folder: shards of one split.
        width: of the views; that of the shards divided by a whole number.
        variants: pairs of one tuple.
        seed: which views.

    Raises:
        SourceError: no shards.
    """

    def __init__(self, folder: Path, width: int, variants: int = 1, seed: int = 0) -> None:
        self._tuples = TupleDataset(folder, 2, augmentation=None, seed=seed)
        self._width, self._variants = width, variants

    def __len__(self) -> int:
        return len(self._tuples) * self._variants

    def pair(self, index: int) -> ViewPair:
        """Pair `index`: tuple after tuple, then other views of them.

        Raises:
            SourceError: a broken shard, or of a size that is no multiple of the width.
        """
        number, variant = index % len(self._tuples), index // len(self._tuples)
        seen = self._tuples.tuple_at(number, variant)
        rendered = seen.images.shape[-1]
        if rendered % self._width:
            raise SourceError(
                f'tuples of {rendered} px cannot be shrunk evenly to {self._width} px: '
                f'choose {rendered} divided by a whole number'
            )
        factor = rendered // self._width
        images = np.stack([_shrunk(view[0].numpy(), factor) for view in seen.images])
        a, b = (
            PosedView(seen.depths[v], seen.intrinsics[v], seen.world_from_camera[v], factor)
            for v in (0, 1)
        )
        return ViewPair(images, by_depth(a, b), by_depth(b, a), f'{seen.world} {number} {variant}')


def _shrunk(image: NDArray[np.float32], factor: int) -> Pixels:
    """(H, W) in [0, 1] → (H / factor, W / factor) uint8, means of squares of pixels."""
    height, width = image.shape
    squares = image.reshape(height // factor, factor, width // factor, factor)
    return np.rint(255.0 * squares.mean((1, 3))).astype(np.uint8)


def view_from_photo(
    shape: tuple[int, ...],
    size: tuple[int, int],
    limits: HomographyRange,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(3, 3) of an upright part of the photo, in some scale."""
    rows, columns = shape[:2]
    width, height = size
    widest = min(columns / width, rows / height)
    low, high = (min(limit, widest) for limit in limits.shrink)
    shrink = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    left = rng.uniform(0.0, columns - shrink * width)
    top = rng.uniform(0.0, rows - shrink * height)
    return np.array([[1 / shrink, 0, -left / shrink], [0, 1 / shrink, -top / shrink], [0, 0, 1.0]])


def second_view(
    size: tuple[int, int], limits: HomographyRange, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(3, 3) second view from the first: turned, zoomed, tilted and shifted about its middle."""
    half_width, half_height = (0.5 * side for side in size)
    angle = np.deg2rad(rng.normal(0.0, limits.turn_deg))
    zoom = float(np.exp(rng.uniform(-1, 1) * np.log(limits.zoom)))
    turned = np.eye(3)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:2, :2] *= zoom
    # Where the view ends at ±1: shifted, and seen aslant.
    tilted = np.eye(3)
    tilted[:2, 2] = 2.0 * limits.shift * rng.uniform(-1, 1, 2)
    tilted[2, :2] = limits.tilt * rng.uniform(-1, 1, 2)
    pixels = np.diag([half_width, half_height, 1.0])
    middle = np.eye(3)
    middle[:2, 2] = half_width - 0.5, half_height - 0.5
    centred = pixels @ tilted @ np.linalg.inv(pixels) @ turned
    return np.asarray(middle @ centred @ np.linalg.inv(middle), np.float64)


def _warped(photo: Pixels, view_from_photo: NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    """The view, without aliasing: drawn larger, then shrunk."""
    width, height = size
    middle = np.array([0.5 * (width - 1), 0.5 * (height - 1), 1.0])
    here = np.linalg.inv(view_from_photo) @ middle
    scale = np.sqrt(abs(np.linalg.det(np.linalg.inv(view_from_photo)))) / abs(here[2]) ** 1.5
    factor = int(np.clip(np.ceil(scale), 1, 4))
    finer = np.diag([factor, factor, 1.0])
    finer[:2, 2] = 0.5 * (factor - 1)
    drawn = cv2.warpPerspective(
        photo,
        finer @ view_from_photo,
        (width * factor, height * factor),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8)


def _within(there: Map, photo_from_view: torch.Tensor, shape: tuple[int, ...]) -> Map:
    """The map, where the point lies on the photo."""
    on_photo = by_homography(photo_from_view, shape[1], shape[0])

    def found(xy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        place, seen = there(xy)
        return place, seen & on_photo(xy)[1]

    return found


@lru_cache(maxsize=128)
def _photo(path: Path) -> Pixels:
    """(H, W) uint8 grey."""
    image = read_photo(path)
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    return np.array(image, np.uint8)
