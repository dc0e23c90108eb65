# SPDX-License-Identifier: Apache-2.0
"""Blur: how it is measured, what it does to features, and that poses say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mv_matcher_ros.config import Settings, read_settings
from mv_matcher_ros.datatypes import Estimate, Frame, Status
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.odometry.blur import (
    BLURRED_PX,
    FAR_PX,
    SHARP_PX,
    detected_noise,
    edge_width_px,
    followed_noise,
)
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.worlds.presets import room_loop

Image = NDArray[np.uint8]


def bricks(size: int = 48) -> Image:
    """Blocks of random brightness with sharp edges."""
    blocks = np.random.default_rng(0).integers(20, 230, (400 // size + 1, 500 // size + 1))
    return np.kron(blocks, np.ones((size, size)))[:400, :500].astype(np.uint8)


def smeared(image: Image, length: int) -> Image:
    return np.asarray(cv2.blur(image, (length, 1)), np.uint8)


@pytest.mark.parametrize('turned', [False, True])
def test_edges_are_as_wide_as_the_smear(turned: bool) -> None:
    widths = []
    for length in (1, 5, 9, 15, 23):
        image = smeared(bricks(), length)
        widths.append(edge_width_px(np.ascontiguousarray(image.T) if turned else image))
    assert widths[0] < SHARP_PX
    assert widths == sorted(widths)
    for length, width in zip((9, 15, 23), widths[2:], strict=True):
        assert width == pytest.approx(length, rel=0.25)


@pytest.mark.parametrize(
    'change',
    [
        lambda image: image // 3,
        lambda image: image // 2 + 100,
        lambda image: np.clip(image + np.random.default_rng(1).normal(0, 2, image.shape), 0, 255),
        lambda image: image[::-1, ::-1],
    ],
    ids=['dark', 'little contrast', 'noise', 'upside down'],
)
@pytest.mark.parametrize('length', [1, 15])
def test_light_noise_and_side_hardly_matter(change: Callable[[Image], Image], length: int) -> None:
    image = smeared(bricks(), length)
    changed = edge_width_px(np.ascontiguousarray(change(image), np.uint8))
    assert changed == pytest.approx(edge_width_px(image), rel=0.15)


def test_what_has_no_edges_has_no_blur() -> None:
    assert edge_width_px(np.full((100, 100), 90, np.uint8)) == 0.0
    assert edge_width_px(np.zeros((FAR_PX, 100), np.uint8)) == 0.0
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8), (100, 200))
    assert edge_width_px(ramp) == pytest.approx(
        FAR_PX
    )  # nothing but one edge, wider than can be told


def test_sharp_images_keep_their_noise_to_the_last_bit() -> None:
    assert detected_noise(SHARP_PX) == followed_noise(SHARP_PX) == 1.0
    assert detected_noise(BLURRED_PX) > 2.0 > followed_noise(BLURRED_PX) > 1.0


@pytest.fixture(scope='module')
def pictures() -> list[Image]:
    return [frame.views[0].image for frame in room_loop('mono', 40, (640, 480))][::10]


@pytest.mark.slow
@pytest.mark.parametrize('length', [9, 15, 32])
def test_features_err_as_far_as_is_said(pictures: list[Image], length: int) -> None:
    """Found again in the same image, blurred about its middle: they should be where they were."""
    models = Models.of(read_settings({}))
    errors = []
    for image in pictures:
        blurred = smeared(image, length)
        sharp, found = (models.detector.detect(each, None) for each in (image, blurred))
        pairs, _ = models.nearest.match_near(
            (sharp.keypoints_xy.double(), sharp.descriptors),
            (found.keypoints_xy.double(), found.descriptors),
            16.0,
        )
        moved = (found.keypoints_xy[pairs[:, 1]] - sharp.keypoints_xy[pairs[:, 0]])[:, 0]
        said = found.sigma_px[pairs[:, 1]] * detected_noise(edge_width_px(blurred))
        errors.append((moved / said).abs())
    typical = float(torch.cat(errors).quantile(0.68))
    assert 0.5 < typical < 2.5  # fine grain of what is seen makes a short smear look shorter


def run(settings: Settings, blur: range, length: int) -> tuple[list[Estimate], list[float]]:
    """Estimates of a walk with blurred frames, and how far each is off, in metres."""
    source = room_loop('stereo', 60, (320, 240), rate_hz=15.0, speed_m_s=0.5)
    engine = OdometryEngine(settings, source.rig)
    estimates = []
    for number, frame in enumerate(source):
        estimates.append(engine.process(blurred(frame, length) if number in blur else frame))
    truth = source.truth.world_from_body
    first = np.linalg.inv(truth[0])
    errors = []
    for estimate, pose in zip(estimates, truth, strict=True):
        assert estimate.odom_from_body is not None
        errors.append(float(np.linalg.norm((first @ pose - estimate.odom_from_body)[:3, 3])))
    return estimates, errors


def blurred(frame: Frame, length: int) -> Frame:
    views = tuple(replace(view, image=smeared(view.image, length)) for view in frame.views)
    return replace(frame, views=views)


@pytest.mark.slow
def test_poses_of_blurred_images_are_degraded_and_say_how_far_they_err() -> None:
    settings = read_settings({'sensor': 'stereo', 'detector.max_keypoints': 500})
    estimates, errors = run(settings, range(25, 40), 16)
    for number, estimate in enumerate(estimates):
        if 25 <= number < 40:
            assert estimate.status is Status.DEGRADED
            assert 'pixels wide' in estimate.message
        elif number > 0:
            assert estimate.status is Status.TRACKING, estimate.message
    sharp, after = estimates[24], estimates[-1]
    assert sharp.covariance is not None
    assert after.covariance is not None
    grown = np.linalg.eigvalsh(after.covariance[:3, :3])[-1] ** 0.5
    assert errors[-1] < 3.0 * grown
    clear, _ = run(settings, range(0), 16)
    assert clear[-1].covariance is not None
    assert grown > 1.5 * np.linalg.eigvalsh(clear[-1].covariance[:3, :3])[-1] ** 0.5
