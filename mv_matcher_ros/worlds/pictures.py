# SPDX-License-Identifier: Apache-2.0
"""Furnishing a mesh world: pictures on plain walls, other textures, a ceiling where none is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.worlds import buildings
from mv_matcher_ros.worlds.mesh import MeshWorld
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels, Texture

# Pictures hang this far in front of a wall, and a wall may be this uneven behind them.
_LIFT_M = 0.012
_UNEVEN_M = 0.008
# A wall is plain where its grey values, lit evenly, differ less than this (standard deviation).
_PLAIN = 12.0
_PROBES = 7
_CEILING_TILE_M = 4.8
_PICTURE_TEXELS = 512


@dataclass(frozen=True)
class _Spot:
    """A rectangle on a wall: centre, unit normal towards the room, width and height in metres."""

    centre: Array
    normal: Array
    size_m: tuple[float, float]


def hang_pictures(
    world: MeshWorld, photos: Sequence[Pixels], count: int, rng: np.random.Generator
) -> MeshWorld:
    """`world` with up to `count` photos on upright, flat, plain walls; fewer if walls are few.

    Args:
        world: z up.
        photos: (H, W, 3) uint8 BGR each.
        count: pictures wanted.
        rng: of photos, places and sizes.
    """
    if not photos or count < 1:
        return world
    hung: list[_Spot] = []
    chosen: list[int] = []
    tries = 0
    while len(hung) < count and tries < 40:
        tries += 1
        origin, direction = _wall_rays(world, 256, rng)
        hits = world.cast(origin, direction)
        wall = (hits.triangle >= 0) & (hits.distance < 12.0)
        wall &= np.abs(world.normals[hits.triangle][:, 2]) < 0.05
        for k in np.flatnonzero(wall):
            normal = world.normals[hits.triangle[k]].copy()
            normal[2] = 0.0
            normal *= -np.sign(normal @ direction[k]) / np.linalg.norm(normal)
            number = int(rng.integers(len(photos)))
            height, width = photos[number].shape[:2]
            long_m = float(rng.uniform(0.5, 1.5))
            size = (long_m * width / max(height, width), long_m * height / max(height, width))
            spot = _Spot(origin[k] + hits.distance[k] * direction[k], normal, size)
            if _free_of(spot, hung) and _is_plain(world, spot):
                hung.append(spot)
                chosen.append(number)
                if len(hung) == count:
                    break
    if not hung:
        return world
    quads = [_corners(spot) for spot in hung]
    # Parts of photos, some mirrored: no two pictures are quite the same.
    textures = tuple(Texture(_part_of(photos[number], rng), True) for number in chosen)
    repeat = np.ones((len(quads), 2))
    return _with_quads(world, np.array(quads), repeat, textures, range(len(quads)))


def _part_of(photo: Pixels, rng: np.random.Generator) -> Pixels:
    rows, columns = (max(8, int(s * rng.uniform(0.6, 1.0))) for s in photo.shape[:2])
    top, left = (
        int(rng.integers(0, max(1, s - n + 1)))
        for s, n in zip(photo.shape, (rows, columns), strict=False)
    )
    part = photo[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    scale = min(1.0, _PICTURE_TEXELS / max(part.shape[:2]))
    size = (max(1, round(scale * part.shape[1])), max(1, round(scale * part.shape[0])))
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)


def retextured(
    world: MeshWorld, images: Sequence[Pixels], share: float, rng: np.random.Generator
) -> MeshWorld:
    """`world` with a share of its textures replaced by parts of `images`, laid as the old ones."""
    textures = list(world.textures)
    for k in np.flatnonzero(rng.random(len(textures)) < share):
        image = images[int(rng.integers(len(images)))]
        side = max(16, int(rng.uniform(0.4, 1.0) * min(image.shape[:2])))
        top, left = (int(rng.integers(0, s - side + 1)) for s in image.shape[:2])
        part = image[top : top + side, left : left + side]
        # Mirrored at its borders it goes on without a seam.
        tile = np.concatenate([part, part[:, ::-1]], 1)
        tile = np.concatenate([tile, tile[::-1]], 0)
        size = (min(1024, tile.shape[1]), min(1024, tile.shape[0]))
        small = cv2.resize(tile, size, interpolation=cv2.INTER_AREA)
        textures[k] = Texture(np.asarray(small, np.uint8), True)
    return replace(world, textures=tuple(textures))


def roofed(world: MeshWorld, rng: np.random.Generator) -> MeshWorld:
    """`world` with a panelled ceiling at its top where most rays upwards leave it."""
    low, high = world.bounds
    origin = rng.uniform(low, high, (512, 3))
    down, up = (np.tile((0.0, 0.0, s), (len(origin), 1)) for s in (-1.0, 1.0))
    inside = world.cast(origin, down).triangle >= 0
    if not inside.any() or (world.cast(origin[inside], up[inside]).triangle >= 0).mean() > 0.6:
        return world
    image = buildings.ceiling(rng, _CEILING_TILE_M, _CEILING_TILE_M, 100.0)
    corner = np.array([(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])])
    quad = np.column_stack([corner, np.full(4, high[2])])
    repeat = (high - low)[:2] / _CEILING_TILE_M
    return _with_quads(world, quad[None], repeat[None], (Texture(image, True),), [0])


def _with_quads(
    world: MeshWorld,
    quads: Array,
    repeat: Array,
    textures: tuple[Texture, ...],
    index: Sequence[int],
) -> MeshWorld:
    """`world` and rectangles (Q, 4, 3): top left, top right, bottom right, bottom left."""
    at = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float64)[None] * repeat[:, None]
    halves = np.array([(0, 1, 2), (0, 2, 3)])
    first = len(world.textures)
    return replace(
        world,
        triangles=np.concatenate([world.triangles, quads[:, halves].reshape(-1, 3, 3)]),
        uv=np.concatenate([world.uv, at[:, halves].reshape(-1, 3, 2).astype(np.float32)]),
        texture_index=np.concatenate(
            [world.texture_index, np.repeat(np.asarray(index, np.int64) + first, 2)]
        ),
        textures=(*world.textures, *textures),
    )


def _wall_rays(world: MeshWorld, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Level rays from free places about as high as eyes above a floor."""
    low, high = world.bounds
    origin = rng.uniform(low, high, (4 * count, 3))
    hits = world.cast(origin, np.tile((0.0, 0.0, -1.0), (len(origin), 1)))
    floor = np.flatnonzero(hits.triangle >= 0)[:count]
    origin = origin[floor]
    origin[:, 2] += rng.uniform(1.1, 2.0, len(floor)) - hits.distance[floor]
    yaw = rng.uniform(0, 2 * np.pi, len(origin))
    return origin, np.stack([np.cos(yaw), np.sin(yaw), np.zeros(len(yaw))], 1)


def _axes(spot: _Spot) -> tuple[Array, Array]:
    """To the right of one who looks at the picture, and down."""
    down = np.array([0.0, 0.0, -1.0])
    return np.cross(spot.normal, down), down


def _corners(spot: _Spot) -> Array:
    right, down = _axes(spot)
    x, y = 0.5 * spot.size_m[0] * right, 0.5 * spot.size_m[1] * down
    middle = spot.centre + _LIFT_M * spot.normal
    return np.stack([middle - x - y, middle + x - y, middle + x + y, middle - x + y])


def _free_of(spot: _Spot, others: Sequence[_Spot]) -> bool:
    reach = np.hypot(*spot.size_m)
    return all(
        np.linalg.norm(spot.centre - other.centre) > 0.5 * (reach + np.hypot(*other.size_m))
        for other in others
    )


def _is_plain(world: MeshWorld, spot: _Spot) -> bool:
    """Whether the wall is flat, free and of about one colour behind a picture."""
    right, down = _axes(spot)
    steps = np.linspace(-0.55, 0.55, _PROBES)
    grid_x, grid_y = (g.ravel() for g in np.meshgrid(steps, steps))
    front = spot.centre + 0.3 * spot.normal
    origin = front + np.outer(grid_x * spot.size_m[0], right)
    origin += np.outer(grid_y * spot.size_m[1], down)
    hits = world.cast(origin, np.broadcast_to(-spot.normal, origin.shape))
    if (np.abs(hits.distance - 0.3) > _UNEVEN_M).any():
        return False
    point = origin - hits.distance[:, None] * spot.normal
    return float(grey_at(world, hits.triangle, point).std()) < _PLAIN


def grey_at(world: MeshWorld, triangle: NDArray[np.int64], point: Array) -> Floats:
    """(N,) grey values of textures at points (N, 3) of triangles, averaged over about 2 cm."""
    gradient = world.uv_gradients[triangle]
    offset = (point - world.corners[triangle]).astype(np.float32)
    at = world.uv[triangle, 0] + np.einsum('nji,ni->nj', gradient, offset)
    span = np.linalg.norm(gradient, axis=2) * np.float32(0.02)
    grey = np.empty(len(triangle), np.float32)
    texture = world.texture_index[triangle]
    zero = np.zeros(len(triangle), np.float32)
    for k in np.unique(texture):
        same = texture == k
        footprint = (span[same, 0], zero[same], zero[same], span[same, 1])
        grey[same] = world.textures[k].grey.look_up(at[same, 0], at[same, 1], footprint)
    return grey
