# SPDX-License-Identifier: Apache-2.0
"""Ready worlds: a furnished room, a corridor in a ring, a street around a block of houses.

All are centred on the origin, z up, ground at 0, and made from a seed.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.worlds import buildings, prints, textures
from mv_matcher_ros.worlds.furniture import Builder
from mv_matcher_ros.worlds.lighting import Illumination, Lamp, bake
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.planes import Quad, Sky, World

ROOM_M = (7.0, 5.4, 2.8)
# Outer size and width of the corridor, and its height.
CORRIDOR_M = (16.0, 11.0)
CORRIDOR_WIDTH_M = 2.3
CORRIDOR_HEIGHT_M = 2.6
# Size of the block of houses that the street goes around, and the width from front to front.
BLOCK_M = (36.0, 24.0)
STREET_WIDTH_M = 13.0
LANES_M = 7.0


def _builder(seed: int, per_m: float, photos: Path | str | None) -> Builder:
    pictures = prints.photos(photos) if photos is not None else []
    return Builder(np.random.default_rng(seed), per_m, pictures)


def room(seed: int = 0, photos: Path | str | None = None) -> World:
    """A furnished room of 7 x 5.4 x 2.8 m, with space to walk around a low table.

    Args:
        seed: every texture and position depends on it.
        photos: folder of images to hang up instead of made-up posters.

    Raises:
        SourceError: `photos` is no folder of readable images.
    """
    return _room(seed, photos)


@lru_cache(maxsize=2)
def _room(seed: int, photos: Path | str | None) -> World:
    b = _builder(seed, 260.0, photos)
    hx, hy, height = ROOM_M[0] / 2, ROOM_M[1] / 2, ROOM_M[2]
    b.floor((-hx, -hy), (hx, hy), textures.wood)
    b.ceiling((-hx, -hy), (hx, hy), height, buildings.ceiling)
    corners = [(-hx, -hy), (-hx, hy), (hx, hy), (hx, -hy)]
    tones = [(196, 206, 212), (186, 200, 196), (200, 200, 190), (190, 198, 214)]
    walls = [
        b.wall(
            corners[i], corners[(i + 1) % 4], height, partial(textures.plaster, colour=tones[i])
        )
        for i in range(4)
    ]
    for wall in walls:
        # The second wall ends with the door.
        _hang_row(b, wall, (0.95, 1.35), 1.15, 5.6 if wall is walls[1] else wall.size_m[0])
    b.hang(walls[1], (6.2, height - 1.03), (0.92, 2.04), buildings.door, 0.02)
    b.floor((-1.5, -0.95), (1.4, 1.0), textures.carpet, z=0.006)
    _furnish(b)
    world = World(tuple(b.quads), name='room')
    lamps = (
        Lamp((-1.4, 0.6, height - 0.1), 0.34, 2.2, 0.35),
        Lamp((1.7, -0.5, height - 0.1), 0.34, 2.2, 0.35),
    )
    return bake(world, Illumination(lamps, 0.5, 0.35, 0.9, 0.08), seed)


def _hang_row(
    b: Builder, wall: Quad, centre_m: tuple[float, float], pitch_m: float, end_m: float
) -> None:
    """Pictures of random size along a wall, centres between two heights above its top edge."""
    at = 0.5 * pitch_m + b.rng.uniform(0.0, 0.2)
    while at < end_m - 0.5 * pitch_m:
        size = b.rng.uniform((0.5, 0.5), (0.95, 0.85))
        down = b.rng.uniform(*centre_m)
        b.hang(wall, (at, down), (float(size[0]), float(size[1])))
        at += pitch_m * b.rng.uniform(0.9, 1.25)


def _furnish(b: Builder) -> None:
    """Shelves and cabinets along the walls, a low table in the middle, boxes on the floor."""
    dark = partial(textures.wood, colour=(48, 74, 104))
    pale = partial(textures.wood, colour=(130, 165, 196), plank_m=(2.0, 0.3))
    b.box((-2.2, 2.5), (1.5, 0.34, 1.9), dark, front=prints.shelf)
    b.box((0.3, 2.48), (1.1, 0.4, 0.8), pale, front=buildings.door)
    b.box((3.28, -0.9), (1.4, 0.36, 1.5), dark, -np.pi / 2, front=prints.shelf)
    b.box((-3.2, -0.8), (1.3, 0.45, 0.9), pale, np.pi / 2, front=prints.crate)
    b.box((1.4, -2.35), (1.6, 0.55, 0.74), pale, np.pi, front=prints.crate)
    b.box((1.2, -2.35), (0.4, 0.3, 0.34), prints.crate, 0.3, 0.74)
    # a low table: top and four legs
    for x in (-0.5, 0.5):
        for y in (-0.26, 0.26):
            b.box((x, y), (0.06, 0.06, 0.4), dark)
    b.box((0.0, 0.0), (1.15, 0.66, 0.05), pale, 0.0, 0.4)
    b.box((-0.2, 0.05), (0.3, 0.24, 0.16), prints.crate, 0.5, 0.45)
    b.box((0.3, -0.1), (0.2, 0.14, 0.05), prints.poster, -0.4, 0.45)
    for x, y, side, yaw in ((-2.9, -2.2, 0.55, 0.2), (3.0, 2.2, 0.6, -0.3), (2.3, 2.35, 0.4, 0.1)):
        b.box((x, y), (side, side, 0.8 * side), prints.crate, yaw)
    b.box((-2.92, -2.2), (0.36, 0.32, 0.3), prints.crate, 0.7, 0.44)


def corridor(seed: int = 0, photos: Path | str | None = None) -> World:
    """A corridor in a ring of 16 x 11 m: doors, notice boards, cabinets.

    Args:
        seed: every texture and position depends on it.
        photos: folder of images to hang up instead of made-up posters.

    Raises:
        SourceError: `photos` is no folder of readable images.
    """
    return _corridor(seed, photos)


@lru_cache(maxsize=2)
def _corridor(seed: int, photos: Path | str | None) -> World:
    b = _builder(seed, 190.0, photos)
    (hx, hy), width, height = (np.array(CORRIDOR_M) / 2, CORRIDOR_WIDTH_M, CORRIDOR_HEIGHT_M)
    ix, iy = hx - width, hy - width
    strips = (
        ((-hx, -hy), (hx, -iy)),
        ((-hx, iy), (hx, hy)),
        ((-hx, -iy), (-ix, iy)),
        ((ix, -iy), (hx, iy)),
    )
    for low, high in strips:
        b.floor(low, high, textures.tiles)
        b.ceiling(low, high, height, buildings.ceiling)
    outer = [(-hx, -hy), (-hx, hy), (hx, hy), (hx, -hy)]
    inner = [(-ix, -iy), (ix, -iy), (ix, iy), (-ix, iy)]
    for ring in (outer, inner):
        for i in range(4):
            make = textures.bricks if b.rng.random() < 0.25 else textures.plaster
            wall = b.wall(ring[i], ring[(i + 1) % 4], height, make)
            _doors_and_boards(b, wall)
    for x, y, yaw in (
        (-3.0, -hy + 0.2, 0.0),
        (5.0, hy - 0.2, np.pi),
        (-hx + 0.2, 1.2, -np.pi / 2),
    ):
        size = (0.9, 0.36, float(b.rng.uniform(0.9, 1.7)))
        b.box(
            (x, y), size, partial(textures.wood, colour=(90, 110, 120)), yaw, front=buildings.door
        )
    b.box((hx - 0.35, -1.5), (0.45, 0.45, 0.5), prints.crate, 0.3)
    b.box((2.0, iy + 0.3), (0.4, 0.35, 0.4), prints.crate, -0.2)
    world = World(tuple(b.quads), name='corridor')
    mid_x, mid_y = hx - width / 2, hy - width / 2
    spots = [(x, y) for x in (-mid_x, -2.2, 2.2, mid_x) for y in (-mid_y, mid_y)]
    spots += [(x, 0.0) for x in (-mid_x, mid_x)]
    lamps = tuple(Lamp((x, y, height - 0.1), 0.3, 1.5, 0.25) for x, y in spots)
    return bake(world, Illumination(lamps, 0.42, 0.4, 0.8, 0.12, 2), seed)


def _doors_and_boards(b: Builder, wall: Quad) -> None:
    """Along a corridor wall: a door, two notice boards, and so on."""
    height, at, number = wall.size_m[1], 0.5, int(b.rng.integers(3))
    while at < wall.size_m[0] - 1.0:
        if number % 3 == 0:
            b.hang(wall, (at + 0.46, height - 1.03), (0.92, 2.04), buildings.door, 0.025)
            at += 1.25
        else:
            size = b.rng.uniform((0.5, 0.45), (0.95, 0.85))
            b.hang(wall, (at + 0.5, b.rng.uniform(0.95, 1.3)), (float(size[0]), float(size[1])))
            at += b.rng.uniform(1.05, 1.5)
        number += 1


def street(seed: int = 0, photos: Path | str | None = None) -> World:
    """Streets around a block of 36 x 24 m: facades, lanes, pavements, vans, lamp posts.

    Args:
        seed: every texture and position depends on it.
        photos: folder of images for the billboards on the fronts.

    Raises:
        SourceError: `photos` is no folder of readable images.
    """
    return _street(seed, photos)


@lru_cache(maxsize=2)
def _street(seed: int, photos: Path | str | None) -> World:
    b = _builder(seed, 56.0, photos)
    bx, by = np.array(BLOCK_M) / 2
    inner = [(-bx, -by), (bx, -by), (bx, by), (-bx, by)]
    for i in range(4):
        _row_of_fronts(b, np.array(inner[i]), np.array(inner[(i + 1) % 4]), 11.0)
    _houses_around(b, bx + STREET_WIDTH_M, by + STREET_WIDTH_M)
    _ground(b, bx, by)
    _street_furniture(b, bx, by)
    sky = Sky()
    world = World(tuple(b.quads), sky, 'street')
    sun = Lamp((500.0, -420.0, 760.0), 0.62, np.inf, 12.0)
    return bake(world, Illumination((sun,), 0.62, 0.1, 2.5, 0.4, 3), seed)


def _row_of_fronts(b: Builder, start: Array, end: Array, height_m: float) -> None:
    """House fronts of 9 to 12 m side by side from `start` to `end`."""
    length = float(np.linalg.norm(end - start))
    count = round(length / 11.0)
    for i in range(count):
        a, c = start + (end - start) * i / count, start + (end - start) * (i + 1) / count
        wall = b.wall(a, c, height_m, buildings.facade)
        if b.rng.random() < 0.6:
            b.hang(wall, (0.5 * length / count, 4.6), (2.4, 1.5), prints.poster, 0.05)


def _houses_around(b: Builder, ox: float, oy: float) -> None:
    """Houses of different heights around the streets, fronts at x = ±ox and y = ±oy."""
    plain = Texture(textures.plaster(b.rng, 8.0, 8.0, 24.0, (140, 150, 160)))
    depth = 6.0
    # front towards -y before turning: the house north of the street looks south
    for yaw, along, out in (
        (0.0, ox, oy),
        (np.pi, ox, oy),
        (np.pi / 2, oy, ox),
        (-np.pi / 2, oy, ox),
    ):
        count = round(2 * along / 11.0)
        width = 2 * along / count
        for i in range(count):
            offset = np.array((-along + (i + 0.5) * width, out + depth / 2))
            c, s = np.cos(yaw), np.sin(yaw)
            centre = np.array(((c, -s), (s, c))) @ offset
            size = (width, depth, float(b.rng.uniform(7.0, 13.5)))
            b.box(centre, size, plain, yaw, front=buildings.facade)


def _ground(b: Builder, bx: float, by: float) -> None:
    """Lanes, crossings and raised pavements."""
    walk = (STREET_WIDTH_M - LANES_M) / 2
    kerb = 0.12
    ix, iy, ox, oy = bx + walk, by + walk, bx + walk + LANES_M, by + walk + LANES_M
    for sign in (-1, 1):
        south, north = sorted((sign * iy, sign * oy))
        b.floor((-ix, south), (ix, north), buildings.road)
        # lanes along y: the texture's rows run along y
        origin = np.array((min(sign * ix, sign * ox), -iy, 0.0))
        b.surface(origin, 2 * iy * np.eye(3)[1], LANES_M * np.eye(3)[0], buildings.road)
        for other in (-1, 1):
            xs, ys = sorted((sign * ix, sign * ox)), sorted((other * iy, other * oy))
            b.floor((xs[0], ys[0]), (xs[1], ys[1]), textures.asphalt)
    edge_x, edge_y = ox + walk, oy + walk
    slabs = (
        ((-ix, -iy), (ix, -by)), ((-ix, by), (ix, iy)),
        ((-ix, -by), (-bx, by)), ((bx, -by), (ix, by)),
        ((-edge_x, -edge_y), (edge_x, -oy)), ((-edge_x, oy), (edge_x, edge_y)),
        ((-edge_x, -oy), (-ox, oy)), ((ox, -oy), (edge_x, oy)),
    )  # fmt: skip
    for low, high in slabs:
        b.floor(low, high, textures.paving, kerb)
    stone = Texture(textures.paving(b.rng, 6.0, kerb, 100.0))
    inside = [(-ix, -iy), (ix, -iy), (ix, iy), (-ix, iy)]
    outside = [(-ox, -oy), (-ox, oy), (ox, oy), (ox, -oy)]
    for ring in (inside, outside):
        for i in range(4):
            b.wall(ring[i], ring[(i + 1) % 4], kerb, stone)


def _street_furniture(b: Builder, bx: float, by: float) -> None:
    """Parked vans at the kerbs, lamp posts and crates on the pavements."""
    walk = (STREET_WIDTH_M - LANES_M) / 2
    near_y, far_y = by + walk + 1.0, by + walk + LANES_M - 1.0
    near_x, far_x = bx + walk + 1.0, bx + walk + LANES_M - 1.0
    vans = [(x, s * y, 0.0) for x in (-13.0, 1.0, 12.0) for s, y in ((1, far_y), (-1, far_y))]
    vans += [(s * far_x, y, np.pi / 2) for y in (-7.0, 5.0) for s in (1, -1)]
    vans += [(-5.0, near_y, 0.0), (6.5, -near_y, 0.0), (near_x, 1.0, np.pi / 2)]
    for x, y, yaw in vans:
        if b.rng.random() < 0.8:
            size = b.rng.uniform((3.8, 1.75, 1.5), (4.9, 1.95, 2.2))
            at = (x + b.rng.uniform(-1, 1), y) if yaw == 0.0 else (x, y + b.rng.uniform(-1, 1))
            paint = partial(buildings.bodywork, colour=prints.paint(b.rng, 70, 215))
            b.box(at, size, paint, yaw + b.rng.normal(0, 0.02), per_m=120.0)
    post = Texture(textures.plaster(b.rng, 0.3, 5.0, 40.0, (90, 96, 92)))
    for x in np.arange(-bx, bx + 1, 9.0):
        for s in (-1, 1):
            b.box((x, s * (by + walk - 0.4)), (0.14, 0.14, 5.2), post, base_m=0.12)
            b.box((x + 3.0, s * (by + walk + LANES_M + 0.4)), (0.14, 0.14, 5.2), post, base_m=0.12)
    for _ in range(10):
        side = float(b.rng.uniform(0.5, 1.0))
        x, s = b.rng.uniform(-bx, bx), b.rng.choice((-1, 1))
        y = s * (by + walk + LANES_M + b.rng.uniform(1.2, 2.4))
        b.box((x, y), (side, side, side), prints.crate, b.rng.uniform(0, 1.5), 0.12, per_m=120.0)
