# SPDX-License-Identifier: Apache-2.0
"""Motion tells a constant disparity error of a rig from the depths of the scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_offset import LARGEST_PX, START_SIGMA_PX, DisparityOffset
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.window import Keyframe, Window

Make = Callable[..., Any]
SETTINGS = read_settings({'sensor': 'stereo', 'detector.name': 'sift'})
BASELINE_M = 0.12
NOISE_PX = 0.3
PER_PX = 1.0 / (400.0 * BASELINE_M)  # inverse depth of one pixel of disparity


def rig_of(scene: Any, second_at: tuple[float, float, float]) -> Rig:
    pose = np.eye(4)
    pose[:3, 3] = second_at
    return Rig((scene.camera, replace(scene.camera, body_from_camera=pose)))


def estimator(scene: Any, second_at: tuple[float, float, float]) -> DisparityOffset:
    matcher = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
    return DisparityOffset(
        rig_of(scene, second_at), LandmarkMaker(SETTINGS, SeeingCameras([scene.camera]), matcher)
    )


def drive(
    scene: Any, estimate: DisparityOffset, true_px: float, pose: Make, scale: float = 1.0
) -> Window:
    """Twelve keyframes, 15 cm apart: poses known up to `scale`, disparities off by `true_px`."""
    window = Window()
    rows = window.landmarks.add(scene.points, scene.descriptors)
    for number in range(12):
        at = pose(0.15 * number, 0.03 * number, 0.05 * number, 0, 0.01 * number, 0)
        seen = scene.observe(at, number, noise_px=NOISE_PX, depth_sigma=1.4 * NOISE_PX * PER_PX)
        measured = seen.inverse_depth + true_px * PER_PX - estimate.offset
        known = at.clone()
        known[:3, 3] *= scale
        window.keyframes.append(
            Keyframe(
                replace(seen, inverse_depth=measured),
                known,
                rows.clone(),
                torch.ones(len(rows)).double(),
            )
        )
        estimate.update(window)
    return window


ACROSS = (BASELINE_M, 0.0, 0.0)


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('true_px', [0.2, -0.2])
def test_an_offset_is_found(seed: int, true_px: float, make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, seed=seed, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, true_px, pose)
    assert estimate.sigma_px < 0.05
    assert abs(estimate.offset_px - true_px) < min(3.0 * estimate.sigma_px, 0.06)


@pytest.mark.parametrize('seed', [0, 1, 2, 3])
def test_a_right_rig_stays_right(seed: int, make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, seed=seed, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, 0.0, pose)
    assert abs(estimate.offset_px) < 2.0 * estimate.sigma_px
    assert estimate.sigma_px < 0.05


def test_a_wrong_scale_of_the_poses_is_not_taken_for_an_offset(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(400, seed=5, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, 0.2, pose, scale=1.02)
    assert estimate.offset_px == pytest.approx(0.2, abs=0.07)


def test_depths_of_the_whole_window_are_corrected(make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, seed=6, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    window = drive(scene, estimate, 0.2, pose)
    for keyframe in window.keyframes:
        _, depth = scene.plane(keyframe.world_from_body)
        error_px = float((keyframe.observation.inverse_depth - 1.0 / depth).mean()) / PER_PX
        assert abs(error_px) < 0.1  # 0.2 px at first; the mean of 400 is good to 0.02


def test_a_rig_with_one_camera_ahead_is_left_alone(make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, (0.1, 0.0, 0.06))
    drive(scene, estimate, 0.2, pose)
    assert (estimate.offset, estimate.sigma_px) == (0.0, pytest.approx(START_SIGMA_PX))


def test_too_few_points_say_nothing(make_scene: Make, pose: Make) -> None:
    scene = make_scene(8)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, 0.2, pose)
    assert (estimate.offset, estimate.sigma_px) == (0.0, pytest.approx(START_SIGMA_PX))


def test_the_estimate_goes_no_farther_than_a_pixel_and_is_forgotten(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(400, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, 1.6, pose)
    assert 0.5 < abs(estimate.offset_px) <= LARGEST_PX + 1e-9
    estimate.reset()
    assert (estimate.offset, estimate.sigma_px) == (0.0, pytest.approx(START_SIGMA_PX))
