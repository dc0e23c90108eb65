# SPDX-License-Identifier: Apache-2.0
"""Two cameras that look in opposite directions: every step uses the mount of the one that saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Camera, Features, Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_error import DisparityError
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.standstill import StandstillGate
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

Make = Callable[..., Any]
SETTINGS = read_settings({'sensor': 'stereo', 'detector.name': 'sift', 'stereo.pairs': 2})
MATCHER = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
EACH = 150  # points before each camera


@dataclass(frozen=True)
class Around:
    """Points before and behind a body whose two cameras differ in mount, size and focal length.

    Attributes:
        points: (2 · EACH, 3) in the world: those of the first camera, then those of the second.
        descriptors: (2 · EACH, 128).
        cameras: the two.
        noise: source of it.
    """

    points: Tensor
    descriptors: Tensor
    cameras: SeeingCameras
    noise: torch.Generator

    def observe(
        self, world_from_body: Tensor, noise_px: float = 0.1, depth: bool = False, index: int = 0
    ) -> Observation:
        """Each camera sees its own points, where they are before it."""
        planes, depths, sigmas, rows, whose = [], [], [], [], []
        for number, camera in enumerate(self.cameras.cameras):
            camera_from_world = self.cameras.camera_from_world(world_from_body)[number]
            mine = torch.arange(number * EACH, (number + 1) * EACH)
            local = se3.transform(camera_from_world, self.points[mine])
            ahead = local[:, 2] > 0.2
            local, mine = local[ahead], mine[ahead]
            plane = local[:, :2] / local[:, 2:]
            noise = torch.randn(plane.shape, generator=self.noise, dtype=torch.float64)
            planes.append(plane + noise_px / camera.focal_px * noise)
            depths.append(local[:, 2])
            sigmas.append(torch.full((len(mine),), max(noise_px, 0.1) / camera.focal_px))
            rows.append(mine)
            whose.append(torch.full((len(mine),), number))
        row, plane = torch.cat(rows), torch.cat(planes)
        pixels = torch.full((len(row), 2), 7.0)
        ones = torch.ones(len(row))
        features = Features(pixels, self.descriptors[row], ones, ones, (640, 480))
        known = 1.0 / torch.cat(depths)
        inverse = known if depth else torch.full_like(known, torch.nan)
        sigma = torch.cat(sigmas).double()
        spread = torch.full_like(known, 1e-4)
        return Observation(index, index, features, plane, sigma, inverse, spread, torch.cat(whose))

    def rows(self, observation: Observation) -> Tensor:
        """(N,) which point each feature sees, by its descriptor."""
        return (observation.features.descriptors @ self.descriptors.T).argmax(1)


@pytest.fixture
def around(make_scene: Make, pose: Make) -> Around:
    front, back = make_scene(EACH, seed=1), make_scene(EACH, seed=2)
    # Behind, half a metre off, a little tilted; a smaller image with another focal length.
    mount = pose(0.1, -0.05, -0.5, 0.0, np.pi - 0.2, 0.05)
    second = Camera(480, 360, (310.0, 310.0, 239.5, 179.5), body_from_camera=mount.numpy())
    return Around(
        torch.cat([front.points, se3.transform(mount, back.points)]),
        torch.cat([front.descriptors, back.descriptors]),
        SeeingCameras([front.camera, second]),
        front.random,
    )


def landmarks_of(around: Around) -> Window:
    window = Window()
    window.landmarks.add(around.points, around.descriptors)
    return window


def off(found: Tensor, truth: Tensor) -> float:
    return float(se3.log(se3.inverse(truth) @ found).norm())


def test_the_pose_is_that_of_both_cameras(around: Around, pose: Make) -> None:
    tracker = Tracker(SETTINGS, around.cameras, MATCHER)
    truth, guess = pose(0.3, 0.05, 0.1, 0.02, 0.1, 0.0), pose(0.28, 0.04, 0.1, 0.02, 0.09, 0.0)
    seen = around.observe(truth)
    tracked = tracker.track(landmarks_of(around), seen, guess)
    assert tracked is not None
    assert off(tracked.world_from_body, truth) < 3e-4
    whose = seen.camera[tracked.feature[tracked.inlier]]
    assert (whose == 0).sum() > 0.8 * EACH
    assert (whose == 1).sum() > 0.8 * EACH
    # The second camera alone knows the pose, too: through its own mount.
    behind = tracked.feature >= int((seen.camera == 0).sum())
    alone = tracker.solve_pose(
        landmarks_of(around).landmarks,
        seen,
        tracked.feature[behind],
        tracked.landmark[behind],
        guess,
        '',
    )
    assert alone is not None
    assert off(alone.world_from_body, truth) < 1e-3


def test_features_of_one_camera_are_not_those_of_the_other(around: Around, pose: Make) -> None:
    seen = around.observe(pose(0))
    tracker = Tracker(SETTINGS, around.cameras, MATCHER)
    assert tracker.track(landmarks_of(around), seen, pose(0)) is not None
    swapped = seen.chosen(torch.cat([seen.rows_of(1), seen.rows_of(0)]))
    swapped = replace(swapped, camera=1 - swapped.camera)
    assert tracker.track(landmarks_of(around), swapped, pose(0)) is None


def test_a_robot_that_turned_is_found_by_its_other_camera(around: Around, pose: Make) -> None:
    tracker = Tracker(SETTINGS, around.cameras, MATCHER)
    keyframe = Keyframe.of(around.observe(pose(0)), pose(0))
    keyframe.landmark = around.rows(keyframe.observation)
    window = landmarks_of(around)
    window.keyframes = [keyframe]
    # The second camera now is where the first one was.
    truth = around.cameras.body_from_camera[0] @ around.cameras.camera_from_body[1]
    turned = replace(
        around.observe(pose(0)).chosen(torch.arange(EACH)),
        camera=torch.ones(EACH, dtype=torch.int64),
    )
    found = tracker.relocalise(window, turned, keyframe)
    assert found is not None
    assert off(found.world_from_body, truth) < 3e-3


class TestLandmarks:
    def test_depth_is_along_the_axis_of_the_camera(self, around: Around, pose: Make) -> None:
        maker, at = LandmarkMaker(SETTINGS, around.cameras, MATCHER), pose(0.5, 0.1, 0.2, 0, 0.3)
        window, keyframe = Window(), Keyframe.of(around.observe(at, 0.0, depth=True), at)
        made = maker.from_depth(window, keyframe)
        assert made == len(keyframe.observation) > 1.5 * EACH
        torch.testing.assert_close(
            window.landmarks.position[keyframe.landmark],
            around.points[around.rows(keyframe.observation)],
        )

    def test_parallax_of_each_camera_gives_its_points(self, around: Around, pose: Make) -> None:
        maker, poses = LandmarkMaker(SETTINGS, around.cameras, MATCHER), [pose(0), pose(0.4, 0.1)]
        window = Window()
        window.keyframes = [Keyframe.of(around.observe(at, 0.0, index=i), at)
                            for i, at in enumerate(poses)]  # fmt: skip
        newest = window.keyframes[1]
        assert maker.from_parallax(window, newest) > 1.8 * EACH
        sees = newest.landmark >= 0
        torch.testing.assert_close(
            window.landmarks.position[newest.landmark[sees]],
            around.points[around.rows(newest.observation)[sees]],
        )

    def test_a_landmark_that_goes_over_to_the_other_camera_is_found_there(
        self, around: Around, pose: Make
    ) -> None:
        window = landmarks_of(around)
        turn = around.cameras.body_from_camera[0] @ around.cameras.camera_from_body[1]
        first = around.observe(pose(0)).chosen(torch.arange(EACH))
        turned = replace(first, camera=torch.ones(EACH, dtype=torch.int64))
        window.keyframes = [Keyframe.of(first, pose(0)), Keyframe.of(turned, turn)]
        LandmarkMaker(SETTINGS, around.cameras, MATCHER).complete_tracks(window)
        for keyframe in window.keyframes:
            found = keyframe.landmark >= 0
            assert int(found.sum()) > 0.9 * EACH
            assert torch.equal(keyframe.landmark[found], torch.arange(EACH)[found])


def test_bundle_adjustment_moves_poses_to_where_both_cameras_say(
    around: Around, pose: Make
) -> None:
    window = landmarks_of(around)
    truth = [pose(0), pose(0.3, 0.05, 0.1, 0.0, 0.05), pose(0.6, 0.0, 0.2, 0.0, 0.1)]
    for number, at in enumerate(truth):
        seen = around.observe(at, index=number, depth=True)
        wrong = at if number == 0 else at @ pose(0.01, -0.01, 0.02, 0.003, 0.004, 0.002)
        keyframe = Keyframe.of(seen, wrong)
        keyframe.landmark = around.rows(seen)
        window.keyframes.append(keyframe)
    adjustment = LocalAdjustment(SETTINGS, around.cameras)
    adjustment.anchor(window, hold_scale=False)
    adjustment.refine(window, 15)
    for keyframe, at in zip(window.keyframes, truth, strict=True):
        assert off(keyframe.world_from_body, at) < 5e-4


@pytest.mark.parametrize('points', [0, 2])
def test_a_pose_that_nothing_tells_stays_where_it_is(
    around: Around, pose: Make, points: int
) -> None:
    window = landmarks_of(around)
    for number in range(3):
        at = pose(0.3 * number, 0.0, 0.1 * number)
        seen = around.observe(at, 0.2, index=number)
        keyframe = Keyframe.of(seen, at)
        keyframe.landmark = around.rows(seen)
        window.keyframes.append(keyframe)
    nowhere = window.keyframes[1]
    nowhere.landmark[points:] = -1
    before = nowhere.world_from_body
    adjustment = LocalAdjustment(SETTINGS, around.cameras)
    adjustment.anchor(window, hold_scale=True)
    adjustment.refine(window, 20)
    torch.testing.assert_close(nowhere.world_from_body, before, rtol=0, atol=1e-12)
    assert off(window.keyframes[2].world_from_body, pose(0.6, 0.0, 0.2)) < 5e-3


def test_each_pair_has_a_constant_error_of_its_own(around: Around, pose: Make) -> None:
    """Disparities of the second pair are off by 0.3 px; those of the first are right."""
    cameras = around.cameras
    shift = np.eye(4)
    shift[0, 3] = 0.12
    rig = Rig(
        tuple(
            replace(camera, body_from_camera=camera.body_from_camera @ move)
            for camera in cameras.cameras
            for move in (np.eye(4), shift)
        )
    )
    maker = LandmarkMaker(SETTINGS, cameras, MATCHER)
    errors = [DisparityError(rig.pair(number), maker, number) for number in range(2)]
    per_px = 1.0 / (cameras.cameras[1].focal_px * 0.12)
    window = landmarks_of(around)
    for number in range(12):
        at = pose(0.1 * number, 0.03 * number, 0.05 * number, 0, 0.01 * number, 0)
        seen = around.observe(at, 0.2, depth=True, index=number)
        corrected = [each.field.at(seen.plane_xy) for each in errors]
        true = replace(errors[1].field, parts=torch.tensor([0.3, 0.0, 0.0]).double() * per_px)
        error = torch.where(seen.camera == 1, true.at(seen.plane_xy) - corrected[1], -corrected[0])
        spread = torch.full_like(seen.sigma, 0.3 * per_px)
        seen = replace(seen, inverse_depth=seen.inverse_depth + error, inverse_depth_sigma=spread)
        keyframe = Keyframe.of(seen, at)
        keyframe.landmark = around.rows(seen)
        window.keyframes.append(keyframe)
        for each in errors:
            each.update(window)
    assert not errors[0].parts_px.any()
    assert errors[1].parts_px.tolist() == pytest.approx([0.3, 0.0, 0.0], abs=0.1)


def test_standstill_compares_pixels_within_a_camera(around: Around, pose: Make) -> None:
    """Both cameras see each landmark, at other pixels: nothing moves, and that is known."""
    once = around.observe(pose(0)).chosen(torch.arange(EACH))
    pixels = torch.rand(2 * EACH, 2, generator=around.noise) * 400.0
    twice = once.chosen(torch.arange(EACH).repeat(2))
    twice = replace(
        twice,
        camera=torch.arange(2).repeat_interleave(EACH),
        features=replace(twice.features, keypoints_xy=pixels),
    )
    landmark = torch.arange(EACH).repeat(2)
    gate = StandstillGate(SETTINGS.zero_motion)
    gate.restart(twice, landmark, pose(0))
    every = torch.ones(2 * EACH, dtype=torch.bool)
    information = torch.eye(6, dtype=torch.float64)
    here = Tracked(pose(0), torch.arange(2 * EACH), landmark, every, information, '')
    assert gate.hold(twice, here) is not None


def test_a_rig_with_too_few_cameras_is_refused(around: Around) -> None:
    with pytest.raises(
        SettingsError, match=r'stereo\.pairs is 2, but the rig has 3 cameras: 4 are'
    ):
        SeeingCameras.of(SETTINGS, Rig((around.cameras.cameras[0],) * 3))
