# SPDX-License-Identifier: Apache-2.0
"""Tracks are consistent, and what one match after another would make."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.odometry.tracks import build_tracks


def matches_of(rows: list[tuple[int, int, int, int, float]]) -> Matches:
    """From (view a, keypoint a, view b, keypoint b, confidence)."""
    return Matches(
        torch.tensor([[r[0], r[2]] for r in rows], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([[r[1], r[3]] for r in rows], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([r[4] for r in rows]),
    )


def one_by_one(matches: Matches) -> list[dict[int, int]]:
    """The definition: most confident first, join unless a view would see the track twice."""
    tracks: dict[tuple[int, int], dict[int, int]] = {}
    for index in matches.confidence.argsort(descending=True, stable=True).tolist():
        ends = list(
            zip(matches.views[index].tolist(), matches.keypoints[index].tolist(), strict=True)
        )
        first, second = (tracks.setdefault(end, dict([end])) for end in ends)
        if first is second or first.keys() & second.keys():
            continue
        first.update(second)
        for end in second.items():
            tracks[end] = first
    unique = {id(track): track for track in tracks.values() if len(track) > 1}
    return sorted(unique.values(), key=lambda track: sorted(track.items()))


def as_dictionaries(keypoint: torch.Tensor) -> list[dict[int, int]]:
    tracks = [{view: k for view, k in enumerate(row) if k >= 0} for row in keypoint.tolist()]
    return sorted(tracks, key=lambda track: sorted(track.items()))


def random_matches(seed: int, views: int, keypoints: int, wrong: float, levels: int) -> Matches:
    """Keypoint k of all views is the same point; a share of the matches is wrong."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for a, b in combinations(range(views), 2):
        for k in range(keypoints):
            if torch.rand(1, generator=generator) < 0.6:
                other = k
                if torch.rand(1, generator=generator) < wrong:
                    other = int(torch.randint(keypoints, (1,), generator=generator))
                score = int(torch.randint(levels, (1,), generator=generator)) / levels
                rows.append((a, k, b, other, score))
    return matches_of(rows)


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('views', [2, 3, 5, 9])
@pytest.mark.parametrize('levels', [3, 1000])
def test_same_as_one_match_after_another(seed: int, views: int, levels: int) -> None:
    matches = random_matches(seed, views, 40, 0.3, levels)
    assert as_dictionaries(build_tracks(matches, views, 40).keypoint) == one_by_one(matches)


def test_correct_matches_join_to_whole_tracks() -> None:
    matches = random_matches(0, 5, 30, 0.0, 1000)
    tracks = build_tracks(matches, 5, 30)
    for row in tracks.keypoint.tolist():
        assert len({k for k in row if k >= 0}) == 1
    assert len(tracks) > 25


def test_a_conflict_is_resolved_by_confidence() -> None:
    matches = matches_of([(0, 1, 1, 1, 0.9), (1, 1, 2, 1, 0.8), (0, 2, 2, 1, 0.3)])
    tracks = build_tracks(matches, 3, 5)
    assert tracks.keypoint.tolist() == [[1, 1, 1]]
    torch.testing.assert_close(tracks.confidence, torch.tensor([[0.9, 0.9, 0.8]]))


def test_confidences_carry_gradients() -> None:
    matches = matches_of([(0, 1, 1, 1, 0.9), (1, 1, 2, 1, 0.8), (0, 2, 2, 1, 0.3)])
    matches.confidence.requires_grad_()
    build_tracks(matches, 3, 5).confidence.sum().backward()
    assert matches.confidence.grad is not None
    assert matches.confidence.grad.tolist() == [2.0, 1.0, 0.0]


def test_no_matches_no_tracks() -> None:
    tracks = build_tracks(matches_of([]), 4, 10)
    assert tracks.keypoint.shape == tracks.confidence.shape == (0, 4)


def test_matches_of_views_that_are_not_there_are_refused() -> None:
    with pytest.raises(GeometryError, match='others than 2 views of 10'):
        build_tracks(matches_of([(0, 1, 2, 1, 0.9)]), 2, 10)
    with pytest.raises(GeometryError, match='others than 3 views of 10'):
        build_tracks(matches_of([(0, 1, 2, -1, 0.9)]), 3, 10)
    with pytest.raises(GeometryError, match='63 views are too many'):
        build_tracks(matches_of([]), 63, 10)
