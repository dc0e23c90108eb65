# SPDX-License-Identifier: Apache-2.0
"""What a keyframe adds to the window: new matches must be able to correct its pose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Frame, Rig, View
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.odometry.local_adjustment import step_covariance
from mv_matcher_ros.odometry.local_mapping import LocalMapper
from mv_matcher_ros.odometry.map_start import MapStart
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

Make = Callable[..., Any]
NOISE_PX = 0.3


def mapper_for(camera: Any, sensor: str) -> LocalMapper:
    settings = read_settings({'sensor': sensor, 'detector.name': 'sift'})
    rig = Rig((camera,))
    matcher = NearestNeighbourMatcher(settings.matching, 'sift')
    observer = Observer(settings, rig, ClassicalDetector(settings.detector))
    tracker = Tracker(settings, SeeingCameras([camera]), matcher)
    return LocalMapper(settings, rig, observer, tracker, matcher)


def frame_for(camera: Any, stamp_ns: int) -> Frame:
    return Frame(stamp_ns, 0, (View(np.zeros((camera.height, camera.width), np.uint8)),))


def seen_before(count: int, pose: Tensor) -> Tracked:
    """The first `count` features see the landmarks of the same number."""
    rows = torch.arange(count)
    return told(pose, rows, rows)


def told(pose: Tensor, feature: Tensor, landmark: Tensor) -> Tracked:
    every = torch.ones(len(feature), dtype=torch.bool)
    return Tracked(pose, feature, landmark, every, torch.eye(6, dtype=torch.float64), 'told')


def turned(error: Tensor) -> float:
    return float(se3.log(error)[3:].norm().rad2deg())


@pytest.fixture
def mapped(make_scene: Make, pose: Make) -> Callable[[float], tuple[LocalMapper, Tensor, Any]]:
    """A second keyframe inserted with its pose wrong by so many degrees about y."""

    def make(wrong_deg: float) -> tuple[LocalMapper, Tensor, Any]:
        scene = make_scene(400, seed=2, nearest=2.0, farthest=6.0)
        first, second = pose(0), pose(0.25, 0.02, 0.05, 0.0, 0.03, 0.0)
        mapper = mapper_for(scene.camera, 'rgbd')
        start = scene.observe(first, 0, NOISE_PX, depth_sigma=0.002)
        # Depth is known of few: of the others only parallax can tell where they are.
        unknown = torch.arange(400) >= 60
        start = replace(start, inverse_depth=start.inverse_depth.masked_fill(unknown, torch.nan))
        assert mapper.begin_with_depth(frame_for(scene.camera, 0), start, first) == 60
        wrong = second @ pose(0, 0, 0, 0, np.radians(wrong_deg), 0)
        observation = scene.observe(second, 10**8, NOISE_PX)
        inserted = mapper.insert(
            frame_for(scene.camera, 10**8), observation, seen_before(12, wrong)
        )
        return mapper, second, inserted

    return make


class TestNewMatchesCorrectTheKeyframe:
    @pytest.mark.parametrize('wrong_deg', [0.0, 0.3, -0.6, 1.0])
    def test_a_wrong_pose_is_not_confirmed(self, mapped: Any, wrong_deg: float) -> None:
        _, truth, inserted = mapped(wrong_deg)
        assert turned(se3.inverse(truth) @ inserted.refined) < 0.2

    def test_most_points_are_known_afterwards(self, mapped: Any) -> None:
        mapper, _, _ = mapped(0.6)
        assert int(mapper.window.landmarks.alive.sum()) > 300


class TestMapped:
    def test_says_how_the_keyframe_lies_to_the_one_before(self, mapped: Any) -> None:
        mapper, _, inserted = mapped(0.0)
        before, newest = mapper.window.keyframes
        torch.testing.assert_close(inserted.refined, newest.world_from_body)
        torch.testing.assert_close(before.world_from_body @ inserted.step, inserted.refined)

    def test_its_target_is_the_newest_keyframe(self, mapped: Any) -> None:
        mapper, _, inserted = mapped(0.0)
        newest = mapper.window.keyframes[-1]
        alive = inserted.target.landmarks.alive
        assert torch.equal(alive, newest.landmark >= 0)
        torch.testing.assert_close(
            inserted.target.landmarks.position[alive],
            mapper.window.landmarks.position[newest.landmark[alive]],
        )

    def test_a_map_begins_with_all_views_of_a_start(self, make_scene: Make, pose: Make) -> None:
        scene = make_scene(60, seed=4)
        poses = torch.stack([pose(0), pose(0.1, 0, 0, 0, 0.02), pose(0.4, 0, 0.1)])
        views = tuple(scene.observe(at, number) for number, at in enumerate(poses))
        feature = torch.arange(60)[:, None].repeat(1, 3)
        feature[:20, 1] = -1
        start = MapStart(
            views,
            se3.inverse(poses),
            feature,
            torch.where(feature >= 0, 0.5, 0.0).double(),
            scene.points,
            torch.ones(60, dtype=torch.float64),
            '',
        )
        mapper, origin = mapper_for(scene.camera, 'mono'), pose(3.0, 2.0, 1.0, 0.3)
        mapper.begin_with_views(start, origin)
        keyframes = mapper.window.keyframes
        found = torch.stack([keyframe.world_from_body for keyframe in keyframes])
        torch.testing.assert_close(found, origin @ poses, rtol=0, atol=1e-6)
        assert [int((k.landmark >= 0).sum()) for k in keyframes] == [60, 40, 60]
        assert all(float(k.weight.min()) == 1.0 for k in keyframes)  # no graph made the matches
        landmarks = mapper.window.landmarks
        world = se3.transform(origin, scene.points)
        torch.testing.assert_close(landmarks.position, world, rtol=0, atol=1e-5)
        assert torch.equal(landmarks.descriptor, views[-1].features.descriptors)

    def test_views_at_one_place_do_not_hide_the_scale(self, make_scene: Make, pose: Make) -> None:
        scene = make_scene(60, seed=4)
        poses = torch.stack([pose(0), pose(0), pose(0.4)])  # held: the distance to the newest
        views = tuple(scene.observe(at, number) for number, at in enumerate(poses))
        feature = torch.arange(60)[:, None].repeat(1, 3)
        ones = torch.ones(60, 3, dtype=torch.float64)
        start = MapStart(views, se3.inverse(poses), feature, ones, scene.points, ones[:, 0], '')
        mapper = mapper_for(scene.camera, 'mono')
        mapper.begin_with_views(start, pose(0))
        found = torch.stack([k.world_from_body for k in mapper.window.keyframes])
        torch.testing.assert_close(found, poses, rtol=0, atol=1e-6)

    def test_the_window_does_not_outgrow_its_limit(self, make_scene: Make, pose: Make) -> None:
        scene = make_scene(200, seed=4)
        mapper = mapper_for(scene.camera, 'rgbd')
        limit = read_settings().keyframes.window
        mapper.begin_with_depth(
            frame_for(scene.camera, 0), scene.observe(pose(0), 0, NOISE_PX, 0.002), pose(0)
        )
        for number in range(1, limit + 4):
            at = pose(0.02 * number)
            observation = scene.observe(at, number, NOISE_PX, 0.002)
            newest = mapper.window.keyframes[-1]
            feature = (newest.landmark >= 0).nonzero()[:, 0]
            known = told(at, feature, newest.landmark[feature])
            mapper.insert(frame_for(scene.camera, number), observation, known)
            assert len(mapper.window.keyframes) <= limit
        error = se3.inverse(pose(0.02 * (limit + 3))) @ mapper.window.keyframes[-1].world_from_body
        assert float(error[:3, 3].norm()) < 0.01


def monte_carlo_step(scene: Any, pose: Make, seed: int) -> tuple[Tensor, Tensor]:
    """(6,) error of the last step of three poses, and its (6, 6) covariance, for one noise."""
    from mv_matcher_ros.geometry.bundle_adjustment import solve
    from mv_matcher_ros.geometry.reprojection import linearise
    from mv_matcher_ros.geometry.schur import eliminate_points, least_norm_inverse

    poses = [pose(0), pose(0.2), pose(0.4, 0.0, 0.1, 0.0, 0.05, 0.0)]
    scene.random.manual_seed(seed)
    window = Window()
    observations: list[Observation] = [scene.observe(at, 0, 0.5, 0.01) for at in poses]
    window.keyframes = [Keyframe.of(o, at) for o, at in zip(observations, poses, strict=True)]
    rows = window.landmarks.add(scene.points, scene.descriptors)
    for keyframe in window.keyframes:
        keyframe.landmark = rows.clone()
    fixed = torch.tensor([True, False, False])
    identity = torch.eye(4, dtype=torch.float64)
    problem = window.problem(identity[None], fixed, 'none', 1.0, window.flat_observations())
    solution = solve(problem, 30, 1e-12)
    at_end = problem.moved(solution.world_from_body, solution.points)
    free = least_norm_inverse(eliminate_points(at_end, linearise(at_end)).pose_pose)[0]
    covariance = step_covariance(solution.world_from_body[0], free)
    step = se3.inverse(solution.world_from_body[0, 1]) @ solution.world_from_body[0, 2]
    return se3.log(se3.inverse(se3.inverse(poses[1]) @ poses[2]) @ step), covariance


class TestStepCovariance:
    def test_is_the_spread_of_the_step(self, make_scene: Make, pose: Make) -> None:
        scene = make_scene(60, seed=3)
        runs = [monte_carlo_step(scene, pose, seed) for seed in range(150)]
        nees = [float(e @ torch.linalg.solve(c, e)) / 6.0 for e, c in runs]
        assert np.mean(nees) == pytest.approx(1.0, abs=0.2)

    def test_of_the_first_pose_is_zero(self, pose: Make) -> None:
        poses = torch.stack([pose(0), pose(0.3)])
        covariance = torch.eye(12, dtype=torch.float64)
        assert not bool(step_covariance(poses[:1], covariance[:6, :6]).any())
        assert not bool(step_covariance(poses, covariance, 0).any())
        assert bool(step_covariance(poses, covariance, 1).any())
        assert not bool(step_covariance(poses, torch.zeros(0, 0)).any())
