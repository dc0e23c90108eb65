# SPDX-License-Identifier: Apache-2.0
"""Keyframes whose keypoints have points without landmarks, and views that are found by them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, WIDTH, keyframe_of, pose_at, scene, seen_from
from test_view_pose import FOCAL, Alike

from mv_matcher_ros.config import PointInferenceSettings, RuntimeSettings
from mv_matcher_ros.datatypes import Array, Camera, Rig
from mv_matcher_ros.mapping.inferred_points import inferred_points, seen_points
from mv_matcher_ros.mapping.map import Map, moved
from mv_matcher_ros.mapping.map_matching import MapMatcher
from mv_matcher_ros.mapping.point_aggregation import PointAggregation
from mv_matcher_ros.mapping.view_pose import find_view_pose
from mv_matcher_ros.models.learned_points import PointInference
from mv_matcher_ros.models.point_inference import PointInferenceNetwork
from mv_matcher_ros.models.profiles import PointProfile


@pytest.fixture(scope='module')
def inference() -> PointInference:
    """A network that has learned nothing yet: it continues surfaces, and is as sure as not."""
    torch.manual_seed(0)
    profile = PointProfile(descriptor_size=WIDTH, width=32, attention_size=16)
    runtime = RuntimeSettings(device='cpu', precision='fp32')
    return PointInference(PointInferenceNetwork(profile), runtime)


def wall_map(share: float = 0.3, mount: Array | None = None, scale: float = 1.0) -> Map:
    """Keyframes before a slanted wall; each sees landmarks of its own, the others see none."""
    place, look = wall()
    mount = np.eye(4) if mount is None else mount
    camera = Camera(640, 480, CAMERA.intrinsics, body_from_camera=mount)
    world = Map(Rig((camera,)), 'mono' if scale != 1.0 else 'rgbd', '')
    for key in range(4):
        pose = pose_at(0.3 * key, 0.03 * key)
        body = pose @ np.linalg.inv(mount)
        _, which = seen_from(pose, place)
        kept = which[np.random.default_rng(key).random(len(which)) < share]
        number = np.full(len(place), -1)
        number[kept] = world.landmarks.add(len(kept))
        local = scale * ((place[kept] - body[:3, 3]) @ body[:3, :3])
        spread = np.tile((0.01 * scale) ** 2 * np.eye(3), (len(kept), 1, 1))
        world.landmarks.place(number[kept].astype(np.int32), key, local, spread)
        similarity = body.copy()
        similarity[:3, :3] /= scale
        world.add(keyframe_of(key, pose, place, look, number), similarity)
    return world


def wall() -> tuple[Array, Array]:
    place, look = scene()
    place[:, 2] = 6.0 + 0.4 * place[:, 0]
    return place, look


@pytest.mark.parametrize('mount', [np.eye(4), pose_at(0.2, 1.2)])
def test_points_without_landmarks_lie_on_the_wall(inference: PointInference, mount: Array) -> None:
    world, (place, _) = wall_map(mount=mount), wall()
    keys = [2, 0]
    for key, found in zip(
        keys, inferred_points(world, keys, world.rig.cameras[0], inference), strict=True
    ):
        pose = world.pose[key] @ mount
        _, which = seen_from(pose, place)
        points = moved(world.pose[key], found.points)
        off = np.linalg.norm(points - place[which], axis=1)
        seen = found.landmark >= 0
        assert 30 < seen.sum() < 0.5 * len(seen)
        assert np.median(off[~seen]) < 0.15
        assert off[seen].max() < 1e-3  # landmarks are better known: they stay
        assert (found.confidence[seen] == 1.0).all()
        np.testing.assert_allclose(found.confidence[~seen], 0.5, atol=0.01)
        # The ray is the long axis of what is not known.
        ray = found.points[~seen] - mount[:3, 3]
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        along = np.einsum('ni,nij,nj->n', ray, found.spread[~seen], ray)
        assert (along > 0.9 * np.trace(found.spread[~seen], axis1=1, axis2=2)).all()


def test_landmarks_that_are_badly_known_are_replaced_and_keep_their_number(
    inference: PointInference,
) -> None:
    world = wall_map()
    exact = world.landmarks.position.copy()
    count = len(world.landmarks)
    noise = np.random.default_rng(0).normal(0, 0.5, (count, 3))
    world.landmarks.position[:count] += noise.astype(np.float32)
    world.landmarks.covariance[:count] = 0.25 * np.array([1, 0, 0, 1, 0, 1], np.float32)
    found = inferred_points(world, [1], CAMERA, inference)[0]
    before = seen_points(world, 1)
    seen = before.landmark >= 0
    assert np.array_equal(found.landmark, before.landmark)
    true = exact[before.landmark[seen]]
    error, worse = (np.linalg.norm(p.points[seen] - true, axis=1) for p in (found, before))
    assert np.median(error) < 0.5 * np.median(worse)


def test_what_is_asked_of_one_keypoint_changes_nothing_for_another(
    inference: PointInference,
) -> None:
    world = wall_map()
    whole = inferred_points(world, [1], CAMERA, inference)[0]
    rows = np.arange(0, len(whole.landmark), 7)
    some = inferred_points(world, [1], CAMERA, inference, [rows])[0]
    np.testing.assert_allclose(some.points[rows], whole.points[rows], rtol=1e-4)
    np.testing.assert_allclose(some.confidence[rows], whole.confidence[rows], rtol=1e-4)
    other = np.setdiff1d((whole.landmark < 0).nonzero()[0], rows)
    assert np.isnan(some.points[other]).all()


def test_a_keyframe_without_landmarks_has_no_points(inference: PointInference) -> None:
    world = wall_map()
    world.keyframes[0] = world.keyframes[0].seeing(np.full(len(world.keyframes[0]), -1, np.int32))
    found = inferred_points(world, [0, 1], CAMERA, inference)
    assert np.isnan(found[0].points).all()
    assert (found[0].confidence == 0).all()
    assert np.isfinite(found[1].points).all()


@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_a_view_is_found_by_more_points_than_there_are_landmarks(
    inference: PointInference, scale: float
) -> None:
    world, (place, look) = wall_map(0.1, scale=scale), wall()
    true = pose_at(0.5, 0.02)
    keyframe = keyframe_of(99, true, place, look, np.full(len(place), -1))
    features = keyframe.features((640, 480))
    plane = keyframe.plane_xy(CAMERA)[0]
    sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
    aggregation = PointAggregation(PointInferenceSettings(), FOCAL)
    keys = [2, 1, 3]
    plain = MapMatcher(Alike(), CAMERA).match(world, features, keys)
    alone = MapMatcher(Alike(), CAMERA, inference).match(world, features, keys)
    merged = MapMatcher(Alike(), CAMERA, inference, aggregation).match(world, features, keys)
    assert (plain.landmark >= 0).all()
    assert (alone.landmark == -1).any()
    assert len(plain) < 0.4 * len(alone)
    assert len(merged) > 0.9 * len(alone)
    assert plain.asked == alone.asked == merged.asked
    wanted = np.linalg.inv(world.pose[2])
    linear = np.cbrt(np.linalg.det(wanted[:3, :3]))
    assert linear == pytest.approx(scale)
    place_true = (wanted @ true)[:3, 3]
    for found, limit in ((plain, 0.1), (merged, 0.1)):
        pose = find_view_pose(found, plane, sigma, CAMERA, 4.0 / FOCAL)
        assert pose is not None
        assert np.linalg.norm(pose.world_from_body[:3, 3].numpy() - place_true) < limit * scale
    assert pose.inliers > 2 * len(plain)
