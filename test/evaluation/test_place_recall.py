# SPDX-License-Identifier: Apache-2.0
"""Figures of place recognition on tables of scores whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.place_recall import (
    PlaceTruth,
    judged,
    overlap_without_depth,
    retrieval,
)

SECOND = 1_000_000_000


def two_rounds(count: int = 6) -> PlaceTruth:
    """Keyframe n + count sees what n saw; a second between keyframes."""
    overlap = np.eye(2 * count, dtype=np.float32)
    for n in range(count):
        overlap[n + count, n] = overlap[n, n + count] = 0.8
    return PlaceTruth.of(overlap, np.arange(2 * count) * SECOND, 3.0)


def test_only_older_keyframes_may_be_found() -> None:
    truth = two_rounds()
    np.testing.assert_array_equal(truth.revisits, [False] * 6 + [True] * 6)
    assert truth.may[6, 3]
    assert not truth.may[6, 4]
    assert not truth.may[3, 6]


def test_recall_of_right_and_wrong_scores() -> None:
    truth = two_rounds()
    found = retrieval(truth.overlap, truth)
    assert (found.revisits, found.recall, found.sure) == (
        6,
        {1: 100.0, 5: 100.0, 10: 100.0},
        100.0,
    )
    spoilt = truth.overlap.copy()
    spoilt[8, 0] = 0.9  # one wrong keyframe is more similar than all right ones
    found = retrieval(spoilt, truth)
    assert found.recall[1] == pytest.approx(100 * 5 / 6)
    assert found.recall[5] == 100.0
    assert found.sure == 0.0
    foreign = np.zeros((12, 6), np.float32)
    foreign[7] = 0.95
    assert retrieval(truth.overlap, truth, foreign).recall == {
        1: pytest.approx(500 / 6), 5: pytest.approx(500 / 6), 10: 100.0,
    }  # fmt: skip


def test_images_that_show_nothing_are_not_found() -> None:
    truth = two_rounds()
    scores = truth.overlap.copy()
    scores[6] = -np.inf
    found = retrieval(scores, truth)
    assert found.recall[10] == pytest.approx(500 / 6)
    assert found.sure == pytest.approx(500 / 6)


def test_nothing_to_be_found_is_said() -> None:
    truth = PlaceTruth.of(np.eye(4, dtype=np.float32), np.arange(4) * SECOND, 1.0)
    with pytest.raises(EvaluationError, match='no keyframe sees a place again'):
        retrieval(np.zeros((4, 4), np.float32), truth)


def test_told_rightly_and_wrongly() -> None:
    truth = two_rounds()
    answers: list[int | None] = [None] * 6 + [0, 1, 2, 5, -1, None]
    told = judged(answers, truth)
    assert (told.queries, told.revisits, told.told, told.wrong) == (12, 6, 5, 2)
    assert told.precision == pytest.approx(60.0)
    assert told.recall == pytest.approx(50.0)
    assert judged([None] * 12, truth).precision is None


def test_without_depth_near_cameras_that_look_alike_overlap() -> None:
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[1, 0, 3] = 4.0
    poses[2, 0, 3] = 20.0
    poses[3, :3, :3] = np.diag([-1.0, 1.0, -1.0])  # looks back
    want = np.eye(4)
    want[0, 1] = want[1, 0] = 1.0
    np.testing.assert_array_equal(overlap_without_depth(poses), want)
