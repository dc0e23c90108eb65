# SPDX-License-Identifier: Apache-2.0
"""Several ways of matching on the same image pairs or tuples: how sure their differences are.

Pairs or tuples are drawn anew with replacement, the same for every way (a paired bootstrap): what
is hard for all of them cancels in a difference. Robust solvers depend on the order of the matches,
so each pair is solved several times with its matches in other orders; of networks, several that
were trained with other seeds are taken together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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
    names = [f'auc@{t:g}' for t in thresholds_deg] + ['precision', 'matching_score']
    of_pairs = {n: partial(_figures, way, thresholds_deg) for n, way in ways.items()}
    return bootstrap(of_pairs, counts.pop(), names, seed)


def bootstrap(
    ways: Mapping[str, Callable[[NDArray[np.integer]], Sequence[float]]],
    count: int,
    names: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, Figure]]:
    """Figures of each way over `count` things, and over things that were drawn anew.

    Args:
        ways: by name, figures of the things of an index, in order of `names`.
    """
    rng = np.random.default_rng(seed)
    drawn = [np.arange(count), *rng.integers(count, size=(DRAWS, count))]
    figures = {name: np.array([way(index) for index in drawn]) for name, way in ways.items()}
    first = next(iter(figures.values()))
    return {
        way: {
            name: _figure(values[:, column], (values - first)[:, column])
            for column, name in enumerate(names)
        }
        for way, values in figures.items()
    }


def _figures(
    way: WayResult, thresholds_deg: Sequence[float], index: NDArray[np.integer]
) -> list[float]:
    errors = way.errors_deg[:, index]
    return [
        *(float(np.mean([pose_auc(row, t) for row in errors])) for t in thresholds_deg),
        float(way.precision[index].mean()),
        float(way.matching_score[index].mean()),
    ]


@dataclass(frozen=True)
class TupleResult:
    """What one way made of T tuples of views, P pairs in all.

    Attributes:
        rotation_deg, translation_deg: (S, P) errors of each pair by networks of S seeds.
        tuple_of_pair: (P,) int, ascending.
        right, made: (S, T) matches that are right, and all whose point is known.
        milliseconds: (T,) of the matcher and of the poses, median over the seeds.
    """

    rotation_deg: Array
    translation_deg: Array
    tuple_of_pair: NDArray[np.integer]
    right: Array
    made: Array
    milliseconds: Array


def compare_tuples(
    ways: Mapping[str, TupleResult], thresholds_deg: Sequence[float], seed: int = 0
) -> dict[str, dict[str, Figure]]:
    """Figures of each way, drawing tuples: `R auc@T`, `t auc@T`, `precision` (percent), `matches`.

    Raises:
        EvaluationError: no ways, no tuples, or ways of different tuples.
    """
    counts = {way.right.shape[1] for way in ways.values()}
    if len(counts) != 1 or 0 in counts:
        raise EvaluationError(f'ways are compared on the same tuples, these have {sorted(counts)}')
    parts = [f'{part} auc@{t:g}' for part in 'Rt' for t in thresholds_deg]
    of_tuples = {n: partial(_tuple_figures, way, thresholds_deg) for n, way in ways.items()}
    return bootstrap(of_tuples, counts.pop(), [*parts, 'precision', 'matches'], seed)


def _tuple_figures(
    way: TupleResult, thresholds_deg: Sequence[float], index: NDArray[np.integer]
) -> list[float]:
    begin = np.searchsorted(way.tuple_of_pair, index)
    end = np.searchsorted(way.tuple_of_pair, index, side='right')
    pairs = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])
    right, made = way.right[:, index].sum(1), way.made[:, index].sum(1)
    return [
        *(
            float(np.mean([pose_auc(row, threshold) for row in errors[:, pairs]]))
            for errors in (way.rotation_deg, way.translation_deg)
            for threshold in thresholds_deg
        ),
        float(np.mean(100.0 * right / np.maximum(made, 1))),
        float(made.mean() / len(index)),
    ]


def _figure(values: Array, differences: Array) -> Figure:
    """The first entry is that of all pairs, the others of drawn ones."""
    return Figure(
        float(values[0]), _interval(values[1:]), float(differences[0]), _interval(differences[1:])
    )


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)
