# SPDX-License-Identifier: Apache-2.0
"""New landmarks lie where the points are, and their tracks are completed over the window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.landmarks import LandmarkMaker, inverse_depth_from_pair
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.window import Keyframe, Window

SETTINGS = read_settings({'detector.name': 'sift'})
Make = Callable[..., Any]


def maker_for(camera: Any) -> LandmarkMaker:
    matcher = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
    return LandmarkMaker(SETTINGS, SeeingCameras([camera]), matcher)


@pytest.mark.parametrize(
    'motion',
    [(0.3, 0.1, 0.0), (0.0, 0.0, 0.8), (-0.2, 0.1, 0.5, 0.1, -0.2, 0.3), (0, 0, -0.6, 0, 0.1, 0)],
    ids=['sideways', 'forward', 'general', 'backward'],
)
def test_inverse_depth_of_exact_pairs_is_exact(
    motion: tuple[float, ...], make_scene: Make, pose: Make
) -> None:
    scene, here = make_scene(100, seed=1), pose(0)
    there = pose(*motion)
    plane, depth = scene.plane(here)
    other, _ = scene.plane(there)
    found, turned = inverse_depth_from_pair(plane, other, se3.inverse(there))
    torch.testing.assert_close(found, 1.0 / depth, rtol=1e-8, atol=0)
    rays = scene.points / depth[:, None]
    torch.testing.assert_close(turned, rays @ there[:3, :3])


def test_a_point_at_the_epipole_has_no_depth_but_no_nan_either(pose: Make) -> None:
    centre = torch.zeros(1, 2, dtype=torch.float64)
    found, _ = inverse_depth_from_pair(centre, centre, pose(0, 0, -1))
    assert bool(found.isfinite().all())


class TestFromDepth:
    def test_points_are_recovered_once(self, make_scene: Make, pose: Make) -> None:
        scene, at = make_scene(), pose(0.5, 0.1, -0.3, 0.1, 0.2, 0.0)
        window, maker = Window(), maker_for(scene.camera)
        keyframe = Keyframe.of(scene.observe(at, depth_sigma=0.0), at)
        assert maker.from_depth(window, keyframe) == 200
        torch.testing.assert_close(window.landmarks.position[keyframe.landmark], scene.points)
        assert torch.equal(window.landmarks.descriptor[keyframe.landmark], scene.descriptors)
        assert maker.from_depth(window, keyframe) == 0  # all features see one now

    def test_unknown_negative_and_uncertain_depths_make_none(
        self, make_scene: Make, pose: Make
    ) -> None:
        scene = make_scene()
        seen = scene.observe(pose(0), depth_sigma=0.0)
        inverse, sigma = seen.inverse_depth.clone(), seen.inverse_depth_sigma.clone()
        inverse[0], inverse[1] = torch.nan, -0.2
        sigma[2] = 0.4 * inverse[2]
        seen = replace(seen, inverse_depth=inverse, inverse_depth_sigma=sigma)
        window, keyframe = Window(), Keyframe.of(seen, pose(0))
        assert maker_for(scene.camera).from_depth(window, keyframe) == 197
        assert keyframe.landmark[:3].tolist() == [-1, -1, -1]


class TestFromParallax:
    def two(self, scene: Any, here: Tensor, there: Tensor) -> tuple[Window, Keyframe, Keyframe]:
        window = Window()
        first = Keyframe.of(scene.observe(here), here)
        second = Keyframe.of(scene.observe(there), there)
        window.keyframes = [first, second]
        return window, first, second

    def test_points_are_recovered(self, make_scene: Make, pose: Make) -> None:
        scene = make_scene()
        window, first, second = self.two(scene, pose(0), pose(0.4, 0.1, 0.2, 0, 0.05, 0))
        assert maker_for(scene.camera).from_parallax(window, second) == 200
        assert torch.equal(first.landmark, second.landmark)
        torch.testing.assert_close(window.landmarks.position[second.landmark], scene.points)

    def test_without_parallax_there_are_none(self, make_scene: Make, pose: Make) -> None:
        scene = make_scene(nearest=5.0)
        window, _, second = self.two(scene, pose(0), pose(0.005))
        assert maker_for(scene.camera).from_parallax(window, second) == 0
        assert int((second.landmark >= 0).sum()) == 0

    def test_descriptors_away_from_the_epipolar_line_do_not_match(
        self, make_scene: Make, pose: Make
    ) -> None:
        scene = make_scene()
        window, _, second = self.two(scene, pose(0), pose(0.4))
        shifted = second.observation.plane_xy + torch.tensor([0.0, 0.05], dtype=torch.float64)
        second.observation = replace(second.observation, plane_xy=shifted)
        assert maker_for(scene.camera).from_parallax(window, second) == 0

    def test_matches_with_a_known_landmark_see_that_one(
        self, make_scene: Make, pose: Make
    ) -> None:
        scene = make_scene()
        window, first, second = self.two(scene, pose(0), pose(0.4, 0, 0.1))
        first.landmark[:80] = window.landmarks.add(scene.points[:80], scene.descriptors[:80])
        assert maker_for(scene.camera).from_parallax(window, second) == 120
        assert torch.equal(second.landmark[:80], torch.arange(80))
        assert len(window.landmarks) == 200


class TestCompleteTracks:
    def test_unseen_observations_are_found(self, make_scene: Make, pose: Make) -> None:
        scene, window = make_scene(), Window()
        poses = [pose(0), pose(0.2, 0.05, 0.1), pose(0.4, 0, 0, 0, 0.1, 0)]
        window.keyframes = [Keyframe.of(scene.observe(p, noise_px=0.3), p) for p in poses]
        rows = window.landmarks.add(scene.points, scene.descriptors)
        window.keyframes[0].landmark = rows.clone()
        window.keyframes[1].landmark[:50] = rows[:50]
        maker_for(scene.camera).complete_tracks(window)
        for keyframe in window.keyframes:
            found = keyframe.landmark >= 0
            assert int(found.sum()) >= 195
            assert torch.equal(keyframe.landmark[found], rows[found])

    def test_only_as_far_as_the_uncertainty_allows(self, make_scene: Make, pose: Make) -> None:
        scene, window = make_scene(), Window()
        window.keyframes = [Keyframe.of(scene.observe(pose(0), noise_px=0.3), pose(0))]
        wrong = scene.points.clone()
        wrong[:, 0] += 0.01 * wrong[:, 2]  # 4 px beside, 13 standard deviations
        window.landmarks.add(wrong, scene.descriptors)
        maker_for(scene.camera).complete_tracks(window)
        assert int((window.keyframes[0].landmark >= 0).sum()) == 0
        uncertain = 0.01 * torch.eye(3, dtype=torch.float64)
        window.landmarks.covariance = uncertain.expand(200, 3, 3).clone()
        maker_for(scene.camera).complete_tracks(window)
        assert int((window.keyframes[0].landmark >= 0).sum()) > 150

    def test_points_behind_the_camera_are_not_sought(self, make_scene: Make, pose: Make) -> None:
        scene, window = make_scene(), Window()
        window.keyframes = [Keyframe.of(scene.observe(pose(0)), pose(0))]
        window.landmarks.add(-scene.points, scene.descriptors)
        maker_for(scene.camera).complete_tracks(window)
        assert int((window.keyframes[0].landmark >= 0).sum()) == 0
