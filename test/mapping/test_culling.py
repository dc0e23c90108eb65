# SPDX-License-Identifier: Apache-2.0
"""What a map lets go of, and that nothing else changes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import itertools

from made_maps import made_map

from mv_matcher_ros.config import CullingSettings
from mv_matcher_ros.mapping.culling import cull, redundant, uncertain
from mv_matcher_ros.mapping.map import Edge

SETTINGS = CullingSettings(share=0.6, newest=2)


def test_keyframes_whose_landmarks_others_see_go() -> None:
    world = made_map(9)
    going = redundant(world, SETTINGS)
    assert going
    assert set(going) <= set(range(1, 7))
    assert all(b - a > 1 for a, b in itertools.pairwise(going))
    assert redundant(world, CullingSettings(share=1.5, newest=2)) == []


def test_points_that_one_keyframe_sees_keep_none() -> None:
    world = made_map(9)
    going = redundant(world, SETTINGS)
    for key in going:
        keyframe = world.keyframes[key]
        free = np.flatnonzero(keyframe.landmark < 0)
        more = np.full(len(free) + 400, -1, np.int32)
        more[:] = world.landmarks.add(len(more))
        world.keyframes[key] = replace(
            keyframe, landmark=np.concatenate([keyframe.landmark, more]).astype(np.int32)
        )
    world._count_seen()
    assert redundant(world, SETTINGS) == going


def test_a_loop_keeps_no_keyframe() -> None:
    world = made_map(9)
    going = redundant(world, SETTINGS)
    world.edges.append(Edge(going[0], 8, np.eye(4), np.eye(7), True))
    assert redundant(world, SETTINGS) == going


def test_one_keyframe_of_each_segment_stays() -> None:
    world = made_map(9)
    for key in (3, 4):
        world.keyframes[key] = replace(world.keyframes[key], segment=1)
    for key in (5, 6, 7, 8):
        world.keyframes[key] = replace(world.keyframes[key], segment=2)
    cutting = CullingSettings(share=0.0, newest=2)
    for _ in range(9):
        cull(world, cutting)
    assert {keyframe.segment for keyframe in world.keyframes.values()} == {0, 1, 2}
    assert sum(keyframe.segment == 1 for keyframe in world.keyframes.values()) == 1
    assert 0 in world.keyframes
    assert {7, 8} <= set(world.keyframes)


def test_a_keyframe_that_saw_nothing_goes() -> None:
    world = made_map(9)
    dark = world.keyframes[3]
    world.keyframes[3] = replace(dark, landmark=np.full_like(dark.landmark, -1))
    world._count_seen()
    assert 3 in redundant(world, CullingSettings(share=1.0, newest=2))


def test_what_has_gone_is_remembered_where_it_was() -> None:
    world = made_map(9)
    world.gone = {}
    poses, frames = dict(world.pose), dict(world.keyframes)
    gone = cull(world, SETTINGS) + cull(world, SETTINGS) + cull(world, SETTINGS)
    assert set(gone) == set(poses) - set(world.keyframes)
    assert set(world.gone) <= set(world.keyframes)
    remembered = {other.stamp_ns: (k, other) for k, all_ in world.gone.items() for other in all_}
    assert set(remembered) == {frames[key].stamp_ns for key in gone}
    for key in gone:
        anchor, other = remembered[frames[key].stamp_ns]
        np.testing.assert_allclose(
            world.pose[anchor] @ other.anchor_from_body, poses[key], atol=1e-12
        )


def test_steps_lead_over_what_has_gone() -> None:
    world = made_map(9)
    poses, points = dict(world.pose), world.points_in_map(world.keyframes[8].landmark)
    gone = cull(world, SETTINGS)
    assert gone
    assert not set(gone) & set(world.keyframes)
    keys = list(world.keyframes)
    assert sorted((e.a, e.b) for e in world.edges) == list(itertools.pairwise(keys))
    for edge in world.edges:
        np.testing.assert_allclose(poses[edge.a] @ edge.a_from_b, poses[edge.b], atol=1e-9)
        assert np.linalg.eigvalsh(edge.covariance).min() > 0.9e-4
    bridged = [e for e in world.edges if e.b - e.a > 1]
    assert len(bridged) == len(gone)
    assert all(np.trace(e.covariance) > 1.9 * 7e-4 for e in bridged)
    np.testing.assert_allclose(world.points_in_map(world.keyframes[8].landmark), points, atol=1e-4)


def test_landmarks_that_say_nothing_go() -> None:
    world = made_map(4)
    count = len(world.landmarks)
    single = np.flatnonzero(world.landmarks.seen[:count] == 1)[:5].astype(np.int32)
    shared = np.flatnonzero(world.landmarks.seen[:count] > 1)[:5]
    assert len(uncertain(world, CullingSettings())) == 0
    world.landmarks.covariance[single] *= 1e4
    world.landmarks.covariance[shared] *= 1e4
    assert uncertain(world, CullingSettings()).tolist() == single.tolist()
    cull(world, CullingSettings(share=2.0))
    assert np.isnan(world.points_in_map(single)).all()
    assert not any(np.isin(k.landmark, single).any() for k in world.keyframes.values())
    assert np.isfinite(world.points_in_map(shared.astype(np.int32))).all()
