# SPDX-License-Identifier: Apache-2.0
"""Which loops of a map are true, and which revisits were closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.evaluation.place_recall import OTHER, PlaceTruth
from mv_matcher_ros.evaluation.poses import invert, rotation_angle_rad

# A revisit ends where so many keyframes in a row see nothing that was seen before.
PAUSE = 3
# A loop whose keyframes see the same, but which turns by so much more than the truth, is false.
TURNED_DEG = 10.0
# Where they share no view by the depths of their images, both may still see far things: the loop
# is true if its position errs by less than this, or this share of the way.
MOVED_M, MOVED_SHARE = 0.1, 0.1


@dataclass(frozen=True)
class JudgedLoop:
    """A loop between two keyframes, beside the truth.

    Attributes:
        a, b: places of the keyframes in the order of time, a before b.
        overlap: share of the view that they truly have in common.
        rotation_deg: error of the measured rotation.
        position_m: error of the measured position.
        true: they see the same and the rotation is about right, or both are right.
    """

    a: int
    b: int
    overlap: float
    rotation_deg: float
    position_m: float
    true: bool


def judge_loops(
    loops: Sequence[tuple[int, int, Array]],
    world_from_body: Array,
    truth: PlaceTruth,
    unit_m: Sequence[float] | None = None,
) -> list[JudgedLoop]:
    """Compare loops with the truth.

    Args:
        loops: places of two keyframes and the measured (4, 4) rigid `a_from_b`.
        world_from_body: (N, 4, 4) true poses of the keyframes.
        truth: what they have in common.
        unit_m: metres in the unit of each loop's measured position; None: they are metres.
    """
    found = []
    for (a, b, measured), unit in zip(loops, unit_m or [1.0] * len(loops), strict=True):
        true = invert(world_from_body[[a]])[0] @ world_from_body[b]
        error = float(np.degrees(rotation_angle_rad((invert(true[None])[0] @ measured)[None])[0]))
        overlap = float(truth.overlap[a, b])
        off = float(np.linalg.norm(true[:3, 3] - unit * measured[:3, 3]))
        near = off <= max(MOVED_M, MOVED_SHARE * float(np.linalg.norm(true[:3, 3])))
        right = error <= TURNED_DEG and (overlap >= OTHER or near)
        found.append(JudgedLoop(min(a, b), max(a, b), overlap, error, off, right))
    return found


def distinct_revisits(truth: PlaceTruth) -> list[tuple[int, int]]:
    """First and last keyframe of every time that something seen before is seen again.

    What is seen all the time again, without a pause, is one revisit.
    """
    again: NDArray[np.int64] = np.flatnonzero(truth.revisits)
    if not len(again):
        return []
    breaks = np.flatnonzero(np.diff(again) > PAUSE)
    first = again[np.concatenate([[0], breaks + 1])]
    last = again[np.concatenate([breaks, [len(again) - 1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))


def closed(revisits: Sequence[tuple[int, int]], loops: Sequence[JudgedLoop]) -> int:
    """How many revisits have a true loop."""
    return sum(
        any(loop.true and first - PAUSE <= loop.b <= last + PAUSE for loop in loops)
        for first, last in revisits
    )
