# SPDX-License-Identifier: Apache-2.0
"""Procedural parts of buildings and streets: doors, ceilings, windows, facades, roads, vans."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from mv_matcher_ros.worlds.grain import Colour, Random, finish, noise, speckle, texels, tint
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels
from mv_matcher_ros.worlds.prints import contrast, glyphs, paint
from mv_matcher_ros.worlds.textures import asphalt, bricks, plaster


def door(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """A door leaf with panels, handle, number plate and scuffs."""
    rows, columns = texels(width_m, height_m, per_m)
    colour = paint(rng, 70, 180)
    image = tint(colour, 1.0 + 0.05 * noise(rng, rows, columns, 0.4 * per_m, 2, 0.7))
    for top, bottom in ((0.06, 0.4), (0.5, 0.94)):
        a, b = (int(0.14 * columns), int(top * rows)), (int(0.86 * columns), int(bottom * rows))
        image[a[1] : b[1], a[0] : b[0]] *= 0.88
        cv2.rectangle(image, a, b, tuple(0.5 * c for c in colour), max(1, columns // 60))
    at = (int(0.92 * columns), int(0.52 * rows))
    cv2.circle(image, at, max(2, columns // 28), (200.0, 205.0, 210.0), -1, cv2.LINE_AA)
    plate = image[int(0.16 * rows) : int(0.26 * rows), int(0.25 * columns) : int(0.75 * columns)]
    if min(plate.shape[:2]) > 8:
        plate[:] = rng.uniform(180, 240)
        h, w = plate.shape[:2]
        glyphs(rng, plate, (w // 10, h // 6, w - w // 10, h), int(0.6 * h), (30.0, 30.0, 40.0))
    speckle(rng, image, 0.003, 26.0)
    cv2.rectangle(
        image, (0, 0), (columns - 1, rows - 1), (50.0, 56.0, 60.0), max(1, columns // 24)
    )
    return finish(image)


def ceiling(
    rng: Random, width_m: float, height_m: float, per_m: float, panel_m: float = 0.6
) -> Pixels:
    """Ceiling panels with holes, some of them lamps."""
    rows, columns = texels(width_m, height_m, per_m)
    image = tint((212, 216, 218), 1.0 + 0.02 * noise(rng, rows, columns, per_m, 2, 0.7))
    speckle(rng, image, 0.02, 22.0)
    step = panel_m * per_m
    for r in range(int(rows / step) + 1):
        for c in range(int(columns / step) + 1):
            part = image[int(r * step) : int((r + 1) * step), int(c * step) : int((c + 1) * step)]
            part *= rng.normal(0.97, 0.025)
            if r % 3 == 1 and c % 3 == 1 and part.size:
                part[4:-4, 4:-4] = 252.0
    for k in range(int(columns / step) + 1):
        image[:, int(k * step) : int(k * step) + 2] *= 0.6
    for k in range(int(rows / step) + 1):
        image[int(k * step) : int(k * step) + 2] *= 0.6
    return finish(image)


def window_pane(rng: Random, rows: int, columns: int) -> Floats:
    """A window seen from outside: dark glass with reflections, curtains, a frame."""
    fade = np.linspace(0.6, 1.3, rows, dtype=np.float32)[:, None] * np.ones(
        (1, columns), np.float32
    )
    pane = tint(
        (92.0, 78.0, 62.0), fade * (1.0 + 0.25 * noise(rng, rows, columns, columns / 2, 4, 0.5))
    )
    curtain = int(columns * rng.uniform(0.0, 0.4))
    if curtain > 2:
        folds = 1.0 + 0.15 * np.sin(np.arange(curtain) * rng.uniform(0.4, 1.2)).astype(np.float32)
        pane[:, :curtain] = np.array(paint(rng, 120, 220), np.float32) * folds[None, :, None]
    bar = max(1, columns // 20)
    frame = tuple(float(v) for v in rng.uniform(180, 240) * np.ones(3))
    cv2.rectangle(pane, (0, 0), (columns - 1, rows - 1), frame, 2 * bar)
    cv2.line(pane, (columns // 2, 0), (columns // 2, rows), frame, bar)
    cv2.line(pane, (0, rows // 3), (columns, rows // 3), frame, bar)
    return pane


def facade(
    rng: Random, width_m: float, height_m: float, per_m: float, storey_m: float = 3.2
) -> Pixels:
    """The street front of a house: brick or plaster, windows, below them doors and signs."""
    rows, columns = texels(width_m, height_m, per_m)
    if rng.random() < 0.5:
        base = bricks(rng, width_m, height_m, per_m, _jitter(rng, (76, 96, 152)))
    else:
        base = plaster(rng, width_m, height_m, per_m, _jitter(rng, (168, 184, 200)))
    image = base.astype(np.float32)
    bay = rng.uniform(2.2, 3.2)
    bays, storeys = max(1, int(width_m / bay)), max(1, int(height_m / storey_m))
    cell_w, cell_h = columns / bays, rows / storeys
    for s in range(storeys):
        for b in range(bays):
            x, y = int((b + 0.22) * cell_w), int((s + 0.2) * cell_h)
            w, h = int(0.56 * cell_w), int(0.6 * cell_h)
            if s == storeys - 1:  # ground floor: doors and shop windows with a sign above
                y, h = int((s + 0.26) * cell_h), int(0.74 * cell_h)
                sign = image[y - int(0.22 * cell_h) : y - int(0.04 * cell_h), x : x + w]
                if sign.size:
                    sign[:] = paint(rng)
                    size = max(4, int(0.6 * sign.shape[0]))
                    glyphs(rng, sign, (3, 3, w - 3, sign.shape[0]), size, contrast(sign))
                if rng.random() < 0.4:
                    leaf = door(rng, w / per_m, h / per_m, per_m)
                    image[y : y + leaf.shape[0], x : x + leaf.shape[1]] = leaf
                    continue
            pane = window_pane(rng, h, w)
            image[y : y + h, x : x + w] = pane
            sill = max(2, int(0.08 * per_m))
            image[y + h : y + h + sill, max(x - sill, 0) : x + w + sill] = rng.uniform(150, 215)
    for s in range(1, storeys):  # ledges between the storeys
        y = int(s * cell_h)
        image[y : y + max(2, int(0.12 * per_m))] *= 0.75
    return finish(image)


def _jitter(rng: Random, colour: Colour) -> Colour:
    tones = np.array(colour) * rng.normal(1.0, 0.12) * rng.normal(1.0, 0.05, 3)
    b, g, r = np.clip(tones, 30, 235)
    return float(b), float(g), float(r)


def road(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """Asphalt with a dashed centre line along the width, and worn paint."""
    image = asphalt(rng, width_m, height_m, per_m).astype(np.float32)
    rows, columns = image.shape[:2]
    paint = np.zeros((rows, columns), np.float32)
    half = max(1, round(0.06 * per_m))
    for start in np.arange(0.5, width_m, 4.0):
        a, b = int(start * per_m), int((start + 2.0) * per_m)
        paint[rows // 2 - half : rows // 2 + half, a:b] = 1.0
    for y in (0.15, 0.85):
        paint[int(y * rows) - half : int(y * rows) + half] = 0.8
    worn = np.clip(0.8 + 0.5 * noise(rng, rows, columns, 0.5 * per_m, 2, 0.8), 0.0, 1.0)
    share = (paint * worn)[..., None]
    return finish(image + share * (205.0 - image))


def bodywork(
    rng: Random, width_m: float, height_m: float, per_m: float, colour: Colour = (120, 120, 120)
) -> Pixels:
    """A side of a parked van: paint, windows, wheels, lettering."""
    rows, columns = texels(width_m, height_m, per_m)
    image = tint(colour, 1.0 + 0.03 * noise(rng, rows, columns, per_m, 2, 0.7))
    top, low = int(0.1 * rows), int(0.45 * rows)
    edges = np.linspace(0.06, 0.94, int(max(2, width_m / 1.2)) + 1) * columns
    for left, right in pairwise(edges):
        pane = image[top:low, int(left) + 2 : int(right) - 2]
        if pane.size:
            pane[:] = window_pane(rng, pane.shape[0], pane.shape[1])
    ground = image[low:]
    text = (int(0.15 * columns), int(0.08 * rows), int(0.85 * columns), int(0.32 * rows))
    glyphs(rng, ground, text, max(5, int(0.13 * rows)), contrast(ground))
    radius = int(0.16 * rows)
    for x in (0.2, 0.8):
        at = (int(x * columns), rows - radius)
        cv2.circle(image, at, radius, (28.0, 28.0, 30.0), -1, cv2.LINE_AA)
        cv2.circle(image, at, radius // 2, (150.0, 152.0, 155.0), -1, cv2.LINE_AA)
    speckle(rng, image, 0.003, 24.0)
    return finish(image)
