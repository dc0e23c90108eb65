# SPDX-License-Identifier: Apache-2.0
"""Walks over the free floor of a mesh world: closed, clear of walls, the second round beside."""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.worlds.mesh import MeshWorld
from mv_matcher_ros.worlds.mesh_walk import EYE_M, MeshWalk, closed_way, free_floor
from mv_matcher_ros.worlds.mipmaps import Texture

pytest.importorskip('embreex', reason='no wheel of embreex here')

CAMERA = Camera(64, 48, (40.0, 40.0, 31.5, 23.5))


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> np.ndarray:
    """(12, 3, 3) triangles of the six sides."""
    corners = np.array([[a, b, c] for a in x for b in y for c in z])
    sides = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    return np.array([corners[[a, b, c]] for s in sides for a, b, c in (s[:3], (s[0], *s[2:]))])


def room_with_pillar() -> MeshWorld:
    """8 x 6 m, a pillar of 2 x 2 m in the middle."""
    triangles = np.concatenate(
        [box((-4, 4), (-3, 3), (0, 3)), box((-1, 1), (-1, 1), (0, 3))]
    ).astype(np.float64)
    count = len(triangles)
    texture = Texture(
        np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8), True
    )
    uv = np.tile(np.array([[0, 0], [1, 0], [1, 1]], np.float32), (count, 1, 1))
    return MeshWorld(triangles, uv, np.zeros(count, np.int64), (texture,), name='pillar')


def test_free_floor_is_where_there_is_room() -> None:
    free, origin = free_floor(room_with_pillar())
    cells = np.argwhere(free)[:, ::-1] * 0.3 + origin
    assert len(cells) > 100
    assert (np.abs(cells) <= [3.6, 2.6]).all()
    inside = (np.abs(cells) < 1.0).all(1)  # of the pillar one sees the inner sides
    near = (np.abs(cells) < 1.35).all(1) & ~inside
    assert not near.any()


def test_the_way_is_closed_and_free() -> None:
    corners, stops = closed_way(room_with_pillar(), 4, np.random.default_rng(0))
    assert len(stops) == 4
    steps = np.linalg.norm(corners - np.roll(corners, -1, 0), axis=1)
    assert steps.max() <= 3 * 0.3 * 2**0.5 + 0.6
    assert not (np.abs(corners) < 1.4).all(1).any()


def test_the_second_round_is_near_the_first_in_another_light() -> None:
    walk = MeshWalk(room_with_pillar(), CAMERA, rate_hz=2.0, stops=4)
    assert walk.truth is not None
    assert len(walk) == len(walk.truth)
    places = walk.truth.world_from_body[:, :3, 3]
    assert np.abs(places[:, 2] - EYE_M).max() < 0.3
    assert not (np.abs(places[:, :2]) < 1.0).all(1).any()
    later = int(np.ceil(2.0 * walk.round_s))
    shift = np.linalg.norm(places[later] - places[:later], axis=1).min()
    assert 0.05 < shift < 0.6
    first, second = (walk.frame(i).views[0] for i in (0, later))
    assert first.depth is not None
    assert (first.depth > 0).all()
    assert abs(float(first.image.mean()) - float(second.image.mean())) > 3.0


def test_no_floor_is_said() -> None:
    triangles = np.array([[[0, 0, 2], [5, 0, 2], [0, 5, 2.0]]])
    world = MeshWorld(
        triangles, np.zeros((1, 3, 2), np.float32), np.zeros(1, np.int64),
        (Texture(np.zeros((1, 1, 3), np.uint8), True),),
    )  # fmt: skip
    with pytest.raises(SourceError, match='free cells'):
        MeshWalk(world, CAMERA)
