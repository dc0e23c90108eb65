# SPDX-License-Identifier: Apache-2.0
"""Procedural surfaces: plaster, bricks, tiles, wood, asphalt, paving, grass, carpet.

Each is an (H, W, 3) uint8 BGR image made from a seeded generator. Like real surfaces they have
structure at every scale (amplitude falling with frequency), so a detector finds corners from near
and from far, and no two spots look alike although the layout repeats.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.worlds.grain import (
    Colour,
    Random,
    cracks,
    finish,
    noise,
    speckle,
    stains,
    texels,
    tint,
)
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels


def plaster(
    rng: Random, width_m: float, height_m: float, per_m: float, colour: Colour = (200, 208, 212)
) -> Pixels:
    """A painted wall: mottled, with pores, hair cracks and stains."""
    rows, columns = texels(width_m, height_m, per_m)
    image = tint(colour, 1.0 + 0.045 * noise(rng, rows, columns, per_m, 2, 0.62))
    area = width_m * height_m
    speckle(rng, image, 0.006, 30.0)
    stains(rng, image, round(9 * area), per_m, 0.075)
    cracks(rng, image, round(2.2 * area), per_m, 0.4)
    return finish(image)


def _cells(
    rng: Random, rows: int, columns: int, cell_w: float, cell_h: float, shift: float, joint: float
) -> tuple[NDArray[np.int64], Floats]:
    """A layout of rectangles: each texel's cell number and distance (texels) to a joint."""
    y = np.arange(rows, dtype=np.float32)[:, None] + 0.5
    course = np.floor(y / cell_h)
    x = np.arange(columns, dtype=np.float32)[None] + 0.5 + shift * cell_w * course
    column = np.floor(x / cell_w)
    fx, fy = x - column * cell_w, y - course * cell_h
    inside = np.minimum(np.minimum(fx, cell_w - fx), np.minimum(fy, cell_h - fy)) - 0.5 * joint
    number = course.astype(np.int64) * 4096 + column.astype(np.int64)
    return np.broadcast_to(number, (rows, columns)), inside.astype(np.float32)


def _cell_tones(rng: Random, number: NDArray[np.int64], spread: float) -> Floats:
    """A random factor per cell."""
    low = int(number.min())
    tones = rng.normal(1.0, spread, int(number.max()) - low + 1).astype(np.float32)
    return np.clip(tones, 0.4, 1.6)[number - low]


def bricks(
    rng: Random, width_m: float, height_m: float, per_m: float, colour: Colour = (88, 102, 146)
) -> Pixels:
    """A brick wall with uneven bricks and light mortar."""
    rows, columns = texels(width_m, height_m, per_m)
    wobble = 0.006 * per_m
    number, inside = _cells(rng, rows, columns, 0.25 * per_m, 0.083 * per_m, 0.5, 0.012 * per_m)
    inside = inside + wobble * noise(rng, rows, columns, 0.05 * per_m, 2, 0.7)
    brick = tint(colour, _cell_tones(rng, number, 0.2))
    brick *= (1.0 + 0.14 * noise(rng, rows, columns, 0.2 * per_m, 2, 0.75))[..., None]
    mortar = tint((165, 172, 178), 1.0 + 0.1 * noise(rng, rows, columns, 0.1 * per_m, 2, 0.8))
    share = np.clip(inside + 0.5, 0.0, 1.0)[..., None]
    image = mortar + share * (brick - mortar)
    speckle(rng, image, 0.006, 24.0)
    stains(rng, image, round(4 * width_m * height_m), per_m)
    return finish(image)


def tiles(
    rng: Random,
    width_m: float,
    height_m: float,
    per_m: float,
    tile_m: float = 0.45,
    colour: Colour = (150, 160, 168),
) -> Pixels:
    """Stone floor tiles: a tone and veins of its own in each, dark grout."""
    rows, columns = texels(width_m, height_m, per_m)
    number, inside = _cells(rng, rows, columns, tile_m * per_m, tile_m * per_m, 0.0, 0.008 * per_m)
    veins = np.abs(noise(rng, rows, columns, 0.4 * per_m, 2, 0.6))
    image = tint(colour, _cell_tones(rng, number, 0.1))
    image *= (0.94 + 0.08 * np.minimum(veins, 2.0))[..., None]
    speckle(rng, image, 0.012, 30.0)
    share = np.clip(inside + 0.5, 0.0, 1.0)[..., None]
    grout = np.float32(70.0)
    image = grout + share * (image - grout)
    stains(rng, image, round(8 * width_m * height_m), per_m, 0.14)
    cracks(rng, image, round(0.6 * width_m * height_m), per_m, 0.5)
    return finish(image)


def wood(
    rng: Random,
    width_m: float,
    height_m: float,
    per_m: float,
    plank_m: tuple[float, float] = (1.1, 0.14),
    colour: Colour = (82, 124, 168),
) -> Pixels:
    """Planks along the width, with grain, knots and dark joints."""
    rows, columns = texels(width_m, height_m, per_m)
    number, inside = _cells(
        rng, rows, columns, plank_m[0] * per_m, plank_m[1] * per_m, 0.37, 0.004 * per_m
    )
    grain = cv2.resize(
        noise(rng, rows, max(2, columns // 10), 0.15 * per_m, 2, 0.85),
        (columns, rows),
        interpolation=cv2.INTER_CUBIC,
    )
    image = tint(colour, _cell_tones(rng, number, 0.13) * (1.0 + 0.1 * grain))
    for _ in range(round(2.5 * width_m * height_m)):
        centre = tuple(int(c) for c in rng.uniform((0, 0), (columns, rows)) * 16)
        axes = tuple(int(a) for a in rng.uniform((0.008, 0.005), (0.02, 0.01)) * per_m * 16 + 16)
        dark = tuple(float(c) for c in np.array(colour) * rng.uniform(0.3, 0.6))
        _ellipse(image, centre, axes, (dark[0], dark[1], dark[2]))
    speckle(rng, image, 0.003, 22.0)
    cracks(rng, image, round(1.2 * width_m * height_m), per_m, 0.35)
    image *= np.clip(0.45 + 0.55 * (inside + 0.5), 0.45, 1.0)[..., None]
    return finish(image)


def _ellipse(image: Floats, centre: tuple[int, ...], axes: tuple[int, ...], dark: Colour) -> None:
    cv2.ellipse(
        image,
        (centre[0], centre[1]),
        (axes[0], axes[1]),
        0,
        0,
        360,
        dark,
        -1,
        cv2.LINE_AA,
        shift=4,
    )


def asphalt(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """A road surface: pebbles, tar seams, patches, oil stains."""
    rows, columns = texels(width_m, height_m, per_m)
    image = tint((98, 98, 100), 1.0 + 0.1 * noise(rng, rows, columns, 0.7 * per_m, 2, 0.78))
    speckle(rng, image, 0.05, 26.0)
    area = width_m * height_m
    for _ in range(round(0.02 * area)):
        x, y = rng.uniform((0, 0), (columns, rows)).astype(int)
        w, h = (rng.uniform(0.5, 2.2, 2) * per_m).astype(int)
        image[y : y + h, x : x + w] *= rng.uniform(0.7, 1.2)
    stains(rng, image, round(1.2 * area), per_m, 0.25)
    cracks(rng, image, round(0.35 * area), per_m, 0.6)
    return finish(image)


def paving(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """Pavement slabs with chips, gum and worn edges."""
    rows, columns = texels(width_m, height_m, per_m)
    number, inside = _cells(rng, rows, columns, 0.6 * per_m, 0.4 * per_m, 0.5, 0.014 * per_m)
    inside = inside + 0.006 * per_m * noise(rng, rows, columns, 0.08 * per_m, 2, 0.7)
    image = tint((150, 156, 160), _cell_tones(rng, number, 0.09))
    image *= (1.0 + 0.07 * noise(rng, rows, columns, 0.5 * per_m, 2, 0.75))[..., None]
    speckle(rng, image, 0.03, 26.0)
    stains(rng, image, round(3 * width_m * height_m), per_m, 0.2)
    image *= np.clip(0.4 + 0.6 * (inside + 0.5), 0.4, 1.0)[..., None]
    return finish(image)


def grass(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """Ground cover: blades over earth, worn patches."""
    rows, columns = texels(width_m, height_m, per_m)
    worn = np.clip(0.5 + 0.6 * noise(rng, rows, columns, 1.5 * per_m, 8, 0.6), 0.0, 1.0)[..., None]
    blades = noise(rng, rows, columns, 0.1 * per_m, 2, 0.95)
    green = tint((48, 112, 84), 1.0 + 0.28 * blades)
    earth = tint((78, 102, 122), 1.0 + 0.16 * noise(rng, rows, columns, 0.3 * per_m, 2, 0.85))
    image = earth + worn * (green - earth)
    speckle(rng, image, 0.02, 28.0)
    return finish(image)


def carpet(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """A rug: a frame and an irregular pattern of lozenges, woven."""
    rows, columns = texels(width_m, height_m, per_m)
    palette = np.clip(
        rng.uniform(50, 190, (5, 1)) * (1.0 + 0.25 * rng.uniform(-1, 1, (5, 3))), 0, 230
    )
    image = np.empty((rows, columns, 3), np.float32)
    image[:] = palette[0]
    for _ in range(round(14 * width_m * height_m) + 6):
        centre = rng.uniform((0, 0), (columns, rows))
        half = rng.uniform(0.03, 0.14, 2) * per_m
        corners = centre + np.array([(-1, 0), (0, -1), (1, 0), (0, 1)]) * half
        colour = tuple(float(c) for c in palette[rng.integers(1, 5)])
        cv2.fillPoly(
            image, [np.round(corners * 16).astype(np.int32)], colour, cv2.LINE_AA, shift=4
        )
    edge = max(2, round(0.06 * per_m))
    for inset, shade in ((0, 3), (edge, 4)):
        colour = tuple(float(c) for c in palette[shade])
        cv2.rectangle(
            image, (inset, inset), (columns - inset, rows - inset), colour, max(1, edge // 2)
        )
    image *= (1.0 + 0.1 * noise(rng, rows, columns, 0.02 * per_m, 2, 0.95))[..., None]
    return finish(image)
