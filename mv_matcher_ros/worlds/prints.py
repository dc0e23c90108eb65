# SPDX-License-Identifier: Apache-2.0
"""Procedural pictures with a layout: posters, bookshelves, crates, and photographs.

The marks look like writing and mean nothing; every shape is drawn from the seed.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.worlds.grain import Colour, Random, finish, noise, speckle, texels, tint
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels

_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}


# Ratios of blue, green and red: brown, ochre, green, blue, grey, red, teal.
_HUES = np.array(
    [
        (0.6, 0.8, 1.15),
        (0.5, 0.9, 1.1),
        (0.75, 1.1, 0.85),
        (1.2, 0.95, 0.7),
        (1.0, 1.0, 1.0),
        (0.65, 0.65, 1.2),
        (1.1, 1.1, 0.65),
    ]
)


def paint(rng: Random, dark: float = 40.0, light: float = 225.0) -> Colour:
    """A random colour (BGR) such as paints and inks have: few are loud."""
    hue = _HUES[rng.integers(len(_HUES))] * rng.normal(1.0, 0.05, 3)
    muted = 1.0 + rng.uniform(0.3, 1.0) * (hue - 1.0)
    b, g, r = np.clip(rng.uniform(dark, light) * muted, 0.0, 250.0)
    return float(b), float(g), float(r)


def glyphs(
    rng: Random, image: Floats, box: tuple[int, int, int, int], height_px: int, ink: Colour
) -> None:
    """Fills `box` (left, top, right, bottom) of `image` in place with lines of marks."""
    left, top, right, bottom = box
    stroke = max(1, height_px // 7)
    y = top
    while y + height_px <= bottom:
        x = left
        end = right if rng.random() < 0.7 else left + int((right - left) * rng.uniform(0.3, 0.9))
        while x + 0.7 * height_px <= end:
            if rng.random() < 0.15:
                x += height_px // 2
                continue
            # A mark: two to four strokes between the nodes of a 3 x 4 grid.
            w = 0.6 * height_px
            nodes = rng.integers(0, (3, 4), (int(rng.integers(3, 6)), 2)) * (w / 2, height_px / 3)
            points = np.round((nodes + np.array((x, y))) * 16).astype(np.int32)
            if rng.random() < 0.25:
                centre = (int((x + w / 2) * 16), int((y + height_px / 2) * 16))
                cv2.circle(image, centre, int(w * 7), ink, stroke, cv2.LINE_AA, shift=4)
            else:
                cv2.polylines(image, [points], False, ink, stroke, cv2.LINE_AA, shift=4)
            x += int(0.95 * height_px)
        y += int(1.6 * height_px)


def shapes(rng: Random, image: Floats, count: int, largest: float) -> None:
    """Random discs, rings and polygons in place; `largest` as a share of the image's side."""
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    for _ in range(count):
        centre = rng.uniform((0, 0), (columns, rows))
        size = side * largest * rng.uniform(0.15, 1.0) ** 1.5
        c = paint(rng, 10, 240)
        at = (int(centre[0] * 16), int(centre[1] * 16))
        kind = rng.integers(4)
        if kind == 0:
            cv2.circle(image, at, int(size * 8), c, -1, cv2.LINE_AA, shift=4)
        elif kind == 1:
            thickness = max(1, int(size / 10))
            cv2.circle(image, at, int(size * 8), c, thickness, cv2.LINE_AA, shift=4)
        else:
            corners = 3 if kind == 2 else int(rng.integers(4, 9))
            angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
            radius = size * rng.uniform(0.3, 0.7, corners)
            points = centre + np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
            cv2.fillPoly(image, [np.round(points * 16).astype(np.int32)], c, cv2.LINE_AA, shift=4)


def poster(rng: Random, width_m: float, height_m: float, per_m: float) -> Pixels:
    """A poster: frame, picture of random shapes, heading and text of marks."""
    rows, columns = texels(width_m, height_m, per_m)
    image = np.empty((rows, columns, 3), np.float32)
    image[:] = paint(rng, 190, 240)
    border = max(2, round(0.05 * min(rows, columns)))
    split = int(rows * rng.uniform(0.45, 0.75))
    picture = image[border:split, border : columns - border]
    if picture.size:
        fade = np.linspace(0, 1, picture.shape[0], dtype=np.float32)[:, None, None]
        top, bottom = np.array(paint(rng), np.float32), np.array(paint(rng), np.float32)
        picture[:] = top * (1 - fade) + bottom * fade
        shapes(rng, picture, int(rng.integers(12, 28)), 0.7)
    ink = paint(rng, 5, 70)
    heading = max(5, rows // 14)
    inner = (border, split + heading // 2, columns - border, rows - border)
    glyphs(rng, image, (*inner[:3], min(inner[1] + 2 * heading, inner[3])), heading, ink)
    body = (inner[0], inner[1] + 2 * heading, inner[2], inner[3])
    glyphs(rng, image, body, max(4, rows // 36), ink)
    cv2.rectangle(image, (0, 0), (columns - 1, rows - 1), (40.0, 40.0, 44.0), max(1, border // 3))
    image *= (1.0 + 0.02 * noise(rng, rows, columns, 64, 2, 0.8))[..., None]
    return finish(image)


def photos(folder: Path | str) -> list[Pixels]:
    """The images of a folder, in order of their names, to be hung up as posters.

    Raises:
        SourceError: no such folder, or no readable image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f'{folder}: no such folder of photographs')
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is not None:
            found.append(np.asarray(image, np.uint8))
    if not found:
        raise SourceError(
            f'{folder}: no readable image; known endings: {", ".join(sorted(_SUFFIXES))}'
        )
    return found


def crate(
    rng: Random, width_m: float, height_m: float, per_m: float, colour: Colour = (110, 150, 188)
) -> Pixels:
    """A side of a cardboard box or crate: fibres, tape, label, stencilled marks."""
    rows, columns = texels(width_m, height_m, per_m)
    image = tint(colour, 1.0 + 0.05 * noise(rng, rows, columns, 0.2 * per_m, 2, 0.7))
    speckle(rng, image, 0.006, 26.0)
    tape = int(columns * rng.uniform(0.3, 0.6))
    image[:, tape : tape + max(2, columns // 9)] *= np.array((0.82, 0.86, 0.9), np.float32)
    w, h = int(columns * rng.uniform(0.25, 0.45)), int(rows * rng.uniform(0.2, 0.4))
    x, y = int(rng.uniform(0.05, 0.5) * columns), int(rng.uniform(0.05, 0.5) * rows)
    label = image[y : y + h, x : x + w]
    if label.size:
        label[:] = 235.0
        height = max(4, h // 6)
        glyphs(rng, label, (3, 3, w - 3, h - 3), height, (30.0, 30.0, 30.0))
    ink = paint(rng, 10, 90)
    big = max(5, min(rows, columns) // 7)
    glyphs(rng, image, (x, y + h + big // 2, columns - big // 2, rows - big // 4), big, ink)
    shapes(rng, image, 3, 0.15)
    edge = max(1, round(0.01 * per_m))
    cv2.rectangle(image, (0, 0), (columns - 1, rows - 1), (50.0, 66.0, 80.0), edge)
    return finish(image)


def shelf(
    rng: Random, width_m: float, height_m: float, per_m: float, rows_of_books: int = 5
) -> Pixels:
    """A bookshelf seen from the front: boards and book spines with marks."""
    rows, columns = texels(width_m, height_m, per_m)
    image = np.full((rows, columns, 3), 28.0, np.float32)
    board = max(2, round(0.022 * per_m))
    pitch = rows / rows_of_books
    for r in range(rows_of_books):
        floor_y = int((r + 1) * pitch) - board
        x = board
        while x < columns - board:
            w = max(3, int(rng.uniform(0.018, 0.06) * per_m))
            if rng.random() < 0.08:
                x += 2 * w  # a gap
                continue
            h = int((pitch - 2 * board) * rng.uniform(0.6, 0.97))
            spine = image[floor_y - h : floor_y, x : min(x + w, columns - board)]
            spine[:] = paint(rng, 25, 225)
            if spine.size and h > 12:
                band = int(h * rng.uniform(0.1, 0.3))
                spine[band : band + max(2, h // 12)] *= rng.uniform(0.4, 1.7)
                turned = np.ascontiguousarray(spine.transpose(1, 0, 2))
                ink = contrast(spine)
                size = max(3, int(0.5 * w))
                glyphs(rng, turned, (h // 3, w // 4, int(0.9 * h), w), size, ink)
                spine[:] = turned.transpose(1, 0, 2)
            image[floor_y - h : floor_y, x] *= 0.5
            x += w
        image[floor_y : floor_y + board] = (70.0, 100.0, 130.0)
    image[:, :board] = image[:, -board:] = (66.0, 94.0, 122.0)
    image *= (1.0 + 0.04 * noise(rng, rows, columns, 64, 2, 0.8))[..., None]
    return finish(image)


def contrast(ground: Floats) -> Colour:
    """An ink that can be read on `ground`."""
    return (235.0, 238.0, 240.0) if float(ground.mean()) < 125 else (25.0, 25.0, 30.0)
