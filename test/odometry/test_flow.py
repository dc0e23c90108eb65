# SPDX-License-Identifier: Apache-2.0
"""Landmarks followed through images give the pose; what cannot be followed back is dropped."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Camera, Frame, Rig, View
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.flow import Carried, FlowTracker, Target, in_mask, there_and_back
from mv_matcher_ros.odometry.observation import Observer
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.tracking import Tracker
from mv_matcher_ros.odometry.window import Landmarks
from mv_matcher_ros.worlds import presets
from mv_matcher_ros.worlds.effects import PERFECT

DEPTH = 2.0
FOCAL = 300.0
CAMERA = Camera(320, 240, (FOCAL, FOCAL, 159.5, 119.5))


def wall() -> NDArray[np.uint8]:
    """A blurred random texture, larger than the image."""
    noise = np.random.default_rng(3).integers(0, 256, (480, 640)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)


def image_at(x_m: float, y_m: float = 0.0) -> NDArray[np.uint8]:
    """The wall, DEPTH ahead, seen by a camera that moved so far to the right and down."""
    shift = np.array(
        [[1.0, 0.0, 160 + x_m * FOCAL / DEPTH], [0.0, 1.0, 120 + y_m * FOCAL / DEPTH]]
    )
    return cv2.warpAffine(wall(), shift, (320, 240), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def pose(x_m: float, y_m: float = 0.0) -> Tensor:
    moved = torch.eye(4, dtype=torch.float64)
    moved[0, 3], moved[1, 3] = x_m, y_m
    return moved


class Setup:
    def __init__(self, pixels: int = 0) -> None:
        settings = read_settings({'detector.name': 'sift', 'detector.working_pixels': pixels})
        detector = ClassicalDetector(settings.detector)
        self.observer = Observer(settings, Rig((CAMERA,)), detector)
        matcher, cameras = (
            NearestNeighbourMatcher(settings.matching, 'sift'),
            SeeingCameras([CAMERA]),
        )
        self.flow = FlowTracker(cameras, self.observer, Tracker(settings, cameras, matcher))
        seen = self.observer.observe(frame_at(0.0, 0))
        landmarks = Landmarks()
        every = landmarks.add(homogeneous(seen.plane_xy) * DEPTH, seen.features.descriptors)
        every[::4] = -1  # a quarter sees no landmark
        self.target = Target.of(seen, every, landmarks, pose(0.0))
        self.flow.start(self.target, frame_at(0.0, 0))


def frame_at(x_m: float, index: int, y_m: float = 0.0) -> Frame:
    return Frame(index, (View(image_at(x_m, y_m)),), index)


@pytest.mark.parametrize('pixels', [0, 200 * 150])
def test_the_pose_follows_a_moving_camera_through_many_images(pixels: int) -> None:
    setup = Setup(pixels)
    for index in range(1, 15):
        x, y = 0.015 * index, 0.006 * index
        followed = setup.flow.track(frame_at(x, index, y), pose(x - 0.01, y))
        assert followed is not None
        error = se3.log(se3.inverse(pose(x, y)) @ followed.tracked.world_from_body)
        assert float(error[:3].norm()) < 0.004
        assert float(error[3:].norm()) < 0.002
    moved_px = followed.moved() * FOCAL
    assert moved_px == pytest.approx(np.hypot(x, y) * FOCAL / DEPTH, abs=0.5)
    # Features without landmark are followed too, and only landmarks take part in the pose.
    assert not setup.target.landmarks.alive[followed.origin].all()
    assert setup.target.landmarks.alive[followed.tracked.landmark].all()


def test_a_guess_far_off_is_no_worse_than_no_guess() -> None:
    followed = Setup().flow.track(frame_at(0.02, 1), pose(0.08))
    assert followed is not None
    assert float(followed.tracked.world_from_body[0, 3]) == pytest.approx(0.02, abs=0.003)


def test_another_place_is_not_followed_and_ends_it() -> None:
    flow = Setup().flow
    other = np.random.default_rng(9).integers(0, 256, (240, 320)).astype(np.uint8)
    assert flow.track(Frame(1, (View(other),), 1), pose(0.0)) is None
    assert flow.track(frame_at(0.0, 2), pose(0.0)) is None


def later_keyframe(setup: Setup) -> tuple[Target, Carried]:
    """The third image as a keyframe, and which of its features were followed into it."""
    for index in (1, 2, 3):
        followed = setup.flow.track(frame_at(0.015 * index, index), pose(0.015 * index))
    assert followed is not None
    seen = setup.observer.observe(frame_at(0.045, 3))
    landmarks = Landmarks()
    world = homogeneous(seen.plane_xy) * DEPTH + torch.tensor([0.045, 0.0, 0.0])
    every = landmarks.add(world, seen.features.descriptors)
    there = followed.observation.features.keypoints_xy
    here = seen.features.keypoints_xy
    near = torch.cdist(here, there).min(dim=1)
    feature = (near.values < 1.0).nonzero()[:, 0]
    row = near.indices[feature]
    carried = Carried(0, followed.origin[row], feature, here[feature] - there[row])
    return Target.of(seen, every, landmarks, pose(0.045)), carried


@pytest.mark.parametrize('pixels', [0, 200 * 150])
def test_a_keyframe_is_followed_from_the_last_image_on(pixels: int) -> None:
    setup = Setup(pixels)
    target, carried = later_keyframe(setup)
    for index in range(4, 12):
        assert setup.flow.track(frame_at(0.015 * index, index), pose(0.015 * index))
    # Its own image is of no use: only what was followed all the while is left, and is exact.
    nothing = Frame(3, (View(np.zeros((240, 320), np.uint8)),), 3)
    setup.flow.hand_on(target, nothing, carried, pose(0.165))
    followed = setup.flow.track(frame_at(0.18, 12), pose(0.175))
    assert followed is not None
    assert followed.target is target
    assert set(followed.origin.tolist()) <= set(carried.feature.tolist())
    assert followed.tracked.inliers > 0.5 * len(carried.feature)
    error = se3.log(se3.inverse(pose(0.18)) @ followed.tracked.world_from_body)
    assert float(error[:3].norm()) < 0.004


def test_features_of_a_keyframe_that_are_new_are_sought_in_the_last_image() -> None:
    setup = Setup()
    target, carried = later_keyframe(setup)
    for index in range(4, 8):
        assert setup.flow.track(frame_at(0.015 * index, index), pose(0.015 * index))
    few = replace(carried, **{
        name: getattr(carried, name)[:5] for name in ('origin', 'feature', 'offset_xy')
    })  # fmt: skip
    setup.flow.hand_on(target, frame_at(0.045, 3), few, pose(0.105))
    followed = setup.flow.track(frame_at(0.12, 8), pose(0.115))
    assert followed is not None
    assert followed.tracked.inliers > 20 * 5
    error = se3.log(se3.inverse(pose(0.12)) @ followed.tracked.world_from_body)
    assert float(error[:3].norm()) < 0.004


def test_a_keyframe_is_followed_from_its_own_image_where_nothing_else_is() -> None:
    setup = Setup()
    target, carried = later_keyframe(setup)
    setup.flow.reset()
    setup.flow.hand_on(target, frame_at(0.045, 3), carried, pose(0.045))
    followed = setup.flow.track(frame_at(0.06, 4), pose(0.06))
    assert followed is not None
    assert followed.tracked.inliers > 100


def test_better_landmarks_do_not_interrupt_what_is_followed() -> None:
    setup = Setup()
    assert setup.flow.track(frame_at(0.015, 1), pose(0.015))
    shift = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    moved = replace(setup.target.landmarks, position=setup.target.landmarks.position + shift)
    elsewhere = pose(0.0)
    elsewhere[:3, 3] += shift
    assert setup.flow.renew(replace(setup.target, landmarks=moved, world_from_body=elsewhere))
    guess = pose(0.03)
    guess[:3, 3] += shift
    followed = setup.flow.track(frame_at(0.03, 2), guess)
    assert followed is not None
    assert float((followed.tracked.world_from_body - guess).norm()) < 0.004
    another = replace(setup.target, observation=replace(setup.target.observation, index=7))
    assert not setup.flow.renew(another)


def test_nothing_to_follow_is_said_by_none() -> None:
    flow = Setup().flow
    flow.reset()
    assert flow.track(frame_at(0.0, 1), pose(0.0)) is None


def test_a_snapshot_does_not_change_with_the_window() -> None:
    landmarks = Landmarks()
    rows = landmarks.add(torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 128))
    seen = Setup().target.observation
    sees = torch.full((len(seen),), -1)
    sees[:2] = rows
    target = Target.of(seen, sees, landmarks, pose(0.0))
    landmarks.position.mul_(5.0)
    landmarks.alive[:] = False
    assert torch.equal(target.landmarks.position[:2], torch.ones(2, 3, dtype=torch.float64))
    assert target.landmarks.alive.sum() == 2
    nothing = Target.of(seen, torch.full((len(seen),), -1), Landmarks(), pose(0.0))
    assert not nothing.landmarks.alive.any()


def test_flat_patches_do_not_come_back() -> None:
    flat = np.full((100, 100), 120, np.uint8)
    xy = np.array([[50.0, 50.0]], np.float32)
    assert not there_and_back(flat, flat, xy, xy + 6.0)[1].any()


def test_no_points_are_no_error() -> None:
    image = image_at(0.0)
    found, good = there_and_back(image, image, np.zeros((0, 2), np.float32), np.zeros((0, 2)))
    assert found.shape == (0, 2)
    assert good.shape == (0,)


def test_a_way_out_of_the_image_is_not_trusted() -> None:
    image = image_at(0.0)
    xy = np.array([[10.0, 120.0], [200.0, 120.0]], np.float32)
    moved = image_at(0.12)  # everything moves 18 px to the left
    _, good = there_and_back(image, moved, xy, xy - np.float32([18.0, 0.0]))
    assert good.tolist() == [False, True]


def test_points_that_move_behind_a_mask_are_followed_no_longer() -> None:
    mask = np.zeros((48, 64), np.bool_)
    mask[:, :32] = True
    xy = np.array([[10.0, 10.0], [31.4, 5.0], [31.6, 5.0], [-0.6, 3.0], [10.0, 48.0]], np.float32)
    assert in_mask(mask, xy).tolist() == [True, True, False, False, False]
    assert not in_mask(mask, np.full((1, 2), np.nan, np.float32)).any()


def test_nothing_masked_is_used_in_any_frame() -> None:
    """Also between keyframes: flow knows the mask of each image."""
    source = presets.room_loop('stereo', 12, (320, 240), effects=PERFECT)
    engine = OdometryEngine(read_settings({'sensor': 'stereo'}), source.rig)
    for number, frame in enumerate(source):
        mask = np.ones((240, 320), np.bool_)
        mask[:, 250 - 5 * number :] = False  # something comes closer from the right
        first = replace(frame.views[0], mask=mask)
        estimate = engine.process(replace(frame, views=(first, frame.views[1])))
        if estimate.tracks is not None:
            x = estimate.tracks.keypoints_xy[:, 0]
            assert len(x) > 20
            assert x.max() < 250 - 5 * number
