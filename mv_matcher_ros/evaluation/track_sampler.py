# SPDX-License-Identifier: Apache-2.0
"""A sink that keeps a few frames of a run as small pictures with their tracks drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Estimate, Frame, Status, TrackView
from mv_matcher_ros.errors import EvaluationError

FOLDER = 'frames'  # inside the run folder
INDEX = 'frames.json'
LONG_TRACK = 8  # keyframes; tracks at least this long have the last colour
# BGR, from new to long-lived tracks: orange, yellow, green.
_RAMP = np.array([[32, 147, 245], [90, 220, 250], [140, 210, 40]], dtype=np.float64)
_OUTLIER = (70, 60, 230)


@dataclass(frozen=True)
class SampledFrame:
    """One kept frame.

    Attributes:
        file: of the picture, relative to the run folder.
        index: of the frame in the recording.
        stamp_ns: of the frame.
        status: tracking status after it.
        counts: of the estimate.
    """

    file: str
    index: int
    stamp_ns: int
    status: str
    counts: dict[str, int]


def draw_tracks(image: NDArray[np.uint8], tracks: TrackView, width: int = 0) -> NDArray[np.uint8]:
    """The image with each track's keypoint and its way since the last keyframe.

    Args:
        image: (H, W) grey or (H, W, 3) BGR; stays as it is.
        tracks: to draw, in pixels of `image`.
        width: of the result in pixels; 0 or more than W keeps the size.

    Returns:
        (h, w, 3) BGR. Inliers are coloured by the number of keyframes that saw them, orange (new)
        to green (long-lived); outliers are red crosses.
    """
    height, full_width = image.shape[:2]
    scale = min(1.0, width / full_width) if width > 0 else 1.0
    if scale < 1.0:
        size = (round(full_width * scale), max(1, round(height * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    # Grey and a little darker, so that the colours of the tracks are the only ones.
    canvas = cv2.cvtColor(cv2.convertScaleAbs(np.asarray(grey), alpha=0.85), cv2.COLOR_GRAY2BGR)
    # Sub-pixel drawing: OpenCV takes fixed-point coordinates with `shift` fractional bits.
    shift = 4
    factor = scale * (1 << shift)
    offset = 0.5 * (scale - 1.0) * (1 << shift)  # pixel centres at integers, see Camera.resized
    now = np.asarray(tracks.keypoints_xy, dtype=np.float64) * factor + offset
    before = np.asarray(tracks.previous_xy, dtype=np.float64) * factor + offset
    radius = round(2.2 * (1 << shift))
    arm = radius * 1.1
    for k in np.argsort(tracks.length, kind='stable'):  # long tracks on top
        if not np.isfinite(now[k]).all():
            continue
        x, y = (round(float(v)) for v in now[k])
        if not tracks.inlier[k]:
            for sign in (-1, 1):
                ends = (
                    (round(x - arm), round(y - sign * arm)),
                    (round(x + arm), round(y + sign * arm)),
                )
                cv2.line(canvas, *ends, _OUTLIER, 1, cv2.LINE_AA, shift)
            continue
        colour = _colour(int(tracks.length[k]))
        if np.isfinite(before[k]).all():
            tail = (round(float(before[k, 0])), round(float(before[k, 1])))
            cv2.line(canvas, tail, (x, y), colour, 1, cv2.LINE_AA, shift)
        cv2.circle(canvas, (x, y), radius, colour, -1, cv2.LINE_AA, shift)
    return np.asarray(canvas, dtype=np.uint8)


def _colour(length: int) -> tuple[float, float, float]:
    place = np.clip((length - 1) / (LONG_TRACK - 1), 0.0, 1.0) * (len(_RAMP) - 1)
    index = min(int(place), len(_RAMP) - 2)
    b, g, r = _RAMP[index] + (place - index) * (_RAMP[index + 1] - _RAMP[index])
    return float(b), float(g), float(r)


class TrackSampler:
    """Keeps `count` frames spread evenly over a run, and the first few where tracking failed.

    The number of frames need not be known: frames are kept at a stride that doubles whenever twice
    as many as needed have gathered. Pictures are drawn when kept, so memory stays at a few dozen
    small JPEGs.

    Args:
        run_dir: run folder; pictures go to its sub-folder `frames` on `close`.
        count: frames spread evenly.
        trouble: frames kept besides, where the status changed to DEGRADED or LOST.
        width: of the pictures, pixels.
    """

    def __init__(
        self, run_dir: Path | str, count: int = 9, trouble: int = 3, width: int = 560
    ) -> None:
        if count < 1 or trouble < 0 or width < 16:
            raise EvaluationError(
                f'frames to keep: count {count} (>= 1), trouble {trouble} (>= 0), '
                f'width {width} (>= 16)'
            )
        self._folder = Path(run_dir) / FOLDER
        self._count = count
        self._trouble = trouble
        self._width = width
        self._stride = 1
        self._seen = 0
        self._even: list[tuple[SampledFrame, bytes]] = []
        self._failures: list[tuple[SampledFrame, bytes]] = []
        self._last_status: Status | None = None

    def write(self, frame: Frame, estimate: Estimate) -> None:
        """Keep the frame if it is its turn."""
        troubled = estimate.status in (Status.DEGRADED, Status.LOST)
        failed = troubled and estimate.status != self._last_status
        if failed and len(self._failures) < self._trouble:
            self._failures.append(self._picture(frame, estimate))
        elif self._seen % self._stride == 0:
            self._even.append(self._picture(frame, estimate))
            if len(self._even) > 2 * self._count:
                self._even = self._even[::2]
                self._stride *= 2
        self._seen += 1
        self._last_status = estimate.status

    def close(self) -> None:
        """Write the pictures and their list."""
        chosen = self._even
        if len(chosen) > self._count:
            turns = np.linspace(0, len(chosen) - 1, self._count).round().astype(int)
            chosen = [chosen[k] for k in turns]
        chosen = sorted([*chosen, *self._failures], key=lambda item: item[0].index)
        self._folder.mkdir(parents=True, exist_ok=True)
        for sampled, jpeg in chosen:
            (self._folder.parent / sampled.file).write_bytes(jpeg)
        entries = [vars(sampled) for sampled, _ in chosen]
        (self._folder / INDEX).write_text(json.dumps(entries, indent=1), encoding='utf-8')

    def _picture(self, frame: Frame, estimate: Estimate) -> tuple[SampledFrame, bytes]:
        tracks = estimate.tracks
        if tracks is None:
            none = np.zeros((0, 2), np.float32)
            tracks = TrackView(none, none, np.zeros(0, np.bool_), np.zeros(0, np.int64))
        picture = draw_tracks(frame.views[0].image, tracks, self._width)
        done, jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 82])
        assert done, 'an 8-bit BGR picture can always be encoded'
        sampled = SampledFrame(
            f'{FOLDER}/{frame.index:06d}.jpg',
            frame.index,
            estimate.stamp_ns,
            estimate.status.value,
            {name: int(value) for name, value in estimate.counts.items()},
        )
        return sampled, jpeg.tobytes()


def read_samples(run_dir: Path | str) -> list[SampledFrame]:
    """The frames a `TrackSampler` kept in a run folder; empty when there are none.

    Raises:
        EvaluationError: their list is damaged.
    """
    path = Path(run_dir) / FOLDER / INDEX
    if not path.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding='utf-8'))
        samples = [SampledFrame(**entry) for entry in entries]
        if elsewhere := [s.file for s in samples if Path(s.file).parent != Path(FOLDER)]:
            raise ValueError(f'{elsewhere[0]} is not in {FOLDER}')  # a report shows what it finds
        return samples
    except (ValueError, TypeError, RecursionError) as error:
        raise EvaluationError(f'{path}: not a list of frames ({error})') from None
