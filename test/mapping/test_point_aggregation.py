# SPDX-License-Identifier: Apache-2.0
"""What several keyframes say of a point becomes one, with answers known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mv_matcher_ros.config import PointInferenceSettings
from mv_matcher_ros.mapping.point_aggregation import (
    Candidates,
    PointAggregation,
    PointMatches,
    surest,
)

FOCAL = 500.0
XY = torch.tensor([[100.0, 100.0], [101.0, 100.0], [300.0, 200.0], [400.0, 50.0]])


def candidates(*rows: tuple[int, int, tuple[float, float, float], float, float]) -> Candidates:
    """(keypoint, landmark, point, deviation, confidence of the point) each; matches at 0.8."""
    feature, landmark, points, sigma, sure = zip(*rows, strict=True)
    eye = torch.eye(3, dtype=torch.float64)
    place = torch.tensor(points, dtype=torch.float64)
    return Candidates(
        torch.tensor(feature),
        torch.tensor(landmark),
        place,
        torch.tensor(sigma, dtype=torch.float64)[:, None, None] ** 2 * eye,
        place[:, 2],
        torch.full((len(rows),), 0.8, dtype=torch.float64),
        torch.tensor(sure, dtype=torch.float64),
    )


def merged(given: Candidates, **settings: float) -> PointMatches:
    aggregation = PointAggregation(PointInferenceSettings(**settings), FOCAL)  # type: ignore[arg-type]
    return aggregation.merged(given, XY, 7)


def test_points_of_equal_errors_are_averaged_by_confidence() -> None:
    found = merged(candidates((2, -1, (0, 0, 4.0), 0.1, 0.9), (2, -1, (0, 0, 4.2), 0.1, 0.3)))
    assert found.feature.tolist() == [2]
    assert found.landmark.tolist() == [-1]
    assert found.asked == 7
    torch.testing.assert_close(
        found.points, torch.tensor([[0, 0, 4.0 + 0.2 * 0.3 / 1.2]], dtype=torch.float64)
    )
    # Nothing says that their errors are independent.
    torch.testing.assert_close(found.spread[0], 0.01 * torch.eye(3, dtype=torch.float64))
    assert float(found.confidence) == pytest.approx(0.8 * 0.9)


def test_the_better_known_counts_more() -> None:
    found = merged(candidates((2, -1, (0, 0, 4.0), 0.1, 0.5), (2, -1, (0, 0, 4.2), 0.3, 0.5)))
    assert float(found.points[0, 2]) == pytest.approx(4.0 + 0.2 * 0.1, abs=1e-9)
    assert float(found.spread[0, 2, 2]) == pytest.approx(2.0 / (1 / 0.01 + 1 / 0.09))


def test_what_disagrees_is_not_averaged_the_largest_group_wins() -> None:
    given = candidates(
        (2, -1, (0, 0, 6.0), 0.1, 0.9),
        (2, 5, (0, 0, 4.0), 0.1, 0.6),
        (2, -1, (0, 0, 4.1), 0.1, 0.6),
    )
    found = merged(given)
    assert float(found.points[0, 2]) == pytest.approx(4.05)
    assert found.landmark.tolist() == [5]
    # It is contradicted by 0.9 of 2.1.
    assert float(found.confidence) == pytest.approx(0.8 * 0.6 * 1.2 / 2.1)
    alone = merged(given.chosen(torch.tensor([0])))
    assert float(alone.points[0, 2]) == 6.0
    # With larger errors nothing disagrees.
    wide = merged(replace(given, spread=100.0 * given.spread))
    assert 4.1 < float(wide.points[0, 2]) < 6.0


def test_little_confidence_is_dropped() -> None:
    given = candidates((2, -1, (0, 0, 4.0), 0.1, 0.1), (3, -1, (0, 0, 5.0), 0.1, 0.11))
    assert merged(given).feature.tolist() == [3]
    assert merged(given, min_confidence=0.0).feature.tolist() == [2, 3]
    assert len(merged(given, min_confidence=0.5)) == 0


def test_near_keypoints_are_one_that_of_the_surest() -> None:
    given = candidates((0, -1, (0, 0, 4.0), 0.1, 0.4), (1, 9, (0, 0, 4.0), 0.1, 0.8))
    found = merged(given)
    assert found.feature.tolist() == [1]
    assert found.landmark.tolist() == [9]
    # The other one lies a pixel beside: at this depth 8 mm.
    share = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    information = share[0] / (0.01 + (4.0 / FOCAL) ** 2) + share[1] / 0.01
    assert float(found.spread[0, 0, 0]) == pytest.approx(1.0 / float(information))
    assert merged(given, merge_px=1.0).feature.tolist() == [0, 1]


def test_one_candidate_stays_what_it_is() -> None:
    given = candidates((3, 4, (1.0, 2.0, 4.0), 0.1, 1.0))
    found = merged(given)
    for name in ('feature', 'landmark', 'points', 'spread'):
        torch.testing.assert_close(getattr(found, name), getattr(given, name))
    assert float(found.confidence) == pytest.approx(0.8)


def test_the_order_of_candidates_is_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = [
        (int(k), -1, tuple(p.tolist()), 0.1, float(c))
        for k, p, c in zip(
            torch.randint(0, 4, (40,), generator=rng),
            torch.randn(40, 3, generator=rng) * 0.15 + torch.tensor([0, 0, 4.0]),
            torch.rand(40, generator=rng),
            strict=True,
        )
    ]
    given = candidates(*rows)  # type: ignore[arg-type]
    one = merged(given)
    other = merged(given.chosen(torch.randperm(40, generator=rng)))
    for name in ('feature', 'points', 'spread', 'confidence'):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_nothing_gives_nothing() -> None:
    none = candidates((0, -1, (0, 0, 4.0), 0.1, 1.0)).chosen(torch.zeros(1, dtype=torch.bool))
    for found in (merged(none), surest(none, 3)):
        assert len(found) == 0
        assert found.points.shape == (0, 3)
        assert found.spread.shape == (0, 3, 3)


def test_the_surest_of_each_keypoint() -> None:
    given = candidates(
        (2, 1, (0, 0, 4.0), 0.1, 0.5), (0, 2, (0, 0, 5.0), 0.1, 0.1), (2, 3, (0, 0, 6.0), 0.1, 0.7)
    )
    found = surest(given, 5)
    assert found.feature.tolist() == [0, 2]
    assert found.landmark.tolist() == [2, 3]
    assert found.asked == 5
