# SPDX-License-Identifier: Apache-2.0
"""Figures of keypoints on views made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.keypoint_error import (
    KeypointFigures,
    ViewKeypoints,
    keypoint_figures,
    mutual_nearest,
)


def shifted(xy: np.ndarray, by: float, seen: list[bool]) -> ViewKeypoints:
    return ViewKeypoints(xy, xy + np.array([by, 0.0]), np.array(seen))


def test_figures_of_a_constructed_pair() -> None:
    """The second view is the first one moved by 10 px; its keypoints are 0, 2, 4 and 30 px off."""
    a = np.array([[20.0, 20], [50, 20], [80, 20], [110, 20], [200, 20]])
    b = a[:4] + np.array([[10.0, 0], [10, 2], [10, 4], [10, 30]])
    matches = np.array([[0, 0], [1, 1], [2, 2], [3, 3], [4, 0]])
    found = keypoint_figures(
        shifted(a, 10.0, [True, True, True, True, False]),
        shifted(b, -10.0, [True] * 4),
        matches,
    )
    assert found.repeatability == (25.0, 50.0, 75.0)
    assert found.accuracy == (25.0, 50.0, 75.0)  # the fifth match has no known place
    assert found.matching_score == (25.0, 50.0, 75.0)
    assert found.localisation_px == pytest.approx(1.0)
    assert found.matched_px == pytest.approx(1.0)
    assert (found.keypoints, found.matches) == (5.0, 5.0)
    assert found.named('x_')['x_accuracy_3'] == 50.0


def test_a_view_without_keypoints_has_no_shares_and_does_not_enter_means() -> None:
    nothing = ViewKeypoints(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, np.bool_))
    some = shifted(np.array([[5.0, 5], [9, 9]]), 0.0, [True, True])
    empty = keypoint_figures(nothing, nothing, np.zeros((0, 2), np.int64))
    assert np.isnan(empty.repeatability).all()
    half = keypoint_figures(some, nothing, np.zeros((0, 2), np.int64))
    assert half.repeatability == (0.0, 0.0, 0.0)
    whole = keypoint_figures(some, some, np.array([[0, 0], [1, 1]]))
    mean = KeypointFigures.mean([empty, half, whole])
    assert mean.matching_score == (50.0, 50.0, 50.0)
    assert mean.matched_px == 0.0
    with pytest.raises(EvaluationError, match='no pairs'):
        KeypointFigures.mean([])


def test_mutual_nearest_takes_only_what_both_sides_prefer() -> None:
    similarity = np.array([[0.9, 0.2], [0.8, 0.1], [0.3, 0.7]])
    assert mutual_nearest(similarity).tolist() == [[0, 0], [2, 1]]
    assert mutual_nearest(np.zeros((0, 3))).shape == (0, 2)
