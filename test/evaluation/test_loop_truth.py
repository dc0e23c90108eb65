# SPDX-License-Identifier: Apache-2.0
"""Loops and revisits with a known answer."""

from __future__ import annotations

import numpy as np

from mv_matcher_ros.evaluation.loop_truth import closed, distinct_revisits, judge_loops
from mv_matcher_ros.evaluation.place_recall import PlaceTruth


def poses(count: int) -> np.ndarray:
    made = np.tile(np.eye(4), (count, 1, 1))
    made[:, 0, 3] = np.arange(count)
    return made


def truth(pairs: list[tuple[int, int]], count: int = 40) -> PlaceTruth:
    overlap = np.eye(count, dtype=np.float32)
    for a, b in pairs:
        overlap[a, b] = overlap[b, a] = 0.6
    return PlaceTruth.of(overlap, np.arange(count) * 10**9, 10.0)


def test_a_loop_is_true_where_both_see_the_same_and_the_turn_is_right() -> None:
    known = truth([(1, 20), (2, 21)])
    body = poses(40)
    right = np.eye(4)
    right[0, 3] = 19.0
    turned = right.copy()
    turned[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    found = judge_loops([(1, 20, right), (2, 21, turned), (3, 22, turned)], body, known)
    assert [loop.true for loop in found] == [True, False, False]
    np.testing.assert_allclose([loop.rotation_deg for loop in found], [0.0, 90.0, 90.0], atol=1e-6)
    # What both see from afar is true where the position is right, too, in whatever unit.
    far = np.eye(4)
    far[0, 3] = 18.9
    body = poses(40)
    assert judge_loops([(4, 23, far)], body, known)[0].true
    assert not judge_loops([(4, 23, far)], body, known, [0.5])[0].true
    far[0, 3] *= 2.0
    assert judge_loops([(4, 23, far)], body, known, [0.5])[0].true
    # The newer one first is the same loop.
    back = judge_loops([(20, 1, np.linalg.inv(right))], body, known)[0]
    assert (back.a, back.b, back.true) == (1, 20, True)


def test_revisits_end_where_nothing_is_seen_again_for_a_while() -> None:
    known = truth([(1, 20), (2, 21), (4, 23), (5, 30), (6, 8)])  # the last one: too soon
    revisits = distinct_revisits(known)
    assert revisits == [(20, 23), (30, 30)]
    loops = judge_loops([(2, 21, np.eye(4))], poses(40), known)
    assert closed(revisits, loops) == 1
    assert closed(revisits, []) == 0
    assert distinct_revisits(truth([])) == []
