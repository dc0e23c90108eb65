# SPDX-License-Identifier: Apache-2.0
"""Which frames become clips, and why a recording cannot teach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Camera, Frame, Rig, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.adaptation.clips import (
    BLURRED,
    ClipImages,
    Survey,
    blur_effect,
    planned,
    survey,
)
from mv_matcher_ros.training.adaptation.settings import ClipSettings

SIZE = (320, 240)
CAMERA = Camera(*SIZE, (300.0, 300.0, 159.5, 119.5))
RIG = Rig((CAMERA,))
SETTINGS = ClipSettings(fewest=3)
Image = NDArray[np.uint8]


def texture(seed: int, size: int = 1200) -> Image:
    """As much contrast at each scale, like photographs."""
    random, total = np.random.default_rng(seed), np.zeros((size, size), np.float32)
    for cell in (2, 4, 8, 16, 32):
        noise = random.normal(0.0, 1.0, (size // cell, size // cell)).astype(np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) * cell**0.5
    return np.clip(128.0 + 14.0 * total, 0, 255).astype(np.uint8)


def warped(image: Image, homography: NDArray[np.float64]) -> Image:
    return np.asarray(cv2.warpPerspective(image, homography, SIZE), np.uint8)


NEAR, FAR = texture(0), texture(1)


def translating(step: int) -> Image:
    """Two planes at different depths, the nearer below: parallax that no turn explains."""
    move = np.eye(3)
    move[0, 2] = -100.0 - 4.0 * step
    far = np.eye(3)
    far[0, 2] = -100.0 - 1.0 * step
    image = warped(FAR, far)
    image[120:] = warped(NEAR, move)[120:]
    return image


def turning(step: int) -> Image:
    """The same far scene, the camera turning: K R K⁻¹."""
    angle = 0.01 * step
    turn = np.array([
        [np.cos(angle), 0.0, np.sin(angle)], [0.0, 1.0, 0.0], [-np.sin(angle), 0.0, np.cos(angle)]
    ])  # fmt: skip
    shift = np.eye(3)
    shift[:2, 2] = -400.0
    return warped(FAR, CAMERA.matrix @ turn @ np.linalg.inv(CAMERA.matrix) @ shift)


def standing(step: int) -> Image:
    image = translating(0).astype(np.int16)
    noise = np.random.default_rng(step).normal(0.0, 2.0, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def dark(step: int) -> Image:
    return np.full((SIZE[1], SIZE[0]), 3, np.uint8)


def blurred(step: int) -> Image:
    return np.asarray(cv2.blur(translating(step), (41, 1)), np.uint8)


def plain(step: int) -> Image:
    ramp = np.linspace(0, 200, SIZE[0], dtype=np.uint8)
    return np.tile(ramp, (SIZE[1], 1))


def frames(make: Callable[[int], Image], count: int = 90) -> Iterator[Frame]:
    for step in range(count):
        yield Frame(step * 100_000_000, (View(make(step)),), step)


@cache
def surveyed(make: Callable[[int], Image], count: int = 90) -> Survey:
    return survey(frames(make, count), RIG, SETTINGS, 0, 4.0)


def test_a_camera_that_moves_gives_clips_with_parallax() -> None:
    found = surveyed(translating)
    plan = planned('moving', found, SETTINGS, 1)
    assert len(plan.teach) >= SETTINGS.fewest
    assert len(plan.judge) >= 2
    assert {len(clip) for clip in (*plan.teach, *plan.judge)} == {SETTINGS.views}
    moved = [frame.moved_px for frame in found.chosen[1:]]
    assert np.median(moved) >= SETTINGS.parallax_px


def test_what_judges_comes_after_what_teaches() -> None:
    plan = planned('moving', surveyed(translating), SETTINGS, 1)
    assert max(i for clip in plan.teach for i in clip) < min(
        i for clip in plan.judge for i in clip
    )


def test_two_cameras_make_clips_of_fewer_times() -> None:
    plan = planned('moving', surveyed(translating), SETTINGS, 2)
    assert {len(clip) for clip in plan.teach} == {3}


def test_clips_are_spread_when_there_are_many() -> None:
    settings = SETTINGS.model_copy(update={'most': 4})
    everything = planned('moving', surveyed(translating), SETTINGS, 1)
    few = planned('moving', surveyed(translating), settings, 1)
    assert len(few.teach) == 4
    assert few.teach[0] == everything.teach[0]
    assert few.teach[-1] == everything.teach[-1]


@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (standing, 'stands still'),
        (dark, 'covered lens or darkness'),
        (turning, 'turns and does not travel'),
        (blurred, 'are blurred'),
        (plain, 'no texture'),
    ],
)
def test_what_cannot_teach_is_refused_with_the_reason(
    make: Callable[[int], Image], reason: str
) -> None:
    with pytest.raises(SourceError, match=f'recording: cannot teach: .*{reason}'):
        planned('recording', surveyed(make), SETTINGS, 1)


def test_too_short() -> None:
    with pytest.raises(SourceError, match='too short'):
        planned('recording', surveyed(translating, 8), SETTINGS, 1)


def test_no_frame_at_all() -> None:
    with pytest.raises(SourceError, match='cannot teach'):
        planned('recording', Survey(), SETTINGS, 1)


def test_frames_in_the_dark_end_a_chain() -> None:
    found = surveyed(lambda step: dark(step) if step == 45 else translating(step))
    before = {f.chain for f in found.chosen if f.index < 45}
    after = {f.chain for f in found.chosen if f.index > 45}
    assert before
    assert after
    assert not before & after
    plan = planned('moving', found, SETTINGS.model_copy(update={'fewest': 1}), 1)
    assert not any(min(c) < 45 < max(c) for c in (*plan.teach, *plan.judge))


def test_blur_effect_knows_the_worse_direction() -> None:
    image = translating(0)
    sharp = blur_effect(image)
    assert sharp < 0.5
    for kernel in ((31, 1), (1, 31)):
        assert blur_effect(np.asarray(cv2.blur(image, kernel), np.uint8)) > max(sharp, BLURRED)
    assert blur_effect(np.zeros((20, 20), np.uint8)) == 1.0


def test_images_of_a_clip_are_grey_and_of_working_size() -> None:
    colour = np.repeat(translating(0)[..., None], 3, axis=2)
    images = ClipImages(RIG, 1, 160 * 120)
    mask = np.ones((SIZE[1], SIZE[0]), np.bool_)
    images.take(Frame(0, (View(colour, mask=mask),), 7))
    clip = images.clip([7])
    assert clip.images[0].shape == (120, 160)
    assert (clip.cameras[0].width, clip.cameras[0].height) == (160, 120)
    assert clip.masks[0] is mask
