# SPDX-License-Identifier: Apache-2.0
"""Photos as flat worlds: views of one plane are homographies of the photo, of several piecewise
ones, with exact depth and pose. Rendered like every world of rectangles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.mipmaps import Pixels, Texture
from mv_matcher_ros.worlds.planes import Quad, Sky, World

# The photo behind all others stands at x = 0 and faces −x; cameras stand at negative x.
BACKDROP_M = 4.0


def photo_planes(photos: Sequence[Pixels], planes: int, rng: np.random.Generator) -> World:
    """A photo 4 m high or wide, its shorter side, and others before it, slanted.

    Args:
        photos: (H, W, 3) uint8 BGR each.
        planes: rectangles in all, 1 to 5.
        rng: which photos, where.

    Raises:
        GeometryError: no photos, or a number of planes that is not 1 to 5.
    """
    if not photos or not 1 <= planes <= 5:
        raise GeometryError(f'photo planes: {len(photos)} photos on {planes} planes (want 1 to 5)')
    choice = rng.choice(len(photos), planes, replace=planes > len(photos))
    back = _quad(photos[choice[0]], np.zeros(3), BACKDROP_M, 0.0, 0.0)
    width, height = back.size_m
    quads = [back]
    for number in choice[1:]:
        place = np.array(
            [
                -rng.uniform(0.3, 1.6),
                rng.uniform(-0.35, 0.35) * width,
                rng.uniform(-0.35, 0.35) * height,
            ]
        )
        size = rng.uniform(0.6, 1.5)
        yaw, pitch = rng.uniform(-0.7, 0.7, 2)
        quads.append(_quad(photos[number], place, float(size), float(yaw), float(pitch)))
    tone = float(rng.uniform(30, 220))
    return World(tuple(quads), Sky((tone, tone, tone), (tone, tone, tone)), f'photos_{planes}')


def _quad(photo: Pixels, centre: Array, short_m: float, yaw: float, pitch: float) -> Quad:
    """A photo upright at `centre`, facing −x before it is turned; `short_m`: its shorter side."""
    rows, columns = photo.shape[:2]
    width, height = (short_m * side / min(rows, columns) for side in (columns, rows))
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    right = np.array([sy, -cy, 0.0])
    down = np.array([sp * cy, sp * sy, -cp])
    corner = centre - 0.5 * width * right - 0.5 * height * down
    return Quad(corner, width * right, height * down, Texture(photo))
