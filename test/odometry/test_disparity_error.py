# SPDX-License-Identifier: Apache-2.0
"""Motion tells the disparity error of a rig from the depths of the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_error import (
    LARGEST_PX,
    LEAST_SIGMA_PX,
    START_SIGMA_PX,
    DisparityError,
)
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.local_mapping import LocalMapper
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.window import Keyframe, Window
from mv_matcher_ros.worlds.presets import street_drive

Make = Callable[..., Any]
SETTINGS = read_settings({'sensor': 'stereo', 'detector.name': 'sift'})
BASELINE_M = 0.12
NOISE_PX = 0.3
PER_PX = 1.0 / (400.0 * BASELINE_M)  # inverse depth of one pixel of disparity


def rig_of(scene: Any, second_at: tuple[float, float, float]) -> Rig:
    pose = np.eye(4)
    pose[:3, 3] = second_at
    return Rig((scene.camera, replace(scene.camera, body_from_camera=pose)))


def estimator(
    scene: Any, second_at: tuple[float, float, float], told_px: Sequence[float] = ()
) -> DisparityError:
    matcher = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
    maker = LandmarkMaker(SETTINGS, SeeingCameras([scene.camera]), matcher)
    return DisparityError(rig_of(scene, second_at), maker, told_px=told_px)


def drive(
    scene: Any,
    estimate: DisparityError,
    true_px: Sequence[float],
    pose: Make,
    scale: float = 1.0,
    learned: list[bool] | None = None,
) -> Window:
    """Twelve keyframes, 15 cm apart: poses known up to `scale`, disparities off by a field."""
    window = Window()
    rows = window.landmarks.add(scene.points, scene.descriptors)
    true = replace(estimate.field, parts=torch.tensor(true_px).double() * PER_PX)
    for number in range(12):
        at = pose(0.15 * number, 0.03 * number, 0.05 * number, 0, 0.01 * number, 0)
        seen = scene.observe(at, number, noise_px=NOISE_PX, depth_sigma=1.4 * NOISE_PX * PER_PX)
        error = true.at(seen.plane_xy) - estimate.field.at(seen.plane_xy)
        known = at.clone()
        known[:3, 3] *= scale
        window.keyframes.append(
            Keyframe(
                replace(seen, inverse_depth=seen.inverse_depth + error),
                known,
                rows.clone(),
                torch.ones(len(rows)).double(),
            )
        )
        changed = estimate.update(window)
        if learned is not None:
            learned.append(changed)
    return window


ACROSS = (BASELINE_M, 0.0, 0.0)
NONE = (0.0, 0.0, 0.0)


def knows_nothing(estimate: DisparityError) -> bool:
    """Whether it is as at first."""
    return not estimate.parts_px.any() and torch.allclose(
        estimate.sigma_px, torch.full((3,), START_SIGMA_PX, dtype=torch.float64)
    )


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('true_px', [(0.3, 0.0, 0.0), (-0.3, 0.2, 0.0), (0.2, 0.0, 0.6)])
def test_an_error_is_found(
    seed: int, true_px: tuple[float, ...], make_scene: Make, pose: Make
) -> None:
    scene = make_scene(400, seed=seed, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    learned: list[bool] = []
    drive(scene, estimate, true_px, pose, learned=learned)
    off = (estimate.parts_px - torch.tensor(true_px)).abs()
    assert (estimate.sigma_px[:2] < 0.1).all()
    assert (off < 3.0 * estimate.sigma_px).all()
    assert sum(learned) == 1  # then it follows


@pytest.mark.parametrize('seed', [0, 1, 2, 3])
def test_a_right_rig_stays_as_it_is(seed: int, make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, seed=seed, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    learned: list[bool] = []
    window = drive(scene, estimate, NONE, pose, learned=learned)
    assert not estimate.parts_px.any()
    assert not any(learned)
    assert float(estimate.sigma_px[0]) < 0.05
    assert len(window.keyframes) == 12


def test_a_wrong_scale_of_the_poses_is_not_taken_for_an_error(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(400, seed=5, nearest=1.5, farthest=20.0)
    right, wrong = estimator(scene, ACROSS), estimator(scene, ACROSS)
    drive(scene, right, NONE, pose, scale=1.02)
    assert not right.parts_px.any()
    drive(scene, wrong, (0.3, 0.0, 0.0), pose, scale=1.02)
    assert float(wrong.parts_px[0]) == pytest.approx(0.3, abs=0.1)


def test_depths_of_the_whole_window_are_corrected(make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, seed=6, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    window = drive(scene, estimate, (0.4, 0.0, 0.0), pose)
    for keyframe in window.keyframes:
        _, depth = scene.plane(keyframe.world_from_body)
        error_px = float((keyframe.observation.inverse_depth - 1.0 / depth).mean()) / PER_PX
        assert abs(error_px) < 0.1  # 0.4 px at first; the mean of 400 is good to 0.02


def test_the_field_of_a_rig_that_stands_on_its_side(make_scene: Make) -> None:
    """Along the baseline, whichever way that is in the image."""
    scene = make_scene(10)
    field = replace(
        estimator(scene, (0.0, BASELINE_M, 0.0)).field,
        parts=torch.tensor([1.0, 10.0, 100.0]).double(),
    )
    assert field.along.tolist() == [0.0, 1.0]
    at = field.at(torch.tensor([[0.2, 0.5]]).double())
    assert float(at) == pytest.approx(1.0 + 0.25 + 10.0 * 0.5 - 100.0 * 0.2)


def test_a_rig_with_one_camera_ahead_is_left_alone(make_scene: Make, pose: Make) -> None:
    scene = make_scene(400, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, (0.1, 0.0, 0.06))
    drive(scene, estimate, (0.4, 0.0, 0.0), pose)
    assert knows_nothing(estimate)


def test_what_was_told_is_taken_out_from_the_start_and_learned_on(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(400, seed=7, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS, told_px=(0.4, 0.0, 0.0))
    assert estimate.parts_px.tolist() == pytest.approx([0.4, 0.0, 0.0])
    assert not estimate.settled
    learned: list[bool] = []
    drive(scene, estimate, (0.3, 0.0, 0.0), pose, learned=learned)
    assert float(estimate.parts_px[0]) == pytest.approx(0.3, abs=0.07)
    assert not any(learned)  # it is no news
    estimate.reset()
    assert estimate.parts_px.tolist() == pytest.approx([0.4, 0.0, 0.0])
    # A pair with nothing to say of, beside one that has.
    assert knows_nothing(estimator(scene, ACROSS, told_px=NONE))


def test_an_error_has_settled_when_it_is_known_well(make_scene: Make, pose: Make) -> None:
    scene = make_scene(80, seed=8, nearest=3.0, farthest=20.0)
    wrong, right = estimator(scene, ACROSS), estimator(scene, ACROSS)
    for _ in range(12):
        drive(scene, wrong, (0.4, 0.0, 0.0), pose)
        drive(scene, right, NONE, pose)
        sigma_px = float(wrong.sigma_px[0])
        assert wrong.settled == (sigma_px <= LEAST_SIGMA_PX)
    assert wrong.settled
    assert right.settled  # and right: there is nothing more to come
    assert not right.in_words


def test_the_errors_told_are_those_of_the_rig(make_scene: Make) -> None:
    rig = rig_of(make_scene(10), ACROSS)
    for text, pairs in (('0.1,0,0', 1), ('0.1,0,0,0,0,0.2', 2)):
        settings = read_settings({'sensor': 'stereo', 'stereo.disparity_error_px': text})
        assert len(settings.stereo.known_errors_px) == pairs
        if pairs == 1:
            correction = OdometryEngine(settings, rig).rig_correction
            assert correction is not None
            assert correction.disparity_error_px == '0.100,0.000,0.000'
        else:
            with pytest.raises(SettingsError, match='numbers for 2 pairs, the rig has 1'):
                OdometryEngine(settings, rig)
    for wrong in ('0.1', '0.1,0', 'a,b,c', '2,0,0', 'nan,0,0'):
        with pytest.raises(SettingsError, match='three numbers for each pair'):
            read_settings({'stereo.disparity_error_px': wrong})


def test_a_rig_has_settled_when_every_pair_has(make_scene: Make) -> None:
    """One that is right, or not known yet, is not left as it is because of another."""
    one = rig_of(make_scene(10), ACROSS)
    back = [replace(camera, name=f'{camera.name} back') for camera in one.cameras]
    rig = replace(one, cameras=(*one.cameras, *back))
    told = {'stereo.pairs': 2, 'stereo.disparity_error_px': '0.1,0,0,0,0,0'}
    mapper = OdometryEngine(read_settings({'sensor': 'stereo', **told}), rig)._mapper
    settled = []
    for error in mapper._stereo._errors:
        error._information *= 1e4
        settled.append(mapper.rig_correction.settled)
    assert settled == [False, True]


def test_too_few_points_say_nothing(make_scene: Make, pose: Make) -> None:
    scene = make_scene(8)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, (0.4, 0.0, 0.0), pose)
    assert knows_nothing(estimate)


def test_the_estimate_goes_no_farther_than_a_pixel_and_is_forgotten(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(400, nearest=1.5, farthest=20.0)
    estimate = estimator(scene, ACROSS)
    drive(scene, estimate, (1.6, 0.0, 0.0), pose)
    assert 0.5 < float(estimate.parts_px.abs().max()) <= LARGEST_PX + 1e-9
    estimate.reset()
    assert knows_nothing(estimate)


@pytest.mark.slow
def test_a_pair_that_is_turned_is_corrected_without_a_jump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third of a pixel of yaw: every way is told wrong, until motion is sure of it."""
    drive_by = street_drive('stereo', 70, (320, 240))
    first, second = drive_by.rig.cameras
    yaw = float(np.arctan(0.35 / first.focal_px))
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    told = replace(second, body_from_camera=second.body_from_camera @ turn)
    engine = OdometryEngine(SETTINGS, replace(drive_by.rig, cameras=(first, told)))
    moved: list[tuple[float, float]] = []
    rescale = LocalMapper._rescale

    def watched(mapper: LocalMapper, window: Window) -> None:
        before = window.poses()
        rescale(mapper, window)
        way = (window.poses() - before)[:, :3, 3].norm(dim=1)
        moved.append((float(way[0]), float(way[-1])))

    monkeypatch.setattr(LocalMapper, '_rescale', watched)
    records: list[KeyframeRecord] = []
    engine.report_keyframes(records.append)
    results = [engine.process(frame) for frame in drive_by]
    engine.finish()

    assert len(moved) == 1
    assert moved[0][0] > 0.05  # the oldest keyframe of the window
    assert moved[0][1] < 0.001
    fields = engine._mapper.disparity_fields
    assert fields[0].parts.any()
    assert all(
        torch.equal(a.parts, b.parts) for a, b in zip(engine._depth.fields, fields, strict=True)
    )
    said = [r.message for r in results if 'the stereo calibration is off' in r.message]
    assert len(said) == 1
    assert engine.rig_correction is not None
    assert 'yaw' in engine.rig_correction.in_words
    read_settings({'stereo.disparity_error_px': engine.rig_correction.disparity_error_px})

    assert drive_by.truth is not None
    place = {int(stamp): i for i, stamp in enumerate(drive_by.truth.stamps_ns)}
    true = drive_by.truth.world_from_body
    off = []
    for a, b in pairwise(records):
        step = se3.inverse(a.segment_from_body) @ b.segment_from_body
        way = np.linalg.inv(true[place[a.stamp_ns]]) @ true[place[b.stamp_ns]]
        off.append(float(step[:3, 3].norm()) / np.linalg.norm(way[:3, 3]) - 1.0)
    # Up to the new scale all steps are too long, from there on none is; the one across, which
    # has seen both, is not the longest of all (twice as long were the change a part of it).
    wrong = [i for i, part in enumerate(off) if abs(part) > 0.03]
    assert wrong == list(range(len(wrong)))
    assert off[len(wrong) - 1] <= off[len(wrong) - 2]
    assert abs(np.mean(off[len(wrong) :])) < 0.01
