# SPDX-License-Identifier: Apache-2.0
"""Depth measured in the images of a pair, against the true depth of rendered worlds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Array, Frame, Rig, View
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_error import DisparityField
from mv_matcher_ros.odometry.observation import Observation, Observer, depth_at
from mv_matcher_ros.odometry.pair_alignment import MOST_MEASURED, FollowedDepth, PairAlignment
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.stereo import StereoMatcher
from mv_matcher_ros.odometry.window import Landmarks, Window
from mv_matcher_ros.worlds.effects import Effects
from mv_matcher_ros.worlds.presets import make_rig, room_loop, street_drive
from mv_matcher_ros.worlds.recording import SyntheticSource

SETTINGS = read_settings({'sensor': 'stereo', 'detector.name': 'sift'})
SIZE = (480, 360)


def turned(degrees: float, field_of_view_deg: float, size: tuple[int, int]) -> Rig:
    """A rig whose second camera is rolled, has another lens and another image size."""
    pair = make_rig('stereo', SIZE, 0.12)
    angle = np.deg2rad(degrees)
    roll = np.eye(4)
    roll[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    lens = make_rig('stereo', size, 0.12, field_of_view_deg=field_of_view_deg).cameras[1]
    second = replace(lens, body_from_camera=lens.body_from_camera @ roll)
    return replace(pair, cameras=(pair.cameras[0], second))


def recording(source: SyntheticSource, rig: Rig, sensor: str) -> SyntheticSource:
    cameras = rig.cameras if sensor == 'stereo' else rig.cameras[:1]
    return SyntheticSource(
        source.world,
        source.path,
        replace(rig, cameras=tuple(cameras)),
        sensor,  # type: ignore[arg-type]
        source.rate_hz,
        100,
        Effects(depth=None),
    )


class Seen:
    """A frame of a world, what is detected in it, and how far that truly is."""

    def __init__(self, source: SyntheticSource, rig: Rig, index: int = 40) -> None:
        self.rig = rig
        self.frame: Frame = recording(source, rig, 'stereo').frame(index)
        depth = recording(source, rig, 'rgbd').frame(index).views[0].depth
        assert depth is not None
        self.observer = Observer(SETTINGS, rig, ClassicalDetector(SETTINGS.detector))
        observation = self.observer.observe(self.frame)
        true = torch.from_numpy(1.0 / depth_at(depth, observation.features.keypoints_xy.numpy()))
        known = (true > 0.01).nonzero()[:, 0]
        self.observation: Observation = observation.chosen(known)
        self.true: Tensor = true[known]
        self.px = rig.cameras[0].focal_px * rig.baseline_m

    def measured(self, off_px: float = 0.0) -> tuple[Array, Array, float]:
        """Errors and their standard deviations in pixels of disparity; the share measured."""
        inverse, sigma = PairAlignment(SETTINGS, self.rig).inverse_depth(
            self.observer.images_of_pair(self.frame),
            self.observation.plane_xy,
            self.observation.sigma,
            self.true + off_px / self.px,
        )
        there = inverse.isfinite()
        error = (inverse - self.true)[there] * self.px
        return error.numpy(), (sigma[there] * self.px).numpy(), float(there.double().mean())


def spread(values: Array) -> float:
    return float(1.4826 * np.median(np.abs(values)))


@pytest.mark.parametrize('world', [room_loop, street_drive])
@pytest.mark.parametrize('off_px', [-1.0, 1.0])
def test_disparities_are_good_to_a_tenth_of_a_pixel(world: object, off_px: float) -> None:
    source = world('stereo', 100, SIZE)  # type: ignore[operator]
    error, sigma, share = Seen(source, source.rig).measured(off_px)
    assert share > 0.75
    assert spread(error) < 0.12  # keypoints: 0.4 to 0.7
    assert abs(np.median(error)) < 0.02
    assert 0.3 < spread(error / sigma) < 1.0
    assert (np.abs(error / sigma) > 3.0).mean() < 0.06


@pytest.mark.parametrize('degrees', [20.0, 90.0])
def test_cameras_need_not_be_rectified_nor_alike(degrees: float) -> None:
    source = room_loop('stereo', 100, SIZE)
    rig = turned(degrees, 95.0, (520, 400))
    error, sigma, share = Seen(source, rig).measured()
    assert share > 0.5
    assert spread(error) < 0.15
    assert 0.3 < spread(error / sigma) < 1.2


@pytest.fixture(scope='module')
def seen() -> Seen:
    source = room_loop('stereo', 100, SIZE)
    return Seen(source, source.rig)


def followed(seen: Seen) -> tuple[FollowedDepth, Landmarks]:
    """With a landmark for each feature, where it truly is, in a body at the origin."""
    cameras = SeeingCameras.of(SETTINGS, seen.rig)
    plane = seen.observation.plane_xy
    local = torch.cat([plane, torch.ones(len(plane), 1)], 1) / seen.true[:, None]
    pose = cameras.body_from_camera[0]
    landmarks = Window().landmarks
    landmarks.add(
        local @ pose[:3, :3].T + pose[:3, 3], seen.observation.features.descriptors.clone()
    )
    return FollowedDepth(SETTINGS, seen.rig, cameras, seen.observer), landmarks


def test_followed_landmarks_get_a_depth_in_every_frame(seen: Seen) -> None:
    depth, landmarks = followed(seen)
    rows = torch.arange(len(seen.observation))
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 0.02  # the body is not quite where it is thought to be
    found = depth.added(seen.frame, seen.observation, landmarks, rows, rows, pose)
    there = found.inverse_depth.isfinite()
    assert 0.7 * MOST_MEASURED < int(there.sum()) <= MOST_MEASURED
    error = ((found.inverse_depth - seen.true)[there] * seen.px).numpy()
    assert spread(error) < 0.12
    parts = torch.tensor([0.0, 0.0, 0.3 / seen.px]).double()
    depth.fields = [DisparityField(torch.tensor([0.0, -1.0]).double(), parts)]
    less = depth.added(seen.frame, seen.observation, landmarks, rows, rows, pose)
    change = (found.inverse_depth - less.inverse_depth) * seen.px
    assert float((change - 0.3 * seen.observation.plane_xy[:, 0]).nanmedian()) == pytest.approx(
        0.0, abs=0.01
    )
    assert float(change[change.isfinite()].max()) > 0.1


def test_the_error_of_a_pair_is_taken_out_of_matched_features(seen: Seen) -> None:
    matcher = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
    stereo = StereoMatcher(SETTINGS, seen.rig, matcher)
    second = seen.observer.second_view(seen.frame)
    images = seen.observer.images_of_pair(seen.frame)
    parts = torch.tensor([0.5, 0.0, 0.0]).double() / seen.px
    error = DisparityField(torch.tensor([1.0, 0.0]).double(), parts)
    found = stereo.add_depth(seen.observation, *second, images=images)
    less = stereo.add_depth(seen.observation, *second, error=error, images=images)
    change = (found.inverse_depth - less.inverse_depth)[found.inverse_depth.isfinite()]
    at = seen.observation.plane_xy[found.inverse_depth.isfinite()]
    assert torch.allclose(change * seen.px, 0.5 * (1.0 + at[:, 0].square()))
    unaligned = stereo.add_depth(seen.observation, *second)
    off = [((o.inverse_depth - seen.true) * seen.px).numpy() for o in (found, unaligned)]
    assert spread(off[0][np.isfinite(off[0])]) < 0.7 * spread(off[1][np.isfinite(off[1])])


def test_a_covered_second_camera_measures_nothing(seen: Seen) -> None:
    depth, landmarks = followed(seen)
    rows = torch.arange(len(seen.observation))
    black = View(np.zeros_like(seen.frame.views[1].image))
    frame = replace(seen.frame, views=(seen.frame.views[0], black))
    pose = torch.eye(4, dtype=torch.float64)
    found = depth.added(frame, seen.observation, landmarks, rows, rows, pose)
    assert not found.inverse_depth.isfinite().any()
    none = depth.added(frame, seen.observation, landmarks, rows[:0], rows[:0], pose)
    assert not none.inverse_depth.isfinite().any()


def test_without_a_second_camera_nothing_changes(seen: Seen) -> None:
    settings = read_settings({'sensor': 'mono'})
    depth = FollowedDepth(settings, seen.rig, SeeingCameras.of(settings, seen.rig), seen.observer)
    rows = torch.arange(3)
    _, landmarks = followed(seen)
    pose = torch.eye(4, dtype=torch.float64)
    same = depth.added(seen.frame, seen.observation, landmarks, rows, rows, pose)
    assert same is seen.observation
