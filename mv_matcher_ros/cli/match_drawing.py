# SPDX-License-Identifier: Apache-2.0
"""Drawing of matches: images side by side, a line a match, coloured by whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import MvMatcherError

GAP_PX = 8
AGREES, DISAGREES = (80, 200, 80), (90, 90, 220)  # BGR
MIN_FOR_FUNDAMENTAL = 8
MAX_LINES = 120


def epipolar_inliers(
    points_a: NDArray[Any], points_b: NDArray[Any], threshold_px: float = 2.0
) -> NDArray[np.bool_]:
    """(N,) True where (N, 2) pixel matches agree with the best fundamental matrix."""
    if len(points_a) < MIN_FOR_FUNDAMENTAL:
        return np.zeros(len(points_a), dtype=bool)
    try:
        _, mask = cv2.findFundamentalMat(
            points_a, points_b, cv2.USAC_MAGSAC, threshold_px, 0.9999, 10000
        )
    except cv2.error:
        mask = None
    return np.zeros(len(points_a), dtype=bool) if mask is None else mask.ravel().astype(bool)


def draw_row(
    images: Sequence[NDArray[np.uint8]],
    matches: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]],
) -> NDArray[np.uint8]:
    """V images (H, W[, 3]), grey or BGR, side by side and the matches of each with the next.

    Args:
        images: of any sizes.
        matches: V - 1 times (N, 2) pixels in an image, (N, 2) in the next, (N,) do they agree.
    """
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images) + GAP_PX * (len(images) - 1)
    pictures = [cv2.cvtColor(i, cv2.COLOR_GRAY2BGR) if i.ndim == 2 else i for i in images]
    canvas = np.full((height, width, 3), 255, np.uint8)
    lefts, left = [], 0
    for image in pictures:
        canvas[: image.shape[0], left : left + image.shape[1]] = image
        lefts.append(left)
        left += image.shape[1] + GAP_PX
    for i, (start, end, agrees) in enumerate(matches):
        _draw_pair(
            canvas, start + np.array([lefts[i], 0]), end + np.array([lefts[i + 1], 0]), agrees
        )
    return canvas


def _draw_pair(
    canvas: NDArray[np.uint8], start: NDArray[Any], end: NDArray[Any], agrees: NDArray[np.bool_]
) -> None:
    """Dots for all (N, 2) ends on the canvas, lines for so many that one can still follow them."""
    thickness = max(1, canvas.shape[0] // 600)
    every = -(-len(agrees) // MAX_LINES)
    for wanted, colour in ((False, DISAGREES), (True, AGREES)):  # the good ones on top
        for k in np.flatnonzero(agrees == wanted):
            a, b = ((round(float(x)), round(float(y))) for x, y in (start[k], end[k]))
            if k % every == 0:
                cv2.line(canvas, a, b, colour, thickness, cv2.LINE_AA)
            for point in (a, b):
                cv2.circle(canvas, point, 2 * thickness, colour, -1, cv2.LINE_AA)


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture, making its folder.

    Raises:
        MvMatcherError: the place or the file's ending cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(str(path), image)
    except (OSError, cv2.error):
        written = False
    if not written:
        raise MvMatcherError(f'{path}: cannot be written as a picture (use .png or .jpg)')
