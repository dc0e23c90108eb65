# SPDX-License-Identifier: Apache-2.0
"""Random structure that surfaces share: noise of many octaves, specks, cracks, stains."""

from __future__ import annotations

import cv2
import numpy as np

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.mipmaps import MAX_SIDE, Floats, Pixels

Random = np.random.Generator
Colour = tuple[float, float, float]


def texels(width_m: float, height_m: float, per_m: float) -> tuple[int, int]:
    """(rows, columns) of a surface of that size.

    Raises:
        GeometryError: a size that is not positive or needs too many texels.
    """
    rows, columns = round(height_m * per_m), round(width_m * per_m)
    if min(rows, columns) < 1 or max(rows, columns) > MAX_SIDE:
        raise GeometryError(
            f'texture of {width_m:g} x {height_m:g} m at {per_m:g}/m has {columns}x{rows} texels'
        )
    return rows, columns


def noise(
    rng: Random,
    rows: int,
    columns: int,
    coarse_px: float = 256,
    fine_px: float = 2,
    slope: float = 0.6,
) -> Floats:
    """(rows, columns) float32 noise of many octaves, about zero with unit deviation.

    Args:
        rng: generator.
        rows, columns: size.
        coarse_px, fine_px: grain of the first and of the last octave.
        slope: factor on the amplitude from one octave to the next finer one; 1 is white-like, 0.5
            is smooth.
    """
    total = np.zeros((rows, columns), np.float32)
    grain, amplitude = coarse_px, 1.0
    while grain >= fine_px:
        shape = (max(2, round(rows / grain) + 2), max(2, round(columns / grain) + 2))
        octave = rng.standard_normal(shape, dtype=np.float32)
        total += amplitude * cv2.resize(octave, (columns, rows), interpolation=cv2.INTER_CUBIC)
        grain, amplitude = grain / 2, amplitude * slope
    return total / max(float(total.std()), 1e-6)


def tint(colour: Colour, factor: Floats) -> Floats:
    """(H, W, 3) float32 image of `colour` times `factor` (H, W)."""
    return factor[..., None] * np.array(colour, np.float32)


def finish(image: Floats) -> Pixels:
    """Rounded and clipped to uint8."""
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def speckle(rng: Random, image: Floats, share: float, strength: float) -> None:
    """Adds grains of one to four texels in place: pores, chips, pebbles.

    Args:
        rng: generator.
        image: (H, W, 3) float32.
        share: of the texels that get a grain of the smallest size; larger ones are rarer.
        strength: standard deviation of their grey values.
    """
    rows, columns = image.shape[:2]
    total = np.zeros((rows, columns), np.float32)
    for size in (1, 2, 4):
        count = round(share * rows * columns / size**2)
        y, x = rng.integers(0, rows, count), rng.integers(0, columns, count)
        grains = np.zeros((rows, columns), np.float32)
        sigma = 0.4 * size
        # A blurred grain is 1 / (2 pi sigma^2) as high as before: make up for it.
        height = strength * max(1.0, 2.0 * np.pi * sigma**2)
        grains[y, x] = rng.normal(0.0, height, count)
        total += cv2.GaussianBlur(grains, (0, 0), sigma)
    image += total[..., None]


def cracks(rng: Random, image: Floats, count: int, per_m: float, dark: float) -> None:
    """Draws wandering lines in place: cracks, scratches, joints."""
    rows, columns = image.shape[:2]
    mask = np.zeros((rows, columns), np.uint8)
    for _ in range(count):
        steps = int(rng.integers(8, 30))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, steps))
        length = rng.uniform(0.01, 0.05) * per_m
        path = np.stack([np.cos(heading), np.sin(heading)], 1).cumsum(0) * length
        path += rng.uniform((0, 0), (columns, rows))
        points = np.round(path * 16).astype(np.int32)[None]
        cv2.polylines(
            mask, list(points), False, int(rng.integers(90, 255)), 1, cv2.LINE_AA, shift=4
        )
    image *= 1.0 - dark * (mask.astype(np.float32) / 255.0)[..., None]


def stains(rng: Random, image: Floats, count: int, per_m: float, strength: float = 0.1) -> None:
    """Blotches of 2 to 20 cm with sharp or soft rims, in place; most of them small."""
    rows, columns = image.shape[:2]
    bank = [_blotch(rng) for _ in range(min(count, 24))]
    for _ in range(count):
        half = int(min(2.0 * per_m * 0.02 * 10.0 ** rng.uniform(0, 1), 0.45 * min(rows, columns)))
        if half < 2:
            continue
        mask = bank[rng.integers(len(bank))][:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        blotch = cv2.resize(np.ascontiguousarray(mask), (2 * half, 2 * half))
        x, y = (int(rng.integers(0, max(1, side - 2 * half))) for side in (columns, rows))
        image[y : y + 2 * half, x : x + 2 * half] *= (
            1.0 + rng.normal(0, strength) * blotch[..., None]
        )


def _blotch(rng: Random) -> Floats:
    """(64, 64) mask of a wobbly disc with a sharp or soft rim."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    order = np.arange(2, 7)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (5, 1))
    wobble = 1.0 + 0.25 * (rng.normal(size=(5, 1)) / order * np.sin(order * angle + phase)).sum(0)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.round((circle * (16.0 * wobble)[:, None] + 31.5) * 16).astype(np.int32)
    mask = np.zeros((64, 64), np.float32)
    cv2.fillPoly(mask, [points], 1.0, cv2.LINE_AA, shift=4)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 4.0)), np.float32)
