# SPDX-License-Identifier: Apache-2.0
"""Landmarks hang at keyframes, move with them, and outlive them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import made_map, pose_at, scene, seen_from

from mv_matcher_ros.mapping.keyframe import packed, unpacked
from mv_matcher_ros.mapping.landmarks import Landmarks
from mv_matcher_ros.mapping.map import rigid


def test_points_are_where_they_were_put() -> None:
    world, (place, _) = made_map(), scene()
    for key in world.keyframes:
        _, which = seen_from(world.pose[key], place)
        found = world.points_in_map(world.keyframes[key].landmark)
        np.testing.assert_allclose(found, place[which], atol=1e-5)
        local, spread = world.points_seen_by(key)
        pose = world.pose[key]
        np.testing.assert_allclose(local, (place[which] - pose[:3, 3]) @ pose[:3, :3], atol=1e-5)
        np.testing.assert_allclose(
            spread, np.tile(0.01 * np.eye(3), (len(which), 1, 1)), atol=1e-8
        )


def test_a_keyframe_takes_its_landmarks_with_it() -> None:
    world, (place, _) = made_map(), scene()
    moved = pose_at(5.0, 0.5)
    hangs = world.landmarks.anchor[: len(world.landmarks)] == 2
    number = hangs.nonzero()[0].astype(np.int32)
    before = world.points_in_map(number)
    local = (before - world.pose[2][:3, 3]) @ world.pose[2][:3, :3]
    world.move({2: moved})
    np.testing.assert_allclose(
        world.points_in_map(number), local @ moved[:3, :3].T + moved[:3, 3], atol=1e-5
    )
    others = (~hangs).nonzero()[0].astype(np.int32)
    assert np.isfinite(world.points_in_map(others)).all()
    assert len(place) >= len(world.landmarks)


def test_a_similarity_scales_points_and_their_uncertainty() -> None:
    world = made_map(2, 'mono')
    number = (world.landmarks.anchor[: len(world.landmarks)] == 1).nonzero()[0].astype(np.int32)
    before = world.points_in_map(number)
    centre = world.pose[1][:3, 3].copy()
    scaled = world.pose[1].copy()
    scaled[:3, :3] *= 2.0
    world.move({1: scaled})
    np.testing.assert_allclose(world.points_in_map(number) - centre, 2.0 * (before - centre))
    # Seen by the first keyframe, which was not scaled.
    rows = np.isin(world.keyframes[0].landmark, number)
    _, spread = world.points_seen_by(1)
    mine = np.isin(world.keyframes[1].landmark, number)
    assert not rows.any()
    np.testing.assert_allclose(np.trace(spread[mine][0]), 0.03, rtol=1e-5)
    pose, scale = rigid(scaled)
    assert scale == pytest.approx(2.0)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)


def test_what_was_two_becomes_the_older_one() -> None:
    world = made_map()
    count = len(world.landmarks)
    a, b = world.keyframes[0].landmark[:2].tolist()
    c = int(world.keyframes[4].landmark[-1])
    oldest = min(a, b, c)
    gone = world.fuse([(b, a), (c, b), (a, c)])
    assert gone == {number: oldest for number in (a, b, c) if number != oldest}
    for keyframe in world.keyframes.values():
        assert not np.isin(keyframe.landmark, [n for n in (a, b, c) if n != oldest]).any()
        seen = keyframe.landmark[keyframe.landmark >= 0]
        assert len(np.unique(seen)) == len(seen)  # one feature an image
    assert np.isnan(world.points_in_map(np.array([max(a, b, c)], np.int32))).all()
    assert world.fuse([]) == {}
    assert world.fuse([(5, 5)]) == {}
    world.compact()
    assert len(world.landmarks) == count - 2
    assert (world.landmarks.anchor >= 0).all()


def test_landmarks_outlive_the_keyframe_that_they_hang_at() -> None:
    world, (place, _) = made_map(), scene()
    before = {k: world.points_in_map(f.landmark) for k, f in world.keyframes.items()}
    world.remove([0, 2])
    assert list(world.keyframes) == [1, 3, 4]
    assert all(e.a in world.keyframes and e.b in world.keyframes for e in world.edges)
    for key in world.keyframes:
        found = world.points_in_map(world.keyframes[key].landmark)
        np.testing.assert_allclose(found, before[key], atol=1e-5)
    # Those that only the removed ones saw are gone.
    alive = world.landmarks.anchor[: len(world.landmarks)] >= 0
    seen = np.unique(np.concatenate([f.landmark for f in world.keyframes.values()]))
    assert alive.sum() == (seen >= 0).sum()
    assert world.next_key == 5
    assert len(place) >= alive.sum()


def test_neighbours_are_those_that_see_the_same() -> None:
    world = made_map()
    assert world.neighbours(2, 2) in ([1, 3], [3, 1])
    assert len(world.neighbours(0, 10)) == 4
    assert world.neighbours(0, 0) == []


def test_landmarks_grow_and_keep_their_numbers() -> None:
    marks = Landmarks()
    first = marks.add(3)
    spread = np.tile(np.diag([1.0, 2.0, 3.0]) + 0.1, (3, 1, 1))
    marks.place(first, 7, np.arange(9.0).reshape(3, 3), spread)
    more = marks.add(5000)
    assert more.tolist() == list(range(3, 5003))
    np.testing.assert_allclose(marks.position[first], np.arange(9.0).reshape(3, 3))
    np.testing.assert_allclose(marks.spread(first), spread, rtol=1e-6)
    number = marks.compact()
    assert number[:3].tolist() == [0, 1, 2]
    assert (number[3:] == -1).all()
    assert len(marks) == 3


@pytest.mark.parametrize(('sensor', 'scale'), [('stereo', 1.0), ('mono', 1.25)])
def test_units_of_a_metric_map_are_exactly_one(sensor: str, scale: float) -> None:
    rng = np.random.default_rng(3)
    world = made_map(2, sensor)
    for _ in range(20):  # rounding is seldom kind twenty times
        turned = pose_at(1.0, 0.3)
        turned[:3, :3] = scale * np.linalg.qr(rng.normal(size=(3, 3)))[0]
        turned[:3, 0] *= np.sign(np.linalg.det(turned[:3, :3]))
        world.move({1: turned})
        pose, units = world.placed(1)
        assert units == 1.0 if sensor == 'stereo' else units == pytest.approx(scale)
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)


def test_descriptors_are_packed_without_harm() -> None:
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(200, 128))
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    looks[7] = 0.0
    back = unpacked(packed(looks))
    assert packed(looks).dtype == np.int8
    assert np.abs(back - looks).max() < 2e-3
    np.testing.assert_allclose(np.linalg.norm(np.delete(back, 7, 0), axis=1), 1.0, atol=1e-6)
    assert not back[7].any()
    assert np.linalg.norm(back - looks, axis=1).max() < 0.012


def test_a_map_knows_the_distortion_of_its_camera() -> None:
    world = made_map(2)
    first = world.rig.cameras[0]
    given = world.rig
    world.rig = replace(given, cameras=(replace(first, model='radtan', distortion=(0.02,)),))
    assert world.known_rig(given) is world.rig
    other = replace(given, cameras=(replace(first, intrinsics=(400.0, 400.0, 320.0, 240.0)),))
    assert world.known_rig(other) is other
    assert world.known_rig(replace(given, cameras=(first, first))).cameras == (first, first)
