# SPDX-License-Identifier: Apache-2.0
"""Of several poses of a frame the one that most landmarks agree with is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.hypotheses import PLENTY, Hypotheses
from mv_matcher_ros.odometry.motion import Motion
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

Make = Callable[..., Any]
SETTINGS = read_settings({'sensor': 'rgbd', 'detector.name': 'sift'})
STEP_NS = 10**8


def tracker_for(camera: Any) -> Tracker:
    matcher = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
    return Tracker(SETTINGS, SeeingCameras([camera]), matcher)


def mapped(scene: Any, at: Tensor) -> Window:
    """A window of one keyframe that sees every point of the scene."""
    window = Window()
    window.keyframes = [Keyframe.of(scene.observe(at, 0, 0.2, 0.01), at)]
    window.keyframes[0].landmark = window.landmarks.add(scene.points, scene.descriptors)
    return window


def found(inliers: int, pose: Tensor) -> Tracked:
    rows = torch.arange(inliers)
    every = torch.ones(inliers, dtype=torch.bool)
    return Tracked(pose, rows, rows, every, torch.eye(6, dtype=torch.float64), 'told')


class Misled(Tracker):
    """Finds a few landmarks wherever it is asked to look, and all of them at rest."""

    def track(self, window: Window, observation: Any, guess: Tensor) -> Tracked | None:
        at_rest = torch.equal(guess, torch.eye(4, dtype=torch.float64))
        return found(250 if at_rest else 60, guess)


class TestSearch:
    def test_the_first_plausible_pose_is_not_good_enough(
        self, make_scene: Make, pose: Make
    ) -> None:
        scene, here = make_scene(10), pose(0)
        cameras = SeeingCameras([scene.camera])
        misled = Misled(SETTINGS, cameras, NearestNeighbourMatcher(SETTINGS.matching, 'sift'))
        turning = Motion(-STEP_NS, pose(0, 0, 0, 0, -0.05, 0)).measured(0, here)
        observation = scene.observe(here, STEP_NS)
        best = Hypotheses(SETTINGS, misled).best(
            mapped(scene, here), observation, turning, turning.predict(STEP_NS), 300
        )
        assert best is not None
        assert torch.equal(best.world_from_body, here)
        # 60 are enough where there were not many more before: the prediction comes first.
        few = Hypotheses(SETTINGS, misled).best(
            mapped(scene, here), observation, turning, turning.predict(STEP_NS), 70
        )
        assert few is not None
        assert few.inliers == 60

    @pytest.mark.parametrize('turn', [0.05, 0.1, 0.15])
    def test_an_abrupt_end_of_a_turn_is_not_followed_on(
        self, make_scene: Make, pose: Make, turn: float
    ) -> None:
        scene, here = make_scene(300, seed=5), pose(0)
        window = mapped(scene, here)
        turning = Motion(-STEP_NS, pose(0, 0, 0, 0, -turn, 0)).measured(0, here)
        still = scene.observe(here, STEP_NS, 0.2)
        best = Hypotheses(SETTINGS, tracker_for(scene.camera)).best(
            window, still, turning, turning.predict(STEP_NS), 300
        )
        assert best is not None
        assert best.inliers > 250
        torch.testing.assert_close(best.world_from_body, here, atol=5e-3, rtol=0)

    def test_nothing_known_in_the_image_gives_none(self, make_scene: Make, pose: Make) -> None:
        scene, other = make_scene(200, seed=6), make_scene(200, seed=7)
        window = mapped(scene, pose(0))
        judge = Hypotheses(SETTINGS, tracker_for(scene.camera))
        strange = other.observe(pose(0), STEP_NS, 0.2)
        assert judge.best(window, strange, Motion(0, pose(0)), pose(0), 200) is None
        assert judge.anywhere(window, strange, 200) is None

    def test_anywhere_finds_a_pose_that_no_motion_explains(
        self, make_scene: Make, pose: Make
    ) -> None:
        scene = make_scene(300, seed=8)
        window = mapped(scene, pose(0))
        away = pose(0.6, -0.1, 0.3, 0.0, -0.1, 0.05)
        best = Hypotheses(SETTINGS, tracker_for(scene.camera)).anywhere(
            window, scene.observe(away, STEP_NS, 0.2), 300
        )
        assert best is not None
        torch.testing.assert_close(best.world_from_body, away, atol=1e-2, rtol=0)


class TestEnough:
    @pytest.mark.parametrize(
        ('inliers', 'before', 'enough'),
        [(PLENTY, 10_000, True), (60, 100, True), (60, 121, False), (5, 0, False)],
    )
    def test_about_as_many_as_before(
        self, make_scene: Make, pose: Make, inliers: int, before: int, enough: bool
    ) -> None:
        judge = Hypotheses(SETTINGS, tracker_for(make_scene(10).camera))
        assert judge.enough(found(inliers, pose(0)), before) is enough

    def test_a_leap_is_not_plausible(self, make_scene: Make, pose: Make) -> None:
        judge = Hypotheses(SETTINGS, tracker_for(make_scene(10).camera))
        rest = Motion(0, pose(0))
        assert judge.plausible(found(100, pose(0.1)), rest, STEP_NS)
        assert not judge.plausible(found(100, pose(50.0)), rest, STEP_NS)
        assert not judge.plausible(found(100, pose(0, 0, 0, 0, 3.0, 0)), rest, STEP_NS)
