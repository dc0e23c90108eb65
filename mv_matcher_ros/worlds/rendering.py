# SPDX-License-Identifier: Apache-2.0
"""From a world, a camera and a pose to an image and its exact depth.

1. visibility: for every pixel centre the nearest rectangle;
2. coverage: pixels on an outline get the share of each rectangle that meets there, from eight
places in the pixel; 3. shading: each rectangle colours its pixels at once, with filtered texture
(`mipmaps`); 4. depth: at the pixel centre, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels, bilinear
from mv_matcher_ros.worlds.planes import World
from mv_matcher_ros.worlds.raster import Raster

# Eight places in a pixel, no two in a row or column (the eight-rooks pattern), relative to its
# centre.
_ROOKS = (np.array([(0, 5), (1, 2), (2, 7), (3, 0), (4, 4), (5, 1), (6, 6), (7, 3)]) - 3.5) / 8.0
_SKY = np.int16(-1)


@dataclass(frozen=True)
class Fragments:
    """What the pixels are made of: one entry per pixel and rectangle seen in it.

    Attributes:
        pixel: (N,) flat pixel index.
        quad: (N,) int16 rectangle, -1 for the sky.
        weight: (N,) share of the pixel.
        x, y: (N,) ray (x, y, 1) through the middle of that share.
    """

    pixel: NDArray[np.int64]
    quad: NDArray[np.int16]
    weight: Floats
    x: Floats
    y: Floats


def render(
    world: World, camera: Camera, world_from_camera: Array, colour: bool = False
) -> tuple[Pixels, Floats]:
    """Image and depth of `world` as `camera` sees it.

    Args:
        world: what is seen.
        camera: any distortion model; `body_from_camera` is not used.
        world_from_camera: (4, 4) pose of the optical frame, metres.
        colour: BGR instead of grey.

    Returns:
        (H, W) or (H, W, 3) uint8 image, and (H, W) float32 metres along the optical axis at the
        pixel centres, 0 where the sky is seen.

    Raises:
        GeometryError: the pose is not a finite rigid transform.
    """
    radiance, depth = render_radiance(world, camera, world_from_camera, colour)
    return np.clip(radiance + 0.5, 0.0, 255.0).astype(np.uint8), depth


def render_radiance(
    world: World, camera: Camera, world_from_camera: Array, colour: bool = False
) -> tuple[Floats, Floats]:
    """`render` before rounding: the image as float32 grey values that may exceed 255."""
    pose = np.asarray(world_from_camera, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise GeometryError('render: world_from_camera is not a finite 4x4 transform')
    if not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6):
        raise GeometryError('render: world_from_camera has no rotation in its upper left')
    raster = Raster.of(camera)
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3] = pose[:3, :3].T
    camera_from_world[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    maps = world.ray_maps(camera_from_world)
    nearest = _visibility(world, raster, maps, pose, camera_from_world)
    fragments = _coverage(raster, maps, nearest)
    image = _shade(world, raster, maps, fragments, pose[:3, :3], colour)
    return image, _depth(raster, maps, nearest)


def _visibility(
    world: World, raster: Raster, maps: Array, pose: Array, camera_from_world: Array
) -> NDArray[np.int16]:
    """(H, W) index of the nearest rectangle at each pixel centre, -1 for none."""
    nearest = np.full((raster.height, raster.width), _SKY)
    best = np.zeros((raster.height, raster.width), np.float32)
    windows = raster.windows(world.bounds(camera_from_world))
    wanted = world.drawable(pose) & (maps[:, 2] != 0.0).any(1)
    wanted &= (windows[:, 0] < windows[:, 1]) & (windows[:, 2] < windows[:, 3])
    for k in np.flatnonzero(wanted):
        left, right, top, bottom = windows[k]
        rows, columns = slice(top, bottom), slice(left, right)
        x, y = raster.crop(rows, columns)
        u, v, inverse = (_linear(row, x, y) for row in maps[k].astype(np.float32))
        seen = inverse > best[rows, columns]
        for coordinate in (u, v):  # 0 <= u <= 1, multiplied by the positive inverse depth
            seen &= coordinate >= 0.0
            seen &= coordinate <= inverse
        np.copyto(best[rows, columns], inverse, where=seen)
        np.copyto(nearest[rows, columns], np.int16(k), where=seen)
    nearest[~raster.valid] = _SKY
    return nearest


def _linear(row: Floats, x: Floats, y: Floats) -> Floats:
    """row · (x, y, 1), with x and y broadcast."""
    return row[0] * x + (row[1] * y + row[2])


def _coverage(raster: Raster, maps: Array, nearest: NDArray[np.int16]) -> Fragments:
    """Fragments of the image: one a pixel, several where outlines cross it."""
    differs_x = nearest[:, 1:] != nearest[:, :-1]
    differs_y = nearest[1:] != nearest[:-1]
    outline = np.zeros(nearest.shape, np.bool_)
    outline[:, 1:] |= differs_x
    outline[:, :-1] |= differs_x
    outline[1:] |= differs_y
    outline[:-1] |= differs_y
    outline &= raster.valid
    inner = np.flatnonzero(~outline)
    flat = nearest.ravel()
    ones = np.ones(len(inner), np.float32)
    x, y = raster.at(inner)
    whole = Fragments(inner, flat[inner], ones, x, y)
    if not outline.any():
        return whole
    return _join([whole, *_split(raster, maps, nearest, np.flatnonzero(outline))])


def _join(parts: list[Fragments]) -> Fragments:
    """All fragments of several lists."""
    return Fragments(
        np.concatenate([p.pixel for p in parts]),
        np.concatenate([p.quad for p in parts]),
        np.concatenate([p.weight for p in parts]),
        np.concatenate([p.x for p in parts]),
        np.concatenate([p.y for p in parts]),
    )


def _split(
    raster: Raster, maps: Array, nearest: NDArray[np.int16], pixel: NDArray[np.int64]
) -> list[Fragments]:
    """Fragments of outline pixels: which rectangle wins at each of the eight places."""
    candidates = _candidates(nearest, pixel)  # (C, N)
    x, y = raster.at(pixel)
    dx_px, dy_px = raster.derivatives(pixel)
    best = np.zeros((len(_ROOKS), len(pixel)), np.float32)
    winner = np.full(best.shape, -1, np.int8)  # a place no candidate covers shows the sky
    places = _ROOKS.astype(np.float32)
    table = np.concatenate([maps, np.zeros((1, 3, 3))]).astype(np.float32)  # row -1: the sky
    for c, quads in enumerate(candidates):
        rows = table.take(quads, 0).transpose(1, 2, 0)  # (3, 3, N)
        at_centre = rows[:, 0] * x + rows[:, 1] * y + rows[:, 2]
        per_x = rows[:, 0] * dx_px[0] + rows[:, 1] * dx_px[1]
        per_y = rows[:, 0] * dy_px[0] + rows[:, 1] * dy_px[1]
        values = [
            centre + places[:, :1] * along_x + places[:, 1:] * along_y
            for centre, along_x, along_y in zip(at_centre, per_x, per_y, strict=True)
        ]
        u, v, inverse = values
        seen = (inverse > best) & (u >= 0) & (u <= inverse) & (v >= 0) & (v <= inverse)
        np.copyto(best, inverse, where=seen)
        np.copyto(winner, np.int8(c), where=seen)
    parts = []
    for c in range(-1, len(candidates)):
        won = winner == c
        count = won.sum(0)
        some = np.flatnonzero(count)
        share = count[some].astype(np.float32)
        middle = (places.T @ won[:, some].astype(np.float32)) / share
        parts.append(
            Fragments(
                pixel[some],
                candidates[c][some] if c >= 0 else np.full(len(some), _SKY),
                share / np.float32(len(_ROOKS)),
                x[some] + middle[0] * dx_px[0][some] + middle[1] * dy_px[0][some],
                y[some] + middle[0] * dx_px[1][some] + middle[1] * dy_px[1][some],
            )
        )
    return parts


def _candidates(nearest: NDArray[np.int16], pixel: NDArray[np.int64]) -> list[NDArray[np.int16]]:
    """Rectangles at a pixel and at its four neighbours, without repetition (-1 fills)."""
    height, width = nearest.shape
    row, column = pixel // width, pixel % width
    own = nearest[row, column]
    left = nearest[row, np.maximum(column - 1, 0)]
    right = nearest[row, np.minimum(column + 1, width - 1)]
    above = nearest[np.maximum(row - 1, 0), column]
    below = nearest[np.minimum(row + 1, height - 1), column]
    lists: list[NDArray[np.int16]] = []
    for found in (own, left, right, above, below):
        fresh = found.copy()
        for earlier in lists:
            fresh[found == earlier] = _SKY
        lists.append(fresh)
    # Most pixels meet two or three rectangles: packed, the last lists are (nearly) empty.
    packed = -np.sort(-np.stack(lists), axis=0)
    return [entry for entry in packed if (entry >= 0).any()]


def _shade(
    world: World,
    raster: Raster,
    maps: Array,
    fragments: Fragments,
    world_from_camera: Array,
    colour: bool,
) -> Floats:
    """(H, W) or (H, W, 3) float32 image: the fragments' colours added up."""
    channels = (3,) if colour else ()
    image = np.zeros((raster.height * raster.width, *channels), np.float32)
    order = np.argsort(fragments.quad, kind='stable')
    starts = np.flatnonzero(np.diff(fragments.quad[order], prepend=np.int16(-2)))
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        chosen = order[begin:end]
        k = int(fragments.quad[chosen[0]])
        pixel, x, y = fragments.pixel[chosen], fragments.x[chosen], fragments.y[chosen]
        if k < 0:
            values = _sky(world, world_from_camera, x, y, colour)
            values[~raster.valid.ravel()[pixel]] = 0.0
        else:
            values = _surface(world, raster, maps[k], k, pixel, x, y, colour)
        weight = fragments.weight[chosen]
        values *= weight[:, None] if colour else weight
        # No pixel comes twice for one rectangle, so this adds each entry exactly once.
        image[pixel] += values
    return image.reshape(raster.height, raster.width, *channels)


def _surface(
    world: World,
    raster: Raster,
    ray_map: Array,
    k: int,
    pixel: NDArray[np.int64],
    x: Floats,
    y: Floats,
    colour: bool,
) -> Floats:
    """(N,) or (N, 3) colours of rectangle `k` along rays (x, y, 1)."""
    quad = world.quads[k]
    m = ray_map.astype(np.float32)
    z = 1.0 / _linear(m[2], x, y)
    u, v = _linear(m[0], x, y) * z, _linear(m[1], x, y) * z
    repeat_u, repeat_v = (np.float32(r) for r in quad.repeat)
    dx_px, dy_px = raster.derivatives(pixel)
    footprint = []
    for along in (dx_px, dy_px):  # d(u)/d(pixel) = z (row_u - u row_w) · d(ray)/d(pixel)
        slope = m[2, 0] * along[0] + m[2, 1] * along[1]
        du = z * (m[0, 0] * along[0] + m[0, 1] * along[1] - u * slope)
        dv = z * (m[1, 0] * along[0] + m[1, 1] * along[1] - v * slope)
        footprint += [du * repeat_u, dv * repeat_v]
    pyramid = quad.texture.colour if colour else quad.texture.grey
    at_u, at_v = np.clip(u, 0.0, 1.0) * repeat_u, np.clip(v, 0.0, 1.0) * repeat_v
    values = pyramid.look_up(at_u, at_v, (footprint[0], footprint[1], footprint[2], footprint[3]))
    if quad.light is not None:
        h, w = quad.light.shape
        light = bilinear(quad.light, u * np.float32(w) - 0.5, v * np.float32(h) - 0.5)
        values *= light[:, None] if colour else light
    return values


def _sky(world: World, world_from_camera: Array, x: Floats, y: Floats, colour: bool) -> Floats:
    """(N,) or (N, 3) background along rays (x, y, 1)."""
    up = world_from_camera[2].astype(np.float32)
    elevation = (up[0] * x + up[1] * y + up[2]) / np.sqrt(x * x + y * y + 1.0)
    share = np.sqrt(np.clip(elevation, 0.0, 1.0))[:, None]
    horizon, zenith = (np.array(c, np.float32) for c in (world.sky.horizon, world.sky.zenith))
    values = horizon + share * (zenith - horizon)
    return values if colour else values @ np.array([0.114, 0.587, 0.299], np.float32)


def _depth(raster: Raster, maps: Array, nearest: NDArray[np.int16]) -> Floats:
    """(H, W) float32 metres along the optical axis at the pixel centres."""
    rows = np.concatenate([maps[:, 2], np.zeros((1, 3))])
    x, y = raster.x64, raster.y64
    inverse = rows[:, 0].take(nearest) * x
    inverse += rows[:, 1].take(nearest) * y
    inverse += rows[:, 2].take(nearest)
    seen = nearest >= 0
    return np.divide(1.0, inverse, out=np.zeros_like(inverse), where=seen).astype(np.float32)
