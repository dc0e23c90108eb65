# SPDX-License-Identifier: Apache-2.0
"""The debug image: tracks drawn over the camera's image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Estimate, Status

_GREEN, _RED, _AMBER, _WHITE = (80, 220, 60), (60, 60, 235), (40, 180, 250), (255, 255, 255)
_BANNER = {Status.TRACKING: _GREEN, Status.LOST: _RED}


def draw_tracks(image: NDArray[np.uint8], estimate: Estimate) -> NDArray[np.uint8]:
    """The image with what was tracked in it.

    Args:
        image: (H, W) grey or (H, W, 3) BGR uint8, left as it is.
        estimate: of that image. A line leads from where a track was in the last keyframe; green
            agrees with the pose (a ring when three keyframes or more know the track), red does
            not.

    Returns:
        (H, W, 3) BGR uint8.
    """
    grey = image.ndim == 2
    canvas: NDArray[np.uint8] = np.repeat(image[..., None], 3, axis=2) if grey else image.copy()
    tracks = estimate.tracks
    if tracks is not None and len(tracks.keypoints_xy):
        now = np.asarray(tracks.keypoints_xy, np.float32)
        before = np.asarray(tracks.previous_xy, np.float32)
        seen = np.isfinite(before).all(axis=1)
        for chosen, colour in ((~tracks.inlier, _RED), (tracks.inlier, _GREEN)):
            both = chosen & seen
            lines = np.stack([before[both], now[both]], axis=1).round().astype(np.int32)
            cv2.polylines(canvas, list(lines), False, colour, 1, cv2.LINE_AA)
            for x, y in now[chosen].round().astype(int).tolist():
                cv2.circle(canvas, (x, y), 2, colour, cv2.FILLED)
        for x, y in now[tracks.inlier & (tracks.length >= 3)].round().astype(int).tolist():
            cv2.circle(canvas, (x, y), 5, _GREEN, 1, cv2.LINE_AA)
    _write_banner(canvas, estimate)
    return canvas


def _write_banner(canvas: NDArray[np.uint8], estimate: Estimate) -> None:
    scale = max(canvas.shape[1] / 1280.0, 0.4)
    height = round(34 * scale)
    canvas[:height] = canvas[:height] // 3
    counts = '  '.join(f'{name} {count}' for name, count in estimate.counts.items())
    unit = 'metric' if estimate.metric else 'no metric scale'
    colour = _BANNER.get(estimate.status, _AMBER)
    font, base = cv2.FONT_HERSHEY_SIMPLEX, round(24 * scale)
    cv2.putText(
        canvas, estimate.status.value, (6, base), font, 0.8 * scale, colour, 2, cv2.LINE_AA
    )
    (width, _), _ = cv2.getTextSize(estimate.status.value, font, 0.8 * scale, 2)
    text = f'{unit}  {counts}  {estimate.message}'
    cv2.putText(canvas, text, (18 + width, base), font, 0.6 * scale, _WHITE, 1, cv2.LINE_AA)
