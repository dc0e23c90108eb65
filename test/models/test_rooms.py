# SPDX-License-Identifier: Apache-2.0
"""Sizes of graphs: what is needed, or the next of a few."""

from __future__ import annotations

import pytest

from mv_matcher_ros.models.rooms import MOST_NODES, Rooms


def test_eager_graphs_are_as_large_as_needed() -> None:
    rooms = Rooms(most_views=5, most_keypoints=512, fixed=False)
    assert [rooms.views(n) for n in (1, 2, 3, 7)] == [1, 2, 3, 7]
    assert rooms.keypoints(77, 3) == 77
    assert rooms.pairs(3, 4) == 3


@pytest.mark.parametrize(('needed', 'room'), [(1, 5), (2, 2), (3, 5), (5, 5), (7, 7)])
def test_views(needed: int, room: int) -> None:
    assert Rooms(5, 512, fixed=True).views(needed) == room


@pytest.mark.parametrize(
    ('needed', 'room'), [(0, 128), (128, 128), (129, 256), (300, 512), (512, 512)]
)
def test_keypoints_in_steps_of_two(needed: int, room: int) -> None:
    assert Rooms(5, 512, fixed=True, steps=3).keypoints(needed, 5) == room


def test_many_views_have_fewer_keypoints_each() -> None:
    rooms = Rooms(10, 4096, fixed=True)
    assert rooms.keypoints_of(10) == MOST_NODES // 10
    assert rooms.keypoints_of(3) == MOST_NODES // 10  # three views run in the room for ten
    assert rooms.keypoints(900, 3) == MOST_NODES // 10


@pytest.mark.parametrize(('needed', 'room'), [(1, 4), (4, 4), (5, 10), (10, 10)])
def test_pairs_of_one_view_or_all(needed: int, room: int) -> None:
    assert Rooms(5, 512, fixed=True).pairs(needed, 5) == room
