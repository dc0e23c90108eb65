# SPDX-License-Identifier: Apache-2.0
"""Are places found again? Recall of retrieval, and what a recogniser tells rightly and wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError

Floats = NDArray[np.float32]
# A keyframe with this overlap is the place of the query; one with less than the other is not.
# In between it is neither a success nor a fault.
SAME, OTHER = 0.3, 0.1
RANKS = (1, 5, 10)
# Without depth: two views have much in common this near to each other, turned no more than this.
NEAR_M, NEAR_DEG = 5.0, 40.0


@dataclass(frozen=True)
class PlaceTruth:
    """Which keyframes of a recording see the same.

    Attributes:
        overlap: (N, N) share of the view that keyframes have in common.
        may: (N, N) bool, row: query; whether the column is so much older that it may be found.
    """

    overlap: Floats
    may: NDArray[np.bool_]

    @classmethod
    def of(cls, overlap: Floats, stamps_ns: NDArray[np.int64], gap_s: float) -> PlaceTruth:
        """Of keyframes in order of time; younger ones than `gap_s` may not be found."""
        older = stamps_ns[:, None] - stamps_ns[None] >= round(gap_s * 1e9)
        return cls(overlap, older)

    @property
    def revisits(self) -> NDArray[np.bool_]:
        """(N,) whether there is something to be found."""
        return np.asarray((self.overlap * self.may).max(1, initial=0.0) >= SAME)


@dataclass(frozen=True)
class Retrieval:
    """How well the most similar keyframes are the place.

    Attributes:
        revisits: queries with something to be found.
        recall: percent of them with the place among the best 1, 5, 10.
        sure: percent of them that are found when so few are told that 99 % of those are right.
    """

    revisits: int
    recall: dict[int, float]
    sure: float


@dataclass(frozen=True)
class Told:
    """What a recogniser says at its settings.

    Attributes:
        queries, revisits: keyframes asked for, and those with something to be found.
        told, wrong: how many it told a place of, and a wrong one.
        precision: percent of those told that are not wrong; None where nothing is told.
        recall: percent of the revisits of which the place was told.
    """

    queries: int
    revisits: int
    told: int
    wrong: int
    precision: float | None
    recall: float


def retrieval(scores: Floats, truth: PlaceTruth, foreign: Floats | None = None) -> Retrieval:
    """Recall of scores (N, N), row: query; `foreign` (N, M) are those with keyframes of elsewhere.

    Raises:
        EvaluationError: no place is seen twice.
    """
    asked = np.flatnonzero(truth.revisits)
    if not len(asked):
        raise EvaluationError('no keyframe sees a place again: nothing can be found')
    count = len(scores)
    elsewhere = np.zeros((count, 0), np.float32) if foreign is None else foreign
    every = np.concatenate([np.where(truth.may, scores, -np.inf), elsewhere], 1)
    overlap = np.concatenate([truth.overlap, np.zeros_like(elsewhere)], 1)
    order = np.argsort(-every, axis=1, kind='stable')[:, : max(RANKS)]
    found = np.take_along_axis(overlap, order, 1) >= SAME
    found &= np.isfinite(np.take_along_axis(every, order, 1))
    recall = {rank: 100.0 * float(found[asked, :rank].any(1).mean()) for rank in RANKS}
    best = np.take_along_axis(every, order[:, :1], 1)[:, 0]
    wrong = np.take_along_axis(overlap, order[:, :1], 1)[:, 0] < OTHER
    return Retrieval(len(asked), recall, _sure(best, found[:, 0], wrong, len(asked)))


def _sure(
    best: Floats, right: NDArray[np.bool_], wrong: NDArray[np.bool_], revisits: int
) -> float:
    """Percent of revisits above the threshold below which more than 1 % are wrong."""
    order = np.argsort(-best, kind='stable')
    order = order[np.isfinite(best[order])]
    faults = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(faults <= 0.01)
    return 100.0 * float(right[order[: good[-1] + 1]].sum()) / revisits if len(good) else 0.0


def judged(answers: Sequence[int | None], truth: PlaceTruth) -> Told:
    """What was told of each keyframe: another one of the recording, -1: of elsewhere, or None."""
    revisits = truth.revisits
    told = wrong = right = 0
    for query, answer in enumerate(answers):
        if answer is None:
            continue
        overlap = truth.overlap[query, answer] if answer >= 0 else 0.0
        told += 1
        wrong += bool(overlap < OTHER)
        right += bool(revisits[query] and overlap >= OTHER)
    return Told(
        len(answers),
        int(revisits.sum()),
        told,
        wrong,
        100.0 * (told - wrong) / told if told else None,
        100.0 * right / max(1, int(revisits.sum())),
    )


def overlap_without_depth(world_from_camera: Array) -> Floats:
    """(N, N) 1 where two cameras (N, 4, 4) are near and look the same way, else 0."""
    place, ahead = world_from_camera[:, :3, 3], world_from_camera[:, :3, 2]
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    alike = ahead @ ahead.T >= np.cos(np.deg2rad(NEAR_DEG))
    return (alike & (distance <= NEAR_M)).astype(np.float32)
