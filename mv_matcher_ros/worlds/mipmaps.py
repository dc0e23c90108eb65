# SPDX-License-Identifier: Apache-2.0
"""Textures that can be looked up without aliasing at any distance and slant.

A texture is stored as an image pyramid packed into one picture (Williams, Pyramidal Parametrics,
SIGGRAPH 1983), so that one bilinear look-up serves pixels of every level. A slanted surface maps
a pixel to a long ellipse of the texture; it is covered with several probes along its long axis,
each as wide as the short one (McCormack et al., Feline, SIGGRAPH 1999), which keeps a floor sharp
up to the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import GeometryError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

MAX_PROBES = 16
# A pixel with an axis ratio below this is round enough for one probe.
ROUND_RATIO = 1.25
# cv2.remap addresses pictures and results of at most 32766 columns and rows.
MAX_SIDE = 16384
_COLUMNS = 1024


@dataclass(frozen=True, eq=False)
class Texture:
    """An image to be painted on a surface.

    Attributes:
        image: (H, W, 3) uint8 BGR, row 0 at the top; the first texel covers [0, 1/W] x [0, 1/H].
        wrap: True if it goes on periodically beyond its border, False if the border colour goes
            on.

    Raises:
        GeometryError: the image is empty, too large, or not (H, W, 3) uint8.
    """

    image: Pixels = field(repr=False)
    wrap: bool = False

    def __post_init__(self) -> None:
        shape = self.image.shape
        if self.image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise GeometryError(
                f'texture: want a (H, W, 3) uint8 image, got {shape} {self.image.dtype}'
            )
        if max(shape) > MAX_SIDE:
            raise GeometryError(f'texture: {shape[1]}x{shape[0]} exceeds {MAX_SIDE} texels a side')

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in texels."""
        return self.image.shape[1], self.image.shape[0]

    @cached_property
    def colour(self) -> Pyramid:
        """Pyramid of the colour image."""
        return Pyramid.build(self.image, self.wrap)

    @cached_property
    def grey(self) -> Pyramid:
        """Pyramid of the grey image."""
        grey = np.asarray(cv2.cvtColor(self.image, cv2.COLOR_BGR2GRAY), np.uint8)
        return Pyramid.build(grey, self.wrap)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Every level of one image, level 0 at the left, the smaller ones stacked at its right.

    Attributes:
        packed: the picture that holds all levels, each with a rim of one texel for bilinear
            look-up.
        scale: (L, 2) width and height of each level in texels.
        offset: (L, 2) where the centre of each level's first texel lies in `packed`.
        wrap: periodic beyond the border.
    """

    packed: Pixels
    scale: Floats
    offset: Floats
    wrap: bool

    @classmethod
    def build(cls, image: Pixels, wrap: bool) -> Pyramid:
        """Pyramid of `image` by area averaging, halving down to a single texel."""
        levels = [np.asarray(image)]
        while max(levels[-1].shape[:2]) > 1:
            h, w = levels[-1].shape[:2]
            half = (max(1, w // 2), max(1, h // 2))
            levels.append(
                np.asarray(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA), np.uint8)
            )
        border = cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
        rimmed = [cv2.copyMakeBorder(level, 1, 1, 1, 1, border) for level in levels]
        right = rimmed[1:]
        height = max(rimmed[0].shape[0], sum(level.shape[0] for level in right))
        width = rimmed[0].shape[1] + max((level.shape[1] for level in right), default=0)
        packed = np.zeros((height, width, *image.shape[2:]), np.uint8)
        offset = []
        row, column = 0, 0
        for i, level in enumerate(rimmed):
            h, w = level.shape[:2]
            packed[row : row + h, column : column + w] = level
            offset.append((column + 1, row + 1))
            row, column = (0, w) if i == 0 else (row + h, column)
        scale = np.array([level.shape[1::-1] for level in levels], np.float32)
        return cls(packed, scale, np.array(offset, np.float32), wrap)

    def look_up(
        self, u: Floats, v: Floats, footprint: tuple[Floats, Floats, Floats, Floats]
    ) -> Floats:
        """Filtered colour at N places.

        Args:
            u, v: (N,) place in units of the whole image (0 the left or top border, 1 the other).
            footprint: du/dx, dv/dx, du/dy, dv/dy, each (N,): change of u and v per image pixel.

        Returns:
            (N,) or (N, 3) float32 grey values.
        """
        width, height = self.scale[0]
        major_u, major_v, ratio, minor = _ellipse(footprint, width, height)
        values = np.empty((len(u), *self.packed.shape[2:]), np.float32)
        probes = np.ones(len(u), np.int8)
        count = 1
        while count < MAX_PROBES:
            # A probe's tent filter reaches half again beyond its width: so far apart may they lie.
            probes[ratio > (ROUND_RATIO if count == 1 else 1.5 * count)] = 2 * count
            count *= 2
        level = np.log2(np.maximum(minor, 1.0))
        for number in np.flatnonzero(np.bincount(probes)):
            same = probes == number
            chosen = slice(None) if same.all() else np.flatnonzero(same)
            values[chosen] = self._probe(
                u[chosen], v[chosen], major_u[chosen], major_v[chosen], level[chosen], int(number)
            )
        return values

    def _probe(
        self, u: Floats, v: Floats, major_u: Floats, major_v: Floats, level: Floats, count: int
    ) -> Floats:
        """Mean of `count` trilinear look-ups along the major axis."""
        top = len(self.scale) - 1
        lower = np.minimum(level.astype(np.int32), top)
        fine = self._place(lower)
        # Where every pixel magnifies the texture, level 0 alone serves them.
        coarse = self._place(np.minimum(lower + 1, top)) if level.any() else None
        weight = np.clip(level - lower, 0.0, 1.0)
        if self.packed.ndim == 3:
            weight = weight[:, None]
        total = np.zeros((len(u), *self.packed.shape[2:]), np.float32)
        for step in (np.arange(count) + 0.5) / count - 0.5:
            at_u = u if count == 1 else u + np.float32(step) * major_u
            at_v = v if count == 1 else v + np.float32(step) * major_v
            at_u = at_u - np.floor(at_u) if self.wrap else np.clip(at_u, 0.0, 1.0)
            at_v = at_v - np.floor(at_v) if self.wrap else np.clip(at_v, 0.0, 1.0)
            found = self._bilinear(at_u, at_v, fine)
            if coarse is not None:
                found += weight * (self._bilinear(at_u, at_v, coarse) - found)
            total += found
        total /= np.float32(count)
        return total

    def _place(self, level: NDArray[np.int32]) -> tuple[Floats, ...]:
        """Scale and offset that turn u and v into places of `packed`, for a level each."""
        scale, offset = self.scale, self.offset - 0.5
        if len(level) and (level == level[0]).all():
            level = level[:1]
        return tuple(a.take(level) for a in (scale[:, 0], offset[:, 0], scale[:, 1], offset[:, 1]))

    def _bilinear(self, u: Floats, v: Floats, place: tuple[Floats, ...]) -> Floats:
        x, y = u * place[0] + place[1], v * place[2] + place[3]
        return bilinear(self.packed, x, y).astype(np.float32)


def bilinear(image: NDArray, x: Floats, y: Floats) -> NDArray:
    """(N,) or (N, C) bilinear look-up at (N,) places, pixel centres at integers."""
    count = len(x)
    if count == 0:  # OpenCV refuses empty lists
        return np.zeros((0, *image.shape[2:]), image.dtype)
    if count <= _COLUMNS:
        shape = (1, count)
    else:  # remap takes pictures of limited width: fold the list into rows
        x = np.resize(x, -(-count // _COLUMNS) * _COLUMNS)
        y = np.resize(y, len(x))
        shape = (-1, _COLUMNS)
    found = cv2.remap(
        image,
        x.astype(np.float32, copy=False).reshape(shape),
        y.astype(np.float32, copy=False).reshape(shape),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(found).reshape(-1, *image.shape[2:])[:count]


def _ellipse(
    footprint: tuple[Floats, Floats, Floats, Floats], width: float, height: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """The texture ellipse of a pixel: major axis (in u and v), axis ratio, probe width (texels).

    Closed-form singular values of the 2x2 Jacobian J: s1^2 + s2^2 = |J|_F^2 and s1 s2 = |det J|.
    """
    ax, ay = footprint[0] * width, footprint[1] * height
    bx, by = footprint[2] * width, footprint[3] * height
    xx, yy, xy = ax * ax + bx * bx, ay * ay + by * by, ax * ay + bx * by
    trace, area = xx + yy, np.abs(ax * by - ay * bx)
    half_gap = np.sqrt(np.maximum(0.25 * trace * trace - area * area, 0.0))
    major_squared = 0.5 * trace + half_gap
    major = np.sqrt(np.maximum(major_squared, np.float32(1e-20)))
    ratio = np.minimum(major * major / np.maximum(area, np.float32(1e-12)), MAX_PROBES)
    # Below one texel a pixel sees no detail that could alias: more probes would only blur.
    ratio = np.where(major <= 1.0, np.float32(1.0), ratio)
    # The eigenvector of J J^T; of its two forms the one that does not cancel.
    along_x = xx >= yy
    vx = np.where(along_x, major_squared - yy, xy)
    vy = np.where(along_x, xy, major_squared - xx)
    length = major / np.maximum(np.hypot(vx, vy), np.float32(1e-20))
    return vx * length / width, vy * length / height, ratio, major / ratio
