# SPDX-License-Identifier: Apache-2.0
"""A keyframe comes with parallax, lost overlap or few tracks, and waits a little for sharpness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.odometry.flow import Followed, Target
from mv_matcher_ros.odometry.keyframes import LONGEST_WAIT, KeyframePolicy
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked
from mv_matcher_ros.odometry.window import Landmarks

Make = Callable[..., Any]
SETTINGS = read_settings(
    {'keyframes.min_overlap': 0.5, 'keyframes.parallax_px': 50.0, 'keyframes.min_tracked': 80}
)
ROWS = torch.arange(200)
CAMERA = Camera(640, 480, (400.0, 400.0, 319.5, 239.5))


@pytest.fixture
def seen(make_scene: Make, pose: Make) -> Observation:
    found: Observation = make_scene().observe(pose(0))
    return found


def followed(seen: Observation, inliers: int, pixels: float = 0.0) -> Followed:
    """200 features followed, all moved by `pixels`, the first `inliers` agreeing with the pose."""
    landmarks = Landmarks()
    landmarks.add(torch.zeros(200, 3, dtype=torch.float64), torch.zeros(200, 8))
    target = Target(seen, landmarks, torch.eye(4, dtype=torch.float64))
    move = torch.tensor([0.0, pixels / 400.0], dtype=torch.float64)
    here = replace(seen, plane_xy=seen.plane_xy + move)
    tracked = Tracked(torch.eye(4), ROWS, ROWS, inliers > ROWS, torch.eye(6), '')
    return Followed(target, here, ROWS, inliers > ROWS, tracked)


def test_parallax_in_pixels_makes_a_keyframe(seen: Observation) -> None:
    policy = KeyframePolicy(SETTINGS, CAMERA)
    assert not policy.wants(followed(seen, 200, 49.0))
    assert policy.wants(followed(seen, 200, 51.0))


def test_parallax_scales_with_the_width_of_the_image(seen: Observation) -> None:
    policy = KeyframePolicy(SETTINGS, Camera(1280, 960, (400.0, 400.0, 639.5, 479.5)))
    assert not policy.wants(followed(seen, 200, 99.0))
    assert policy.wants(followed(seen, 200, 101.0))


def test_lost_overlap_makes_a_keyframe(seen: Observation) -> None:
    policy = KeyframePolicy(SETTINGS, CAMERA)
    assert not policy.wants(followed(seen, 190))  # the first frame says what is usual
    assert not policy.wants(followed(seen, 95))
    assert policy.wants(followed(seen, 94))


def test_few_tracks_make_a_keyframe(seen: Observation) -> None:
    policy = KeyframePolicy(SETTINGS, CAMERA)
    assert not policy.wants(followed(seen, 80))
    assert policy.wants(followed(seen, 79))


def test_without_inliers_the_motion_is_unknown_and_a_keyframe_is_wanted(seen: Observation) -> None:
    assert followed(seen, 0).moved() == float('inf')
    assert KeyframePolicy(SETTINGS, CAMERA).wants(followed(seen, 0))


def test_a_restart_forgets_what_was_usual(seen: Observation) -> None:
    policy = KeyframePolicy(SETTINGS, CAMERA)
    policy.wants(followed(seen, 200))
    policy.restart()
    assert not policy.wants(followed(seen, 90))


class TestBlur:
    def after(self, last: float) -> KeyframePolicy:
        """A policy that has noted ten sharp frames and one of this sharpness."""
        policy = KeyframePolicy(SETTINGS, CAMERA)
        for sharpness in [10.0] * 10 + [last]:
            policy.note(sharpness)
        return policy

    def test_a_blurred_frame_waits_at_most_so_long(self, seen: Observation) -> None:
        policy = self.after(5.0)
        found = [policy.wants(followed(seen, 200, 60.0)) for _ in range(LONGEST_WAIT + 1)]
        assert found == [False] * LONGEST_WAIT + [True]

    def test_the_next_sharp_frame_is_taken(self, seen: Observation) -> None:
        policy = self.after(5.0)
        assert not policy.wants(followed(seen, 200, 60.0))
        policy.note(10.0)
        assert policy.wants(followed(seen, 200, 62.0))

    def test_a_track_about_to_break_does_not_wait(self, seen: Observation) -> None:
        assert self.after(5.0).wants(followed(seen, 39, 60.0))

    def test_a_little_blur_does_not_wait(self, seen: Observation) -> None:
        assert self.after(9.0).wants(followed(seen, 200, 60.0))
