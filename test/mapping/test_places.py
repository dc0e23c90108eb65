# SPDX-License-Identifier: Apache-2.0
"""Search among place descriptors is exact; a place is told when keyframes in a row see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import PlaceSettings
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.mapping.place_index import PlaceArrays, PlaceIndex
from mv_matcher_ros.mapping.places import PlaceCandidate, PlaceRecogniser

SECOND = 1_000_000_000
SIZE = 32


def unit(count: int, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """(count, size) random unit descriptors."""
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def filled(rows: torch.Tensor, half: bool = True) -> PlaceIndex:
    """An index with a keyframe a second; keys count in tens."""
    index = PlaceIndex(rows.shape[1], half)
    for number, row in enumerate(rows):
        assert index.append(10 * number, number * SECOND, row) == number
    return index


@pytest.mark.parametrize('half', [True, False])
@pytest.mark.parametrize('count', [1, 5, 3000, 4097])
def test_search_is_exact(count: int, half: bool) -> None:
    index, queries = filled(unit(count), half), unit(4, 1)
    kept = index.arrays().descriptors.astype(np.float64)
    truth = queries.double().numpy() @ kept.T
    for batch in (queries, queries[:1]):
        found = index.search(batch, 10)
        assert found.positions.shape == found.scores.shape == (len(batch), 10)
        for row, true, score in zip(found.positions, truth, found.scores, strict=False):
            want = np.argsort(-true, kind='stable')[:10]
            np.testing.assert_array_equal(row[: len(want)], want)
            np.testing.assert_allclose(score[: len(want)], true[want], atol=1e-6)
            assert (row[len(want) :] == -1).all()
            assert np.isneginf(score[len(want) :]).all()


def test_equal_scores_come_in_the_order_of_time() -> None:
    row = unit(1)[0]
    index = filled(torch.stack([row] * 700))
    np.testing.assert_array_equal(index.search(row, 5).positions[0], np.arange(5))


def test_half_precision_hardly_changes_scores() -> None:
    rows, query = unit(500), unit(1, 3)
    single, half = (filled(rows, kind).scores(query) for kind in (False, True))
    assert np.abs(single - half).max() < 1e-3


def test_keyframes_near_in_time_are_left_out() -> None:
    rows = unit(100)
    index = filled(rows)
    found = index.search(rows[50], 100, 50 * SECOND, gap_s=10.0).positions[0]
    assert set(found[found >= 0]) == {*range(41), *range(60, 100)}
    both = index.search(rows[[0, 99]], 100, np.array([0, 99 * SECOND]), gap_s=10.0).positions
    assert both[0][both[0] >= 0].min() == 10
    assert both[1][both[1] >= 0].max() == 89


def test_removed_and_forbidden_keyframes_are_not_found() -> None:
    rows = unit(20)
    index = filled(rows)
    index.remove(70)
    index.remove(12345)
    assert index.search(rows[7], 1).positions[0, 0] != 7
    allowed = np.ones(20, np.bool_)
    allowed[3] = False
    assert index.search(rows[3], 1).positions[0, 0] == 3
    assert index.search(rows[3], 1, allowed=allowed).positions[0, 0] != 3
    assert (index.search(rows[3], 2, allowed=np.zeros(20, np.bool_)).positions == -1).all()


def test_images_without_a_place_find_nothing_and_are_not_found() -> None:
    index = filled(torch.cat([unit(3), torch.zeros(1, SIZE)]))
    assert (index.search(torch.zeros(SIZE), 3).positions == -1).all()
    assert 3 not in index.search(unit(1, 9), 4).positions
    assert (PlaceIndex(SIZE).search(unit(2), 3).positions == -1).all()


def test_arrays_may_lie_on_disk(tmp_path: Path) -> None:
    rows = unit(300)
    index = filled(rows)
    index.remove(50)
    arrays = index.arrays()
    np.save(tmp_path / 'places.npy', arrays.descriptors)
    mapped = np.load(tmp_path / 'places.npy', mmap_mode='c')
    again = PlaceIndex.of(PlaceArrays(mapped, arrays.keys, arrays.stamps_ns, arrays.kept))
    assert np.shares_memory(again.arrays().descriptors, mapped)
    expected = index.search(rows, 5)
    np.testing.assert_array_equal(again.search(rows, 5).positions, expected.positions)
    assert again.append(3000, 300 * SECOND, rows[0]) == 300
    assert list(again.search(rows[0], 2).positions[0]) == [0, 300]
    read_only = np.load(tmp_path / 'places.npy', mmap_mode='r')
    third = PlaceIndex.of(PlaceArrays(read_only, arrays.keys, arrays.stamps_ns, arrays.kept))
    np.testing.assert_array_equal(third.search(rows, 5).positions, expected.positions)
    with pytest.raises(ModelError, match='no descriptors, keys'):
        PlaceIndex.of(PlaceArrays(mapped, arrays.keys[:2], arrays.stamps_ns, arrays.kept))


def test_wrong_descriptors_are_refused() -> None:
    index = filled(unit(3))
    for bad, words in ((unit(1, 0, 8), 'not \\(Q, 32\\)'), (unit(1) * np.nan, 'not finite')):
        with pytest.raises(ModelError, match=words):
            index.search(bad, 1)
        with pytest.raises(ModelError, match=words):
            index.append(0, 0, bad)
    with pytest.raises(ModelError, match=r'\(2,\) allowed of 3'):
        index.search(unit(1), 1, allowed=np.ones(2, np.bool_))
    with pytest.raises(ModelError, match='one descriptor'):
        index.append(0, 0, unit(2))


def mixed(a: torch.Tensor, b: torch.Tensor, similarity: float) -> torch.Tensor:
    """Unit vector of that cosine with `a`, in the plane of both."""
    across = torch.nn.functional.normalize(b - (a @ b) * a, dim=0)
    return similarity * a + (1.0 - similarity**2) ** 0.5 * across


def smooth(count: int, seed: int, step: float = 0.9) -> list[torch.Tensor]:
    """Descriptors of a moving camera: neighbours have a cosine of `step`."""
    noise = unit(count, seed, 256)
    rows = [noise[0]]
    for one in noise[1:]:
        rows.append(mixed(rows[-1], one, step))
    return rows


def told(
    rows: list[torch.Tensor], revisit: list[torch.Tensor], **changes: object
) -> list[list[PlaceCandidate]]:
    """Candidates of each revisiting keyframe, a second apart, long after `rows`."""
    index = filled(torch.stack(rows))
    recogniser = PlaceRecogniser(index, PlaceSettings.model_validate(changes))
    found = []
    for number, row in enumerate(revisit):
        stamp_ns = (1000 + number) * SECOND
        found.append(recogniser.recognise(row, stamp_ns))
        index.append(100_000 + number, stamp_ns, row)
    return found


def test_a_place_seen_by_keyframes_in_a_row_is_told() -> None:
    rows, new = smooth(60, 0), unit(5, 7, 256)
    revisit = [mixed(rows[30 + i], new[i], 0.85) for i in range(5)]
    found = told(rows, revisit)
    assert not any(one.accepted for candidates in found[:2] for one in candidates)
    for number, candidates in enumerate(found[2:], start=2):
        assert candidates[0].accepted
        assert candidates[0].consecutive == 3
        assert candidates[0].keys[0] == 10 * (30 + number)
        assert candidates[0].first <= 30 + number <= candidates[0].last
        assert list(candidates[0].similarities) == sorted(candidates[0].similarities)[::-1]
    assert all(one.accepted for one in told(rows, revisit[:1], consecutive=1)[0][:1])


def test_one_image_that_looks_alike_is_not_told() -> None:
    rows = smooth(60, 0)
    elsewhere = smooth(7, 5)
    elsewhere[3] = mixed(rows[20], elsewhere[3], 0.99)
    found = told(rows, elsewhere)
    assert found[3][0].keys[0] == 200
    assert found[3][0].consecutive == 1
    assert not any(one.accepted for candidates in found for one in candidates)


def test_images_that_look_like_places_far_apart_are_not_told() -> None:
    rows, new = smooth(60, 0), unit(5, 7, 256)
    jumping = [mixed(rows[at], new[i], 0.95) for i, at in enumerate((5, 50, 20, 40, 10))]
    found = told(rows, jumping, min_share=0.0)
    assert not any(one.accepted for candidates in found for one in candidates)


def test_a_chain_breaks_where_the_place_is_not_seen_and_when_tracking_was_lost() -> None:
    rows, new = smooth(60, 0), unit(6, 7, 256)
    revisit = [mixed(rows[30 + i], new[i], 0.85) for i in range(6)]
    revisit[2] = new[2]
    found = told(rows, revisit)
    assert not any(one.accepted for candidates in found[:5] for one in candidates)
    assert found[5][0].accepted
    recogniser = PlaceRecogniser(filled(torch.stack(rows)), PlaceSettings())
    for number in range(2):
        recogniser.recognise(mixed(rows[30 + number], new[number], 0.85), 1000 * SECOND)
    recogniser.forget()
    lost = recogniser.recognise(mixed(rows[32], new[5], 0.85), 1000 * SECOND)
    assert [one.consecutive for one in lost] == [1] * len(lost)


def test_two_islands_are_two_candidates_better_one_first() -> None:
    rows, new = smooth(60, 0), unit(3, 7, 256)
    both = []
    for i in range(3):
        twin = mixed(rows[10 + i], rows[45 + i], 0.8)  # nearer to the first
        both.append(mixed(twin, new[i], 0.95))
    last = told(rows, both, min_score=0.3, min_share=0.0)[2]
    accepted = [one for one in last if one.accepted]
    assert [one.keys[0] for one in accepted] == [120, 470]
    assert accepted[0].score > accepted[1].score


def test_keyframes_that_show_nothing_are_no_fault() -> None:
    rows = smooth(30, 0)
    found = told(rows, [torch.zeros(256), rows[3], torch.zeros(256), rows[4]])
    assert not found[0]
    assert not found[2]
    assert np.isfinite([one.score for one in found[1] + found[3]]).all()
