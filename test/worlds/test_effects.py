# SPDX-License-Identifier: Apache-2.0
"""Noise, exposure, vignetting and depth errors have the size they are said to have."""

import numpy as np
import pytest

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.worlds.effects import (
    PERFECT,
    DepthNoise,
    Effects,
    Fault,
    cover,
    develop,
    measure_depth,
    to_linear,
)

SHAPE = (200, 300)


def developed(light, effects, time_s=0.0, seed=0):
    image = np.full(SHAPE, light, np.float32)
    return develop(image, effects, time_s, np.random.default_rng(seed)).astype(np.float64)


@pytest.mark.parametrize('light', [0.1, 0.4, 0.8])
def test_noise_is_shot_noise_and_read_noise(light):
    """Linear light (gamma 1): variance = light / full well + (read noise / full well)^2."""
    effects = Effects(full_well=900.0, read_noise=9.0, gamma=1.0, exposure_swing=0, vignetting=0)
    image = developed(light, effects)
    expected = 255 * np.sqrt(light / 900.0 + 0.01**2)
    assert image.std() == pytest.approx(expected, rel=0.03)
    assert image.mean() == pytest.approx(255 * light, abs=0.5)


def test_gamma_takes_back_what_linear_light_gave():
    grey = np.arange(256, dtype=np.float32).reshape(16, 16)
    plain = Effects(full_well=0, exposure_swing=0, vignetting=0)
    image = develop(to_linear(grey, 2.2), plain, 0.0, np.random.default_rng(0))
    error = np.abs(image.astype(float) - grey)
    assert error[grey > 20].max() <= 1
    assert error.max() <= 12  # the deepest shadows have few steps in linear light


def test_exposure_swings_about_one_stop_share():
    effects = Effects(
        full_well=0, gamma=1.0, vignetting=0, exposure_swing=0.5, exposure_period_s=4
    )
    means = [developed(0.3, effects, t).mean() for t in (0.0, 1.0, 3.0)]
    assert means[1] / means[0] == pytest.approx(2**0.5, rel=0.02)
    assert means[2] / means[0] == pytest.approx(2**-0.5, rel=0.02)


def test_vignetting_takes_its_share_in_the_corners_only():
    effects = Effects(full_well=0, gamma=1.0, exposure_swing=0, vignetting=0.3)
    image = developed(0.8, effects)
    assert image[100, 150] == pytest.approx(255 * 0.8, abs=1)
    assert image[0, 0] == pytest.approx(255 * 0.8 * 0.7, abs=1)
    assert (np.diff(image[100, 150:]) <= 0).all()


def test_perfect_camera_changes_nothing():
    assert PERFECT.gain(1.3) == 1.0
    assert developed(0.5, PERFECT).std() == 0


def test_depth_noise_grows_with_the_square_of_the_distance():
    noise = DepthNoise(sigma_per_m2=0.002, step_m=0.0)
    for metres in (1.0, 3.0):
        depth = np.full(SHAPE, metres, np.float32)
        measured = measure_depth(depth, noise, np.random.default_rng(0))
        assert measured.std() == pytest.approx(0.002 * metres**2, rel=0.05)
        assert measured.mean() == pytest.approx(metres, rel=1e-3)


def test_depth_has_holes_where_a_depth_camera_has_them():
    depth = np.full(SHAPE, 2.0, np.float32)
    depth[:, 150:] = 4.0  # an outline
    depth[:20] = 0.0  # sky
    depth[-20:] = 30.0  # too far
    measured = measure_depth(depth, DepthNoise(), np.random.default_rng(0))
    assert not measured[:20].any()
    assert not measured[-20:].any()
    assert not measured[:, 149:151].any()
    assert (measured[25:-25, 10:140] > 0).all()
    known = measured[measured > 0].astype(np.float64)
    np.testing.assert_allclose(known / 0.001, np.round(known / 0.001), atol=0.01)


def test_covered_lens_leaves_nothing_to_see():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*SHAPE, 3), np.uint8)
    covered = cover(image, rng)
    assert covered.shape == image.shape
    assert covered.std() < 3
    assert covered.mean() < 30


def test_faults_are_found_by_frame():
    effects = Effects(faults=(Fault('black', 2, 3), Fault('frozen', 3, 5)))
    assert [effects.fault_at(i) for i in range(7)] == [
        None, None, 'black', 'black', 'frozen', 'frozen', None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('kind', 'first', 'last'), [('smoke', 0, 1), ('black', 3, 2), ('black', -1, 2)]
)
def test_impossible_faults_are_refused(kind, first, last):
    with pytest.raises(SourceError, match='fault'):
        Fault(kind, first, last)
