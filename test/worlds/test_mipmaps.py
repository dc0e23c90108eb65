# SPDX-License-Identifier: Apache-2.0
"""Filtered texture look-up: exact where a texture is linear, an average where it is fine."""

import numpy as np
import pytest

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.mipmaps import Pyramid, Texture, bilinear


def constant_footprint(count, du_dx, dv_dy, du_dy=0.0, dv_dx=0.0):
    return tuple(np.full(count, value, np.float32) for value in (du_dx, dv_dx, du_dy, dv_dy))


def ramp(rows=64, columns=96):
    """Grey value = 2 · column + row, which every correct filter leaves as it is inside."""
    return (2 * np.arange(columns)[None] + np.arange(rows)[:, None]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    'pixel_texels', [(0.2, 0.2), (1.0, 1.0), (3.3, 3.3), (1.5, 9.0), (8.0, 1.0)]
)
def test_a_ramp_is_reproduced_at_every_level_and_slant(pixel_texels):
    pyramid = Pyramid.build(ramp(), wrap=False)
    rng = np.random.default_rng(0)
    u, v = rng.uniform(0.3, 0.7, (2, 500)).astype(np.float32)
    footprint = constant_footprint(500, pixel_texels[0] / 96, pixel_texels[1] / 64)
    expected = 2 * (u * 96 - 0.5) + (v * 64 - 0.5)
    # uint8 levels round: half a grey value a level
    np.testing.assert_allclose(pyramid.look_up(u, v, footprint), expected, atol=1.6)


def test_first_texel_covers_the_first_share_of_the_border():
    image = np.array([[0, 100], [200, 50]], np.uint8)
    pyramid = Pyramid.build(image, wrap=False)
    u = np.array((0.25, 0.75, 0.25, 0.75), np.float32)
    v = np.array((0.25, 0.25, 0.75, 0.75), np.float32)
    values = pyramid.look_up(u, v, constant_footprint(4, 0.01, 0.01))
    np.testing.assert_allclose(values, (0, 100, 200, 50), atol=1e-3)


def test_wrap_goes_round_and_clamp_goes_on():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 7] = 200
    at = np.array(
        (-0.0625, 1.9375, 1.2), np.float32
    )  # the last column, the last again, the second
    half = np.full(3, 0.5, np.float32)
    tiny = constant_footprint(3, 0.01, 0.01)
    wrapped = Texture(image, wrap=True).grey.look_up(at, half, tiny)
    clamped = Texture(image).grey.look_up(at, half, tiny)
    np.testing.assert_allclose(wrapped, (200, 200, 0), atol=0.5)
    np.testing.assert_allclose(clamped, (0, 200, 200), atol=0.5)


def test_a_pixel_of_many_texels_sees_their_mean():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (256, 256), np.uint8)
    pyramid = Pyramid.build(image, wrap=True)
    u, v = rng.uniform(0, 1, (2, 200)).astype(np.float32)
    values = pyramid.look_up(u, v, constant_footprint(200, 0.25, 0.25))
    assert values.std() < 0.05 * image.std()
    assert values.mean() == pytest.approx(image.mean(), abs=1.5)


def test_slanted_pixel_averages_along_its_long_axis_only():
    """Stripes along v survive a footprint that is long in v, and vanish under one long in u."""
    stripes = np.tile(((np.arange(256) // 4) % 2 * 255).astype(np.uint8), (256, 1))
    pyramid = Pyramid.build(stripes, wrap=True)
    u = np.linspace(0.2, 0.8, 300, dtype=np.float32)
    v = np.full(300, 0.5, np.float32)
    kept = pyramid.look_up(u, v, constant_footprint(300, 1 / 256, 12 / 256))
    gone = pyramid.look_up(u, v, constant_footprint(300, 16 / 256, 1 / 256))
    assert kept.std() > 100
    assert gone.std() < 30
    # the same footprint, given by the other image axis
    turned = pyramid.look_up(u, v, constant_footprint(300, 0, 0, 1 / 256, 12 / 256))
    np.testing.assert_allclose(turned, kept, atol=1e-3)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (5, 3), (64, 2)])
def test_any_size_has_a_pyramid_down_to_one_texel(shape):
    pyramid = Pyramid.build(np.full(shape, 77, np.uint8), wrap=True)
    assert tuple(pyramid.scale[-1]) == (1, 1)
    at = np.linspace(-2, 2, 50, dtype=np.float32)
    values = pyramid.look_up(at, at, constant_footprint(50, 3.0, 0.5))
    np.testing.assert_allclose(values, 77, atol=1e-3)


@pytest.mark.parametrize('count', [0, 1, 1024, 1025, 5000])
def test_look_up_of_any_number_of_places(count):
    image = ramp().astype(np.float32)
    x = np.linspace(3, 60, count).astype(np.float32)
    found = bilinear(image, x, np.full(count, 10.25, np.float32))
    assert found.shape == (count,)
    # OpenCV 4 interpolates at 1/32 texel
    np.testing.assert_allclose(found, 2 * x + 10.25, atol=0.1)


@pytest.mark.parametrize(
    'image', [np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3))]
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(GeometryError, match='texture'):
        Texture(image)
