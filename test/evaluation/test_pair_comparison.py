# SPDX-License-Identifier: Apache-2.0
"""Figures of several ways on the same pairs, and how sure their differences are."""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.matching_error import pose_auc
from mv_matcher_ros.evaluation.pair_comparison import WayResult, compare

PAIRS = 80


def way(errors: np.ndarray, precision: float = 50.0) -> WayResult:
    flat = np.full(errors.shape[1], precision)
    return WayResult(errors, flat, 0.5 * flat, np.ones(errors.shape[1]))


def hard_and_easy(seed: int = 0) -> np.ndarray:
    """Errors that differ much from pair to pair."""
    return np.random.default_rng(seed).exponential(6.0, size=(1, PAIRS))


def test_figures_are_those_of_all_pairs_and_mean_over_the_orders() -> None:
    errors = np.concatenate([hard_and_easy(0), hard_and_easy(1)])
    (row,) = compare({'one': way(errors, 70.0)}, (5.0, 10.0)).values()
    expected = np.mean([pose_auc(list(order), 5.0) for order in errors])
    assert row['auc@5'].value == pytest.approx(expected)
    assert row['precision'].value == pytest.approx(70.0)
    assert row['matching_score'].value == pytest.approx(35.0)
    assert row['auc@5'].difference == 0.0
    assert row['auc@5'].difference_interval == (0.0, 0.0)


def test_a_small_gain_on_every_pair_is_sure_though_the_figures_overlap() -> None:
    """What is hard for both cancels."""
    errors = hard_and_easy()
    both = compare({'base': way(errors), 'better': way(0.85 * errors)}, (10.0,))
    base, better = both['base']['auc@10'], both['better']['auc@10']
    assert base.interval[1] > better.interval[0]
    assert better.difference_interval[0] > 0.0
    assert better.difference == pytest.approx(better.value - base.value)


def test_equal_ways_in_another_order_of_luck_are_not_told_apart() -> None:
    both = compare({'one': way(hard_and_easy(3)), 'other': way(hard_and_easy(4))}, (10.0,))
    low, high = both['other']['auc@10'].difference_interval
    assert low < 0.0 < high


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Mean precision of many pairs, drawn 60 times."""
    hits = 0
    for seed in range(60):
        precision = np.random.default_rng(seed).normal(60.0, 10.0, PAIRS)
        one = WayResult(hard_and_easy(), precision, precision, precision)
        low, high = compare({'one': one}, (10.0,))['one']['precision'].interval
        hits += low < 60.0 < high
    assert 51 <= hits <= 60


def test_ways_of_different_pairs_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r'same pairs, these have \[40, 80\]'):
        compare({'one': way(hard_and_easy()), 'other': way(hard_and_easy()[:, :40])}, (5.0,))
    with pytest.raises(EvaluationError, match='same pairs'):
        compare({}, (5.0,))
