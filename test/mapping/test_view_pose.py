# SPDX-License-Identifier: Apache-2.0
"""Poses of views against landmarks of a map with a known answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, keyframe_of, made_map, pose_at, scene, seen_from

from mv_matcher_ros.datatypes import Array, Camera, Features, Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.mapping.map_matching import MapMatcher
from mv_matcher_ros.mapping.point_aggregation import PointMatches
from mv_matcher_ros.mapping.view_pose import find_view_pose

FOCAL = CAMERA.focal_px


class Alike:
    """Matches what looks the same, as far as it is certain; a share of it wrongly."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.wrong = wrong
        self.views = 0

    def match(
        self, features: Sequence[Features], pairs: Sequence[tuple[int, int]] | None = None
    ) -> Matches:
        assert pairs is not None
        self.views = len(features)
        views, keypoints, confidence = [], [], []
        for a, b in pairs:
            best = (features[a].descriptors @ features[b].descriptors.T).max(1)
            same = (best.values > 0.99).nonzero()[:, 0]
            partner = best.indices[same]
            swapped = int(self.wrong * len(same))
            partner[:swapped] = partner[:swapped].roll(1)
            views.append(torch.tensor([[a, b]]).expand(len(same), 2))
            keypoints.append(torch.stack([same, partner], dim=1))
            confidence.append(torch.full((len(same),), 0.5 + 0.1 * b))
        return Matches(torch.cat(views), torch.cat(keypoints), torch.cat(confidence))


def query(pose: Array, noise_px: float = 0.0, seed: int = 0) -> tuple[Features, torch.Tensor]:
    place, look = scene()
    keyframe = keyframe_of(99, pose, place, look, np.full(len(place), -1))
    rng = np.random.default_rng(seed)
    noisy = keyframe.keypoints_xy + noise_px * rng.normal(size=keyframe.keypoints_xy.shape)
    features = replace(keyframe.features((640, 480)), keypoints_xy=torch.tensor(noisy).float())
    plane = (torch.tensor(noisy) - torch.tensor([319.5, 239.5])) / FOCAL
    return features, plane


def test_points_of_all_keyframes_are_in_the_frame_of_the_first() -> None:
    world, (place, _) = made_map(), scene()
    features, _ = query(pose_at(0.5, 0.02))
    matcher = Alike()
    found = MapMatcher(matcher, CAMERA).match(world, features, [3, 0, 2])
    assert matcher.views == 4
    assert len(found) > 150
    assert len(found.feature.unique()) == len(found)
    assert found.asked > 2 * len(found)
    _, which = seen_from(pose_at(0.5, 0.02), place)
    pose = world.pose[3]
    wanted = (place[which[found.feature]] - pose[:3, 3]) @ pose[:3, :3]
    np.testing.assert_allclose(found.points, wanted, atol=1e-4)
    # The surest of several.
    assert float(found.confidence.median()) == pytest.approx(0.8)
    assert torch.equal(found.landmark.unique(), found.landmark.sort().values)


def test_points_are_in_the_units_of_the_first() -> None:
    world = made_map(5, 'mono')
    for key in (2, 3, 4):  # as if scale had drifted to twice by then: the same points
        scaled = world.pose[key].copy()
        scaled[:3, :3] *= 0.5
        hangs = world.landmarks.anchor == key
        world.landmarks.position[hangs] *= 2.0
        world.move({key: scaled})
    features, _ = query(pose_at(0.5))
    one = MapMatcher(Alike(), CAMERA).match(world, features, [0, 3])
    other = MapMatcher(Alike(), CAMERA).match(world, features, [3, 0])
    depth_one, depth_other = one.points[:, 2].median(), other.points[:, 2].median()
    assert float(depth_other / depth_one) == pytest.approx(2.0, rel=0.05)
    spread = (m.spread.diagonal(dim1=1, dim2=2).median() for m in (one, other))
    assert float(next(spread) / next(spread)) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize('mount', [np.eye(4), pose_at(0.2, 1.2)])
@pytest.mark.parametrize('wrong', [0.0, 0.4])
def test_the_pose_is_found_and_its_covariance_is_true(mount: Array, wrong: float) -> None:
    camera = Camera(640, 480, CAMERA.intrinsics, body_from_camera=mount)
    world, (place, _) = made_map(), scene()
    world.landmarks.covariance *= 0.04  # 2 cm
    exact, noise = world.landmarks.position.copy(), np.random.default_rng(5)
    errors = []
    for seed in range(30):
        world.landmarks.position = exact + 0.02 * noise.normal(size=exact.shape).astype('f4')
        true = pose_at(0.4 + 0.01 * seed, 0.05)
        features, plane = query(true, 0.5, seed)
        found = MapMatcher(Alike(wrong), CAMERA).match(world, features, [2, 1])
        sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
        pose = find_view_pose(found, plane, sigma, camera, 4.0 / FOCAL)
        assert pose is not None
        assert pose.inliers > (0.9 - 1.2 * wrong) * len(found)
        # Frame 2 is that of the camera: the body is what the mount says.
        body = np.linalg.inv(world.pose[2]) @ true @ np.linalg.inv(mount)
        error = se3.log(se3.inverse(torch.from_numpy(body)) @ pose.world_from_body)
        assert float(error[3:].norm()) < 0.01
        errors.append(float(error @ torch.linalg.solve(pose.covariance, error)) / 6.0)
        assert 0.1 < pose.spread < 0.5
    assert 0.3 < np.mean(errors) < 2.5
    assert len(place) > 0


def test_a_guess_is_taken_where_it_is_good() -> None:
    world = made_map()
    true = pose_at(0.5, 0.02)
    features, plane = query(true)
    found = MapMatcher(Alike(), CAMERA).match(world, features, [0])
    sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
    guess = torch.from_numpy(np.linalg.inv(true))[None]
    pose = find_view_pose(found, plane, sigma, CAMERA, 4.0 / FOCAL, guess)
    assert pose is not None
    np.testing.assert_allclose(pose.world_from_body, true, atol=1e-4)


@pytest.mark.parametrize('count', range(6))
def test_few_matches_are_no_pose(count: int) -> None:
    features, plane = query(pose_at(0.5))
    whole = MapMatcher(Alike(), CAMERA).match(made_map(), features, [0])
    few = PointMatches(*(getattr(whole, name)[:count] for name in (
        'feature', 'landmark', 'points', 'spread', 'confidence'
    )), count)  # fmt: skip
    sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
    pose = find_view_pose(few, plane, sigma, CAMERA, 4.0 / FOCAL)
    assert pose is None or (count >= 5 and bool(pose.covariance.isfinite().all()))


def test_matches_at_random_are_no_pose() -> None:
    features, plane = query(pose_at(0.5))
    found = MapMatcher(Alike(), CAMERA).match(made_map(), features, [0])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    mixed = PointMatches(
        found.feature, found.landmark, found.points[order], found.spread, found.confidence, 0
    )
    sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
    pose = find_view_pose(mixed, plane, sigma, CAMERA, 4.0 / FOCAL)
    assert pose is None or pose.inliers < 15


def test_a_keyframe_without_landmarks_gives_none() -> None:
    world = made_map()
    world.keyframes[1] = world.keyframes[1].seeing(np.full(len(world.keyframes[1]), -1, np.int32))
    features, plane = query(pose_at(0.3))
    found = MapMatcher(Alike(), CAMERA).match(world, features, [1])
    assert len(found) == 0
    assert found.asked > 100
    sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
    assert find_view_pose(found, plane, sigma, CAMERA, 4.0 / FOCAL) is None


def test_points_that_say_nothing_do_no_harm() -> None:
    """In the plane of the camera, behind it, or anywhere: numbers that no matrix inverts."""
    world = made_map()
    features, plane = query(pose_at(0.5, 0.02), 0.3)
    whole = MapMatcher(Alike(), CAMERA).match(world, features, [2, 1])
    sigma = torch.full((len(plane),), 0.5 / FOCAL, dtype=torch.float64)
    expected = find_view_pose(whole, plane, sigma, CAMERA, 4.0 / FOCAL)
    assert expected is not None
    points, spread = whole.points.clone(), whole.spread.clone()
    points[1] = torch.tensor([5.0, 0.0, 1e-9])
    points[2] = torch.tensor([0.0, 0.0, -4.0])
    spread[3] = 1e12 * torch.eye(3)
    spread[4] = torch.diag(torch.tensor([0.0, 0.0, 1e18]))
    spread[5] = torch.nan
    odd = replace(whole, points=points, spread=spread)
    found = find_view_pose(odd, plane, sigma, CAMERA, 4.0 / FOCAL)
    assert found is not None
    assert not found.inlier[[1, 2, 3, 5]].any()
    np.testing.assert_allclose(found.world_from_body, expected.world_from_body, atol=5e-3)
    assert found.covariance.isfinite().all()
