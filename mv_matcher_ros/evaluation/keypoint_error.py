# SPDX-License-Identifier: Apache-2.0
"""How well keypoints are found again and matched in views whose points are known to correspond.

Source of the measures: DeTone et al., SuperPoint, appendix (repeatability, localisation error);
Mikolajczyk and Schmid, A performance evaluation of local descriptors, PAMI 2005 (matching score).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError

THRESHOLDS_PX = (1.0, 3.0, 5.0)
# Localisation is measured over keypoints found again within this distance.
LOCALISED_PX = 3.0


@dataclass(frozen=True)
class ViewKeypoints:
    """N keypoints of one view.

    Attributes:
        xy: (N, 2) pixels.
        there_xy: (N, 2) where they truly lie in the other view.
        seen: (N,) bool, whether the other view sees that place.
    """

    xy: Array
    there_xy: Array
    seen: NDArray[np.bool_]


@dataclass(frozen=True)
class KeypointFigures:
    """Of one pair or the mean of many; shares are in percent, NaN where nothing was there.

    Attributes:
        repeatability: keypoints seen in both views that have one of the other view within 1, 3
            and 5 px.
        accuracy: matches whose point both views see that are right within 1, 3 and 5 px.
        matching_score: right matches among the keypoints of the first view that the second sees.
        localisation_px: mean distance of keypoints found again within 3 px.
        matched_px: mean distance of matches right within 3 px.
        keypoints, matches: how many.
    """

    repeatability: tuple[float, ...]
    accuracy: tuple[float, ...]
    matching_score: tuple[float, ...]
    localisation_px: float
    matched_px: float
    keypoints: float
    matches: float

    @classmethod
    def mean(cls, figures: Sequence[KeypointFigures]) -> KeypointFigures:
        """Means over pairs, each without those that have no such figure.

        Raises:
            EvaluationError: no pairs.
        """
        if not figures:
            raise EvaluationError('no pairs of views to take means of')
        means = {}
        for field in fields(cls):
            values = np.array([getattr(one, field.name) for one in figures], np.float64)
            there = np.isfinite(values).sum(0)
            total = np.nansum(values, 0)
            found = np.divide(total, there, out=np.full_like(total, np.nan), where=there > 0)
            means[field.name] = tuple(found.tolist()) if found.ndim else float(found)
        return cls(**means)  # type: ignore[arg-type]

    def named(self, prefix: str = '') -> dict[str, float]:
        """Flat numbers by name, e.g. `repeatability_3`."""
        found: dict[str, float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                for threshold, number in zip(THRESHOLDS_PX, value, strict=True):
                    found[f'{prefix}{field.name}_{threshold:g}'] = number
            else:
                found[f'{prefix}{field.name}'] = value
        return found


def keypoint_figures(
    a: ViewKeypoints, b: ViewKeypoints, matches: NDArray[np.int64]
) -> KeypointFigures:
    """Figures of one pair of views.

    Args:
        a, b: keypoints of both views.
        matches: (K, 2) indices of keypoints of a and b.
    """
    again = np.concatenate([_nearest_px(a, b.xy), _nearest_px(b, a.xy)])
    judged = matches[a.seen[matches[:, 0]]] if len(matches) else matches
    error = np.linalg.norm(a.there_xy[judged[:, 0]] - b.xy[judged[:, 1]], axis=1)
    there = int(a.seen.sum())
    right = error[error <= LOCALISED_PX]
    found = again[again <= LOCALISED_PX]
    return KeypointFigures(
        tuple(_percent(int((again <= t).sum()), len(again)) for t in THRESHOLDS_PX),
        tuple(_percent(int((error <= t).sum()), len(error)) for t in THRESHOLDS_PX),
        tuple(_percent(int((error <= t).sum()), there) for t in THRESHOLDS_PX),
        float(found.mean()) if len(found) else float('nan'),
        float(right.mean()) if len(right) else float('nan'),
        float(len(a.xy)),
        float(len(matches)),
    )


def mutual_nearest(similarity: Array) -> NDArray[np.int64]:
    """(K, 2) rows and columns of an (N, M) similarity that are each other's best."""
    if 0 in similarity.shape:
        return np.zeros((0, 2), np.int64)
    best, back = similarity.argmax(1), similarity.argmax(0)
    rows = np.flatnonzero(back[best] == np.arange(len(similarity)))
    return np.stack([rows, best[rows]], axis=1).astype(np.int64)


def _nearest_px(view: ViewKeypoints, others_xy: Array) -> Array:
    """Distance of each seen keypoint's true place to the nearest keypoint of the other view."""
    places = view.there_xy[view.seen]
    if len(others_xy) == 0:
        return np.full(len(places), np.inf)
    distance = np.linalg.norm(places[:, None] - others_xy[None], axis=2)
    return np.asarray(distance.min(1) if len(places) else np.zeros(0), np.float64)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else float('nan')
