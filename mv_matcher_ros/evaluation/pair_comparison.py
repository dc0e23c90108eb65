# SPDX-License-Identifier: Apache-2.0
"""Several ways of matching on the same image pairs: how sure their differences are.

Image pairs are drawn anew with replacement, the same for every way (a paired bootstrap): what is
hard for all of them cancels in a difference. Robust solvers depend on the order of the matches, so
each pair is solved several times with its matches in other orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.matching_error import pose_auc

DRAWS = 1000
INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class WayResult:
    """What one way of matching and solving made of P pairs.

    Attributes:
        errors_deg: (S, P) pose error of each pair with its matches in each of S orders.
        precision, matching_score: (P,) percent.
        milliseconds: (P,) of the solver, median over the orders.
    """

    errors_deg: Array
    precision: Array
    matching_score: Array
    milliseconds: Array


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, and its difference from the first way's.

    Attributes:
        value: of all pairs.
        interval: of `value`.
        difference: from the first way; 0 for itself.
        difference_interval: of the difference; 0 outside of it makes the difference sure.
    """

    value: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def compare(
    ways: Mapping[str, WayResult], thresholds_deg: Sequence[float], seed: int = 0
) -> dict[str, dict[str, Figure]]:
    """Figures of each way: `auc@T` for each threshold, `precision`, `matching_score`, in percent.

    Args:
        ways: by name, the first being what the others are compared with; of the same pairs.
        thresholds_deg: of the AUC.
        seed: of the bootstrap.

    Raises:
        EvaluationError: no ways, no pairs, or ways of different pairs.
    """
    counts = {way.errors_deg.shape[1] for way in ways.values()}
    if len(counts) != 1 or 0 in counts:
        raise EvaluationError(
            f'ways are compared on the same pairs, these have {sorted(counts)} pairs'
        )
    count = counts.pop()
    rng = np.random.default_rng(seed)
    drawn = [np.arange(count), *rng.integers(count, size=(DRAWS, count))]
    names = [f'auc@{t:g}' for t in thresholds_deg] + ['precision', 'matching_score']
    figures = {
        name: np.array([_figures(way, index, thresholds_deg) for index in drawn])
        for name, way in ways.items()
    }
    first = next(iter(figures.values()))
    return {
        way: {
            name: _figure(values[:, column], (values - first)[:, column])
            for column, name in enumerate(names)
        }
        for way, values in figures.items()
    }


def _figures(
    way: WayResult, index: NDArray[np.integer], thresholds_deg: Sequence[float]
) -> list[float]:
    errors = way.errors_deg[:, index]
    return [
        *(float(np.mean([pose_auc(row, t) for row in errors])) for t in thresholds_deg),
        float(way.precision[index].mean()),
        float(way.matching_score[index].mean()),
    ]


def _figure(values: Array, differences: Array) -> Figure:
    """The first entry is that of all pairs, the others of drawn ones."""
    return Figure(
        float(values[0]), _interval(values[1:]), float(differences[0]), _interval(differences[1:])
    )


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)
