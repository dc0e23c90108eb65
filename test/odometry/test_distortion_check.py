# SPDX-License-Identifier: Apache-2.0
"""Radial distortion that a calibration has left is found, where there is some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import DistortionCheckSettings, Settings
from mv_matcher_ros.datatypes import Camera, Frame
from mv_matcher_ros.geometry.camera import camera_normalise, camera_project
from mv_matcher_ros.odometry.distortion_check import (
    Distortion,
    DistortionCheck,
    corner_px,
    corrected,
)
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.worlds.presets import room_loop

CAMERA = Camera(640, 480, (500.0, 500.0, 310.0, 250.0))


def grid() -> torch.Tensor:
    x, y = np.meshgrid(np.linspace(0, 639, 20), np.linspace(0, 479, 16))
    return torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1))


@pytest.mark.parametrize(
    ('model', 'distortion'),
    [
        ('pinhole', ()),
        ('radtan', (0.05, -0.02, 0.001, -0.002, 0.0)),
        ('rational', (0.05, -0.02, 0.001, -0.002, 0.0, 0.02, 0.0, 0.0)),
    ],
)
@pytest.mark.parametrize('stretch', [-0.02, 0.03])
def test_the_corrected_camera_stretches_rays(
    model: str, distortion: tuple[float, ...], stretch: float
) -> None:
    camera = replace(CAMERA, model=model, distortion=distortion)
    before, _ = camera_normalise(camera, grid())
    after, valid = camera_normalise(corrected(camera, Distortion(stretch, 0.001, 3, 1.0)), grid())
    assert valid.all()
    wanted = before * (1 + stretch * before.square().sum(1, keepdim=True))
    assert float((after - wanted).norm(dim=1).max()) < 2e-4
    assert float((before - wanted).norm(dim=1).max()) > 5e-3


def test_the_corner_is_that_of_the_image() -> None:
    there = torch.tensor([[639.0, 0.0]], dtype=torch.float64)
    ray, _ = camera_normalise(CAMERA, there)
    moved = ray * (1 + 1e-4 * ray.square().sum())
    ends, _ = camera_project(CAMERA, torch.cat([moved, torch.ones(1, 1)], 1).double())
    assert float((ends - there).norm()) == pytest.approx(1e-4 * corner_px(CAMERA), rel=1e-3)


@pytest.fixture(scope='module')
def flight() -> tuple[Camera, list[Frame]]:
    source = room_loop('mono', 200, (320, 240))
    return source.rig.cameras[0], list(source)


def checked(frames: list[Frame], camera: Camera) -> Iterator[DistortionCheck]:
    """The check after every frame of a flight."""
    settings = Settings.model_validate({
        'detector': {'max_keypoints': 400}, 'keyframes': {'parallax_px': 15.0},
    })  # fmt: skip
    rig = replace(room_loop('mono', 2, (320, 240)).rig, cameras=(camera,))
    check = DistortionCheck(DistortionCheckSettings(keyframes=8, sure=3.0), camera)
    engine = OdometryEngine(settings, rig)
    engine.report_keyframes(check.take)
    for frame in frames:
        engine.process(frame)
        yield check


@pytest.mark.slow
@pytest.mark.parametrize('left', [-0.04, 0.04])
def test_what_is_left_is_found(flight: tuple[Camera, list[Frame]], left: float) -> None:
    """The calibration claims a distortion that the images do not have."""
    true, frames = flight
    said = corrected(true, Distortion(-left, 0.001, 3, 1.0))
    found = next(check.sure for check in checked(frames, said) if check.sure)
    assert found.stretch == pytest.approx(left, abs=0.012)
    assert found.groups >= 3


@pytest.mark.slow
def test_nothing_is_found_where_nothing_is_left(flight: tuple[Camera, list[Frame]]) -> None:
    true, frames = flight
    *_, check = checked(frames, true)
    assert check.sure is None
    assert check.found is not None
    assert check.found.groups >= 3
    assert check.found.sigma < 0.01
    assert abs(check.found.stretch) < 0.01


class Said(DistortionCheck):
    """Told what the groups say."""

    def __init__(self, said: list[tuple[float, float]], camera: Camera = CAMERA) -> None:
        super().__init__(DistortionCheckSettings(), camera)
        self._said = said


def test_groups_that_differ_are_less_sure() -> None:
    alike = Said([(0.02, 1e-6), (0.021, 1e-6), (0.019, 1e-6)])
    apart = Said([(0.05, 1e-6), (-0.01, 1e-6), (0.02, 1e-6)])
    assert alike.sure is not None
    assert alike.sure.stretch == pytest.approx(0.02, abs=1e-4)
    assert apart.found is not None
    assert apart.found.stretch == pytest.approx(0.02, abs=1e-3)
    assert apart.found.sigma > 10 * alike.sure.sigma
    assert apart.sure is None


def test_two_groups_are_too_few_and_a_tenth_of_a_pixel_does_not_matter() -> None:
    assert Said([(0.02, 1e-6), (0.02, 1e-6)]).sure is None
    assert Said([(1e-4, 1e-12)] * 3).sure is None
    assert Said([]).found is None
    assert Said([(0.02, 1e-6)] * 3, replace(CAMERA, model='equidistant')).sure is None
