# SPDX-License-Identifier: Apache-2.0
"""Revisits of a place with a known answer, and what only looks like one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, keyframe_of, made_map, pose_at, scene, seen_from
from test_view_pose import Alike

from mv_matcher_ros.config import LoopSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.keyframe import packed
from mv_matcher_ros.mapping.loop_closure import LoopVerifier, Refusal, Revisit, similarity
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_matching import MapMatcher


def with_revisit(sensor: str, true: Array, believed: Array, units: float = 1.0) -> Map:
    """A map whose last keyframe sees points again, with landmarks of its own.

    Args:
        true: where the camera was; believed: (4, 4) similarity where the map has it.
        units: its own depths are those of the map divided by this.
    """
    world, (place, look) = made_map(4, sensor), scene()
    _, which = seen_from(true, place)
    number = np.full(len(place), -1)
    number[which] = world.landmarks.add(len(which))
    local = (place[which] - true[:3, 3]) @ true[:3, :3] / units
    spread = np.tile(1e-4 * np.eye(3), (len(which), 1, 1))
    world.landmarks.place(number[which].astype(np.int32), world.next_key, local, spread)
    world.add(keyframe_of(world.next_key, true, place, look, number, segment=1), believed)
    return world


def verifier(wrong: float = 0.0, **settings: float) -> LoopVerifier:
    return LoopVerifier(
        LoopSettings.model_validate(settings), MapMatcher(Alike(wrong), CAMERA), CAMERA
    )


@pytest.mark.parametrize('wrong', [0.0, 0.3])
def test_a_revisit_is_measured(wrong: float) -> None:
    true = pose_at(0.7, 0.06)
    world = with_revisit('stereo', true, pose_at(3.0, -0.4))
    found = verifier(wrong).verify(world, 4, [1])
    assert isinstance(found, Revisit)
    assert (found.a, found.b, found.scale) == (1, 4, 1.0)
    np.testing.assert_allclose(found.a_from_b, np.linalg.inv(world.pose[1]) @ true, atol=2e-3)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    assert found.inliers > 100
    old, new = world.keyframes[1].landmark, world.keyframes[4].landmark
    assert np.isin(found.same[:, 0], new).all()
    assert len(np.unique(found.same[:, 0])) == len(found.same)
    # The same points of the scene: where the old landmark is, the new one would be.
    there = world.points_in_map(found.same[:, 1].astype(np.int32))
    world.move({4: true})
    here = world.points_in_map(found.same[:, 0].astype(np.int32))
    assert float(np.median(np.linalg.norm(there - here, axis=1))) < 0.02
    assert (np.linalg.norm(there - here, axis=1) < 0.5).mean() > 0.97
    assert len(old) > 0


@pytest.mark.parametrize('units', [0.5, 1.0, 3.0])
def test_without_metric_scale_a_revisit_says_how_units_relate(units: float) -> None:
    true = pose_at(0.7, 0.06)
    world = with_revisit('mono', true, pose_at(3.0), units)
    found = verifier().verify(world, 4, [2])
    assert isinstance(found, Revisit)
    assert found.scale == pytest.approx(units, rel=0.01)
    np.testing.assert_allclose(found.a_from_b, np.linalg.inv(world.pose[2]) @ true, atol=2e-3)
    # A point of the new keyframe lands where the map has it.
    points, _ = world.points_seen_by(4)
    step = world.pose[2] @ similarity(found.a_from_b, found.scale)
    there = points @ step[:3, :3].T + step[:3, 3]
    _, which = seen_from(true, scene()[0])
    np.testing.assert_allclose(there, scene()[0][which], atol=0.05)
    assert found.covariance[6, 6] ** 0.5 < 0.02


def test_metric_keyframes_whose_depths_disagree_are_no_revisit() -> None:
    world = with_revisit('stereo', pose_at(0.7), pose_at(3.0), units=1.5)
    found = verifier().verify(world, 4, [2])
    assert isinstance(found, Refusal)
    assert 'depths disagree by a factor of 1.5' in found.reason


def test_without_depths_of_its_own_the_scale_is_not_known() -> None:
    world = with_revisit('mono', pose_at(0.7), pose_at(3.0))
    world.keyframes[4] = world.keyframes[4].seeing(np.full(len(world.keyframes[4]), -1, np.int32))
    found = verifier().verify(world, 4, [2])
    assert isinstance(found, Refusal)
    assert 'too few depths' in found.reason


def test_the_likeliest_is_asked_with_its_neighbours() -> None:
    world = with_revisit('stereo', pose_at(0.7), pose_at(3.0))
    matcher = Alike()
    asked = LoopVerifier(LoopSettings(views=4), MapMatcher(matcher, CAMERA), CAMERA)
    found = asked.verify(world, 4, [2, 0])
    assert isinstance(found, Revisit)
    assert found.a == 2
    assert matcher.views == 4


def test_another_place_is_none() -> None:
    world = with_revisit('stereo', pose_at(0.7), pose_at(3.0))
    look = np.random.default_rng(9).normal(size=world.keyframes[4].descriptors.shape)
    world.keyframes[4].descriptors[:] = packed(look)
    found = verifier().verify(world, 4, [2])
    assert isinstance(found, Refusal)
    assert 'matches with landmarks' in found.reason


def test_wrong_matches_agree_on_nothing() -> None:
    world = with_revisit('stereo', pose_at(0.7), pose_at(3.0))
    found = verifier(wrong=1.0).verify(world, 4, [2])
    assert isinstance(found, Refusal)
    assert 'agree' in found.reason or 'no pose' in found.reason


def test_a_corner_is_not_enough() -> None:
    world = with_revisit('stereo', pose_at(0.7), pose_at(3.0))
    keyframe = world.keyframes[4]
    corner = (keyframe.keypoints_xy < (220, 200)).all(1)
    assert corner.sum() > 8
    look = keyframe.descriptors.copy()
    look[~corner] = packed(np.eye(16))[0]
    world.keyframes[4].descriptors[:] = look
    found = verifier(min_inliers=8, min_inlier_share=0.0, min_spread=0.2).verify(world, 4, [2])
    assert isinstance(found, Refusal)
    assert 'corner' in found.reason
