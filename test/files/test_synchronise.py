# SPDX-License-Identifier: Apache-2.0
"""Pairing of stamps: the laws, and that the stream finds what the whole lists give."""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.files.stamps import pair_stamps
from mv_matcher_ros.files.synchronise import PairSynchroniser, Synchroniser


def stream(
    left: list[int], right: list[int], slop: int, lag: int
) -> tuple[list[tuple[int, int]], int]:
    """Feed both in the order of arrival; the right ones arrive `lag` later."""
    events = sorted([(s, 0, s) for s in left] + [(s + lag, 1, s) for s in right])
    pairs: PairSynchroniser[int] = PairSynchroniser(slop)
    found = []
    for _, side, stamp in events:
        push = pairs.push_right if side else pairs.push_left
        found += [(a, b) for _, a, b in push(stamp, stamp)]
    found += [(a, b) for _, a, b in pairs.flush()]
    return found, pairs.unpaired


@pytest.mark.parametrize(
    ('left', 'right', 'expected'),
    [
        ([], [1], []),
        ([1], [], []),
        ([0, 100], [3, 98], [(0, 0), (1, 1)]),
        ([0, 100], [11, 98], [(1, 1)]),  # beyond the slop
        ([0, 8], [6], [(1, 0)]),  # the nearer one gets it
        ([0], [-5, 5], [(0, 0)]),  # a tie goes to the earlier
        ([0, 10], [5], [(0, 0)]),
    ],
)
def test_pairs(left: list[int], right: list[int], expected: list[tuple[int, int]]) -> None:
    assert pair_stamps(left, right, 10) == expected


@pytest.mark.parametrize('seed', range(30))
def test_stream_finds_the_same_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left = np.unique(rng.integers(0, 2000, rng.integers(1, 80))).tolist()
    right = np.unique(rng.integers(0, 2000, rng.integers(1, 80))).tolist()
    slop = int(rng.integers(1, 60))
    expected = [(left[i], right[j]) for i, j in pair_stamps(left, right, slop)]
    found, unpaired = stream(left, right, slop, lag=int(rng.integers(-300, 300)))
    assert found == expected
    assert unpaired == len(left) - len(expected)


def test_each_stamp_is_used_once(rng: np.random.Generator) -> None:
    left = np.unique(rng.integers(0, 500, 100))
    right = np.unique(rng.integers(0, 500, 100))
    pairs = pair_stamps(left, right, 1000)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(side)


def test_a_silent_stream_does_not_fill_the_memory() -> None:
    pairs: PairSynchroniser[int] = PairSynchroniser(5, limit=10)
    for stamp in range(0, 10_000, 10):
        assert not list(pairs.push_left(stamp, stamp))
    assert len(pairs._left) <= 11
    assert pairs.unpaired == 1000 - len(pairs._left)
    others: PairSynchroniser[int] = PairSynchroniser(5, limit=10)
    for stamp in range(0, 10_000, 10):
        assert not list(others.push_right(stamp, stamp))
    assert len(others._right) <= 10


def test_items_of_many_streams_meet_or_are_counted() -> None:
    """Of five items one lacks a partner in the second stream, one in both, one comes late."""
    together: Synchroniser[str] = Synchroniser(2, 2)
    found = []
    for stamp in (0, 10, 20, 30, 40):
        found += together.push_first(stamp, f'a{stamp}')
        if stamp != 20:
            found += together.push_other(0, stamp + 1, f'b{stamp}')
        if stamp not in (10, 20):
            found += together.push_other(1, stamp + (5 if stamp == 30 else 0), f'c{stamp}')
    found += together.flush()
    assert found == [(0, 'a0', ('b0', 'c0')), (40, 'a40', ('b40', 'c40'))]
    assert together.unpaired == 3


def test_a_silent_stream_holds_no_more_than_the_limit() -> None:
    together: Synchroniser[int] = Synchroniser(2, 2, limit=5)
    for stamp in range(0, 1000, 10):
        assert not list(together.push_first(stamp, stamp))
        assert not list(together.push_other(0, stamp, stamp))
    assert max(map(len, together._settled)) <= 5
