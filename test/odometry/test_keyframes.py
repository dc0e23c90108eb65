# SPDX-License-Identifier: Apache-2.0
"""A keyframe comes with parallax, lost overlap or few tracks, and waits a little for sharpness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.odometry.keyframes import LONGEST_WAIT, KeyframePolicy, sharpness
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked
from mv_matcher_ros.odometry.window import Keyframe, Window

Make = Callable[..., Any]
SETTINGS = read_settings(
    {'keyframes.min_overlap': 0.5, 'keyframes.parallax_px': 50.0, 'keyframes.min_tracked': 80}
)
ROWS = torch.arange(200)


def tracked(inliers: int) -> Tracked:
    return Tracked(torch.eye(4), ROWS, ROWS, inliers > ROWS, torch.eye(6), '')


def shifted(observation: Observation, pixels: float) -> Observation:
    move = torch.tensor([0.0, pixels / 400.0], dtype=torch.float64)
    return replace(observation, plane_xy=observation.plane_xy + move)


def blurred(observation: Observation, share: float) -> Observation:
    """The observation with detection scores times `share`."""
    features = replace(observation.features, scores=observation.features.scores * share)
    return replace(observation, features=features)


@pytest.fixture
def seen(make_scene: Make, pose: Make) -> Observation:
    found: Observation = make_scene().observe(pose(0))
    return found


def start(seen: Observation, camera: Camera, landmark: Tensor = ROWS) -> tuple[Any, Window]:
    """A policy that has one keyframe, whose feature k sees landmark k."""
    window = Window()
    window.landmarks.add(torch.zeros(200, 3, dtype=torch.float64), torch.zeros(200, 8))
    keyframe = Keyframe(seen, torch.eye(4, dtype=torch.float64), landmark)
    window.keyframes = [keyframe]
    policy = KeyframePolicy(SETTINGS, camera)
    policy.restart(keyframe)
    return policy, window


CAMERA = Camera(640, 480, (400.0, 400.0, 319.5, 239.5))


def test_parallax_in_pixels_makes_a_keyframe(seen: Observation) -> None:
    policy, window = start(seen, CAMERA)
    assert not policy.wants(window, shifted(seen, 49.0), tracked(200))
    assert policy.wants(window, shifted(seen, 51.0), tracked(200))


def test_parallax_scales_with_the_width_of_the_image(seen: Observation) -> None:
    twice = Camera(1280, 960, (400.0, 400.0, 639.5, 479.5))
    policy, window = start(seen, twice)
    assert not policy.wants(window, shifted(seen, 99.0), tracked(200))
    assert policy.wants(window, shifted(seen, 101.0), tracked(200))


def test_lost_overlap_makes_a_keyframe(seen: Observation) -> None:
    policy, window = start(seen, CAMERA)
    assert not policy.wants(window, seen, tracked(190))  # the first frame says what is usual
    assert not policy.wants(window, seen, tracked(95))
    assert policy.wants(window, seen, tracked(94))


def test_few_tracks_make_a_keyframe(seen: Observation) -> None:
    policy, window = start(seen, CAMERA)
    assert not policy.wants(window, seen, tracked(80))
    assert policy.wants(window, seen, tracked(79))


def test_nothing_in_common_with_the_newest_keyframe_makes_a_keyframe(seen: Observation) -> None:
    policy, window = start(seen, CAMERA, landmark=torch.full((200,), -1))
    assert policy.wants(window, seen, tracked(200))


def test_a_restart_forgets_what_was_usual(seen: Observation) -> None:
    policy, window = start(seen, CAMERA)
    policy.wants(window, seen, tracked(200))
    policy.restart(window.keyframes[0])
    assert not policy.wants(window, seen, tracked(90))


class TestBlur:
    def usual(self, seen: Observation) -> tuple[KeyframePolicy, Window]:
        policy, window = start(seen, CAMERA)
        for _ in range(10):
            policy.note(seen)
        return policy, window

    def test_a_blurred_frame_waits_at_most_so_long(self, seen: Observation) -> None:
        policy, window = self.usual(seen)
        far = shifted(blurred(seen, 0.5), 60.0)
        found = [policy.wants(window, far, tracked(200)) for _ in range(LONGEST_WAIT + 1)]
        assert found == [False] * LONGEST_WAIT + [True]

    def test_the_next_sharp_frame_is_taken(self, seen: Observation) -> None:
        policy, window = self.usual(seen)
        assert not policy.wants(window, shifted(blurred(seen, 0.5), 60.0), tracked(200))
        assert policy.wants(window, shifted(seen, 62.0), tracked(200))

    def test_a_track_about_to_break_does_not_wait(self, seen: Observation) -> None:
        policy, window = self.usual(seen)
        assert policy.wants(window, shifted(blurred(seen, 0.5), 60.0), tracked(39))

    def test_a_little_blur_does_not_wait(self, seen: Observation) -> None:
        policy, window = self.usual(seen)
        assert policy.wants(window, shifted(blurred(seen, 0.9), 60.0), tracked(200))


def test_sharpness_is_the_median_of_the_strongest(seen: Observation) -> None:
    scores = torch.cat([torch.full((120,), 5.0), torch.full((80,), 3.0)])
    scores[:20] = 50.0
    some = replace(seen, features=replace(seen.features, scores=scores))
    assert sharpness(some) == 5.0  # neither the outliers nor the mean
    nothing = replace(
        seen.features,
        keypoints_xy=torch.zeros(0, 2),
        descriptors=torch.zeros(0, 128),
        scores=torch.zeros(0),
        sigma_px=torch.zeros(0),
    )
    assert sharpness(replace(seen, features=nothing)) == 0.0
