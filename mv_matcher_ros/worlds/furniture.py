# SPDX-License-Identifier: Apache-2.0
"""Building blocks of scenes: boxes, walls and pictures on walls, as rectangles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import ArrayLike

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.worlds.grain import Random
from mv_matcher_ros.worlds.mipmaps import Pixels, Texture
from mv_matcher_ros.worlds.planes import Quad
from mv_matcher_ros.worlds.prints import poster

# A surface maker: (rng, width_m, height_m, texels per metre) to an image.
Maker = Callable[[Random, float, float, float], Pixels]

# Pictures hang this far in front of their wall.
POSTER_GAP_M = 0.012
UP = np.array((0.0, 0.0, 1.0))


@dataclass
class Builder:
    """Collects the rectangles of a scene, drawing every texture from one generator.

    Attributes:
        rng: generator of everything random in the scene.
        per_m: texels per metre of large surfaces.
        pictures: photographs to hang up before posters are made up; used one after the other.
    """

    rng: Random
    per_m: float
    pictures: list[Pixels] = field(default_factory=list)
    quads: list[Quad] = field(default_factory=list)
    _solids: Iterator[int] = field(default_factory=count)
    _hung: int = 0

    def surface(
        self,
        origin: Array,
        edge_u: Array,
        edge_v: Array,
        make: Maker | Texture,
        per_m: float = 0.0,
        solid: int = -1,
    ) -> Quad:
        """Adds a rectangle with a texture of its own (or the given one) and returns it."""
        width, height = float(np.linalg.norm(edge_u)), float(np.linalg.norm(edge_v))
        if isinstance(make, Texture):
            texture = make
        else:
            texture = Texture(make(self.rng, width, height, per_m or self.per_m))
        quad = Quad(origin, edge_u, edge_v, texture, solid=solid)
        self.quads.append(quad)
        return quad

    def wall(
        self, start: ArrayLike, end: ArrayLike, height_m: float, make: Maker | Texture
    ) -> Quad:
        """A wall from `start` to `end` (x, y), seen from the right of somebody who walks so.

        The texture's left is at `start`: the reader looks at the wall with `start` on the left.
        """
        a, b = (np.append(np.asarray(p, np.float64), height_m) for p in (start, end))
        return self.surface(a, b - a, -height_m * UP, make)

    def floor(
        self, low: ArrayLike, high: ArrayLike, make: Maker | Texture, z: float = 0.0
    ) -> Quad:
        """A horizontal rectangle from `low` to `high` (x, y), painted on its upper side."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        size = high - low
        origin = np.array((low[0], high[1], z))
        return self.surface(origin, size[0] * np.eye(3)[0], -size[1] * np.eye(3)[1], make)

    def ceiling(self, low: ArrayLike, high: ArrayLike, z: float, make: Maker | Texture) -> Quad:
        """A horizontal rectangle painted on its lower side."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        size = high - low
        origin = np.array((low[0], low[1], z))
        return self.surface(origin, size[0] * np.eye(3)[0], size[1] * np.eye(3)[1], make)

    def box(
        self,
        centre: ArrayLike,
        size_m: ArrayLike,
        make: Maker | Texture,
        yaw_rad: float = 0.0,
        base_m: float = 0.0,
        front: Maker | Texture | None = None,
        per_m: float = 0.0,
    ) -> None:
        """A closed box at `base_m` over (x, y) `centre`; `front` is its -y side before turning."""
        sx, sy, sz = np.asarray(size_m, np.float64)
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        ex, ey = np.array((c, s, 0.0)), np.array((-s, c, 0.0))
        low = np.append(np.asarray(centre, np.float64), base_m)
        top = low + sz * UP
        solid = next(self._solids)
        hx, hy = 0.5 * sx * ex, 0.5 * sy * ey
        sides = (
            (top - hx - hy, sx * ex, front or make),
            (top + hx - hy, sy * ey, make),
            (top + hx + hy, -sx * ex, make),
            (top - hx + hy, -sy * ey, make),
        )
        for origin, edge, maker in sides:
            self.surface(origin, edge, -sz * UP, maker, per_m, solid)
        self.surface(top - hx + hy, sx * ex, -sy * ey, make, per_m, solid)
        self.surface(low - hx - hy, sx * ex, sy * ey, make, per_m, solid)

    def hang(
        self,
        wall: Quad,
        centre_m: tuple[float, float],
        size_m: tuple[float, float],
        make: Maker = poster,
        gap_m: float = POSTER_GAP_M,
    ) -> None:
        """A picture on `wall`, centred `centre_m` (right, down) from the wall's top left.

        Posters are replaced by photographs as long as there are some, keeping the photograph's
        shape.
        """
        width, height = size_m
        image: Pixels | None = None
        if make is poster and self._hung < len(self.pictures):
            image = self.pictures[self._hung]
            self._hung += 1
            width = height * image.shape[1] / image.shape[0]
        right, down = (e / np.linalg.norm(e) for e in (wall.edge_u, wall.edge_v))
        origin = (
            wall.origin + (centre_m[0] - width / 2) * right + (centre_m[1] - height / 2) * down
        )
        texture = Texture(image) if image is not None else make
        self.surface(
            origin + gap_m * wall.normal, width * right, height * down, texture, 1.3 * self.per_m
        )
