# SPDX-License-Identifier: Apache-2.0
"""Augmentation: the same from the same seed, nothing displaced, foreign things said."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from mv_matcher_ros.training.data.augmentation import (
    Augmentation,
    augment,
    light_pattern,
    motion_kernel,
)

NOTHING = Augmentation(
    exposure_stops=0.0, gamma=(2.2, 2.2), contrast=0.0, vignetting=0.0, full_well=(1e6, 1e6),
    read_noise=0.0, blur_share=0.0, soft_share=0.0, jpeg_share=0.0, light_share=0.0,
    occluder_share=0.0, distractor_share=0.0,
)  # fmt: skip


def views() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    images = np.kron(rng.integers(20, 230, (4, 12, 16)), np.ones((1, 8, 8))).astype(np.uint8)
    return images, np.full(images.shape, 2.0, np.float32)


def test_the_same_generator_gives_the_same_views() -> None:
    images, depths = views()
    first, again, other = (augment(images, depths, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.foreign, again.foreign)
    assert (first.images != other.images).mean() > 0.3
    np.testing.assert_array_equal(images, views()[0])  # the input stays as it is


def test_structure_stays_where_it_is() -> None:
    """All of the light, lens and noise: gradients correlate best where they were."""
    images, depths = views()
    settings = Augmentation(occluder_share=0.0, distractor_share=0.0, blur_share=1.0)
    for seed in range(6):
        seen = augment(images, depths, np.random.default_rng(seed), settings)
        for before, after in zip(images, seen.images, strict=True):
            strength = [
                cv2.GaussianBlur(np.hypot(*np.gradient(i.astype(np.float32))), (0, 0), 1.0)
                for i in (before, after)
            ]
            inner = strength[0][8:-8, 8:-8].ravel()
            scores = {
                (dx, dy): np.corrcoef(
                    inner, np.roll(strength[1], (dy, dx), (0, 1))[8:-8, 8:-8].ravel()
                )[0, 1]
                for dx in (-2, 0, 2)
                for dy in (-2, 0, 2)
            }
            assert max(scores, key=lambda k: scores[k]) == (0, 0)


def test_foreign_things_have_no_depth_and_the_rest_keeps_it() -> None:
    images, depths = views()
    settings = Augmentation(**{**NOTHING.__dict__, 'occluder_share': 1.0, 'distractor_share': 1.0})
    seen = augment(images, depths, np.random.default_rng(0), settings)
    assert 0.01 < seen.foreign.mean() < 0.8
    assert (seen.depths[seen.foreign] == 0).all()
    assert (seen.depths[~seen.foreign] == 2.0).all()
    plain = augment(images, depths, np.random.default_rng(0), NOTHING)
    assert not plain.foreign.any()
    off = np.abs(seen.images.astype(int) - images)
    assert off[~seen.foreign].max() <= 2
    assert off[seen.foreign].mean() > 10
    assert np.abs(plain.images.astype(int) - images).max() <= 2


def test_something_that_moves_is_elsewhere_in_each_view() -> None:
    images, depths = views()
    settings = Augmentation(**{**NOTHING.__dict__, 'distractor_share': 1.0})
    steps = []
    for seed in range(10):
        seen = augment(images, depths, np.random.default_rng(seed), settings)
        centres = [np.argwhere(mask).mean(0) for mask in seen.foreign if mask.any()]
        steps += [np.linalg.norm(a - b) for a, b in pairwise(centres)]
    assert len(steps) > 10
    assert np.median(steps) > 5


@pytest.mark.parametrize('length', [1.0, 4.0, 9.0])
def test_motion_blur_is_centred(length: float) -> None:
    kernel = motion_kernel(length, 0.7)
    rows, columns = np.indices(kernel.shape)
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * rows).sum() == pytest.approx(kernel.shape[0] // 2, abs=1e-4)
    assert (kernel * columns).sum() == pytest.approx(kernel.shape[1] // 2, abs=1e-4)
    spread = np.sqrt((kernel * (columns - kernel.shape[1] // 2) ** 2).sum())
    assert spread == pytest.approx(length * np.cos(0.7) / np.sqrt(12), abs=0.3)


def test_light_is_bounded() -> None:
    for seed in range(12):
        light = light_pattern((48, 64), 0.6, np.random.default_rng(seed))
        assert light.shape == (48, 64)
        assert 0.39 < light.min() <= light.max() < 1.61
        assert light.max() - light.min() > 0.02
