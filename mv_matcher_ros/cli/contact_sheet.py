# SPDX-License-Identifier: Apache-2.0
"""A picture of some tuples: a row each, its views with their depths below, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mv_matcher_ros.cli.match_drawing import save_image
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels

_ROWS = 12
_WIDTH = 240
_SHORT = 0.3  # depths nearer than this (m) are drawn brightest


def draw_sheet(shards: Sequence[Path], out: Path, rows: int = _ROWS) -> None:
    """Draw `rows` tuples, evenly spread over the shards, into the PNG file `out`."""
    from mv_matcher_ros.training.data.shards import Shard

    opened = [Shard(path) for path in shards]
    numbers = [(shard, i) for shard in opened for i in range(len(shard))]
    chosen = [numbers[int(k)] for k in np.linspace(0, len(numbers) - 1, min(rows, len(numbers)))]
    drawn = []
    for shard, number in chosen:
        entry = shard.entries[number]
        views = range(entry.views)
        overlap = ' '.join(f'{entry.overlap[i, i + 1]:.2f}' for i in views[:-1])
        words = f'{entry.world} {entry.baseline}, overlap {overlap}'
        drawn.append(_row(shard.images(number, views), shard.depths(number, views), words))
    for shard in opened:
        shard.close()
    width = max(row.shape[1] for row in drawn)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in drawn]
    save_image(out, np.concatenate(padded))


def _row(images: Sequence[Pixels], depths: Sequence[Floats], words: str) -> Pixels:
    tiles = []
    for image, depth in zip(images, depths, strict=True):
        height = max(1, round(_WIDTH * image.shape[0] / image.shape[1]))
        small = cv2.resize(image, (_WIDTH, height), interpolation=cv2.INTER_AREA)
        below = cv2.resize(depth, (_WIDTH, height), interpolation=cv2.INTER_NEAREST)
        grey = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
        tiles.append(np.concatenate([grey, _coloured(np.asarray(below, np.float32))]))
    row = np.concatenate(tiles, axis=1)
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(row, words, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, thickness)
    return np.asarray(row, np.uint8)


def _coloured(depth: Floats) -> Pixels:
    """(H, W, 3) inverse depth in colours; black: none."""
    near = np.log(np.maximum(depth, _SHORT) / _SHORT)
    grey = np.clip(255.0 * np.exp(-0.7 * near), 0, 255).astype(np.uint8)
    image = cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)
    image[depth <= 0] = 0
    return np.asarray(image, np.uint8)
