# SPDX-License-Identifier: Apache-2.0
"""Depth between pixels, faults of images, and frames that do not belong to the rig."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Camera, Features, Frame, Rig, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.odometry.observation import Observer, depth_at

WIDTH, HEIGHT = 64, 48
CAMERA = Camera(WIDTH, HEIGHT, (50.0, 50.0, 31.5, 23.5), name='left')
XY = np.array([[3.25, 4.75], [10.0, 20.0], [62.9, 46.2], [0.0, 0.0], [63.0, 47.0], [31.5, 0.5]])


class GivenFeatures:
    """A detector that finds the same keypoints in every image."""

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        count = len(XY)
        xy = torch.from_numpy(XY).float()
        sigma = torch.linspace(0.5, 1.0, count)
        return Features(xy, torch.eye(count, 128), torch.ones(count), sigma, (WIDTH, HEIGHT))


def plane_inverse_depth(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """A plane in space has an inverse depth that is linear in the pixel."""
    inverse: NDArray[np.float64] = 0.4 + 0.002 * xy[..., 0] - 0.003 * xy[..., 1]
    return inverse


def plane_depth() -> NDArray[np.float32]:
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).astype(np.float64)
    return (1.0 / plane_inverse_depth(grid)).astype(np.float32)


def observer(sensor: str = 'rgbd') -> Observer:
    settings = read_settings({'sensor': sensor, 'depth.sigma_at_1m_m': 0.004, 'depth.max_m': 8.0})
    return Observer(settings, Rig((CAMERA,)), GivenFeatures())


def noise_image(spread: float) -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    return np.clip(random.normal(128, spread, (HEIGHT, WIDTH)), 0, 255).astype(np.uint8)


def test_depth_of_a_plane_is_exact_between_pixels() -> None:
    found = depth_at(plane_depth(), XY)
    np.testing.assert_allclose(1.0 / found, plane_inverse_depth(XY), rtol=1e-6)


@pytest.mark.parametrize('hole', [0.0, np.nan, np.inf, -1.0])
def test_a_hole_beside_the_point_gives_no_depth(hole: float) -> None:
    depth = plane_depth()
    depth[5, 4] = hole  # one of the four neighbours of the first point
    found = depth_at(depth, XY)
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()


def test_a_depth_step_gives_no_depth() -> None:
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, 32:] = 2.2
    found = depth_at(depth, XY)
    assert np.isnan(found[5])  # between columns 31 and 32: neither surface
    np.testing.assert_allclose(found[:5], [2.0, 2.0, 2.2, 2.0, 2.2], rtol=1e-6)


def test_depth_image_gives_inverse_depth_within_the_limits_of_the_sensor() -> None:
    depth = plane_depth()
    depth[19:23, 9:13] = 9.0  # beyond depth.max_m
    seen = observer().observe(Frame(7, (View(noise_image(30.0), depth),), index=3))
    assert (seen.stamp_ns, seen.index, len(seen)) == (7, 3, len(XY))
    known = torch.arange(len(XY)) != 1
    assert bool(seen.inverse_depth[1].isnan())
    expected = torch.from_numpy(plane_inverse_depth(XY))
    torch.testing.assert_close(seen.inverse_depth[known], expected[known], rtol=1e-6, atol=0)
    assert seen.inverse_depth_sigma.unique().tolist() == [0.004]  # σ_z = k z² is k on 1/z
    torch.testing.assert_close(seen.plane_xy, torch.from_numpy((XY - [31.5, 23.5]) / 50.0))
    torch.testing.assert_close(seen.sigma * 50.0, seen.features.sigma_px.double())


def test_depth_is_left_alone_unless_the_sensor_is_rgbd() -> None:
    seen = observer('mono').observe(Frame(0, (View(noise_image(30.0), plane_depth()),)))
    assert bool(seen.inverse_depth.isnan().all())


def test_a_covered_lens_is_named_and_a_textured_image_is_fine() -> None:
    fault = observer().image_fault(View(noise_image(1.0)))
    assert 'covered lens or darkness' in fault
    assert observer().image_fault(View(noise_image(30.0))) == ''
    colour = np.repeat(noise_image(30.0)[..., None], 3, axis=2)
    assert observer().image_fault(View(colour)) == ''


def test_an_image_of_another_size_is_refused() -> None:
    frame = Frame(0, (View(np.zeros((48, 60), np.uint8)),), index=12)
    with pytest.raises(SourceError, match=r'frame 12: image of left is 60x48, .* for 64x48'):
        observer().check(frame)


def test_a_missing_second_image_is_refused() -> None:
    with pytest.raises(SourceError, match='frame 0 has 1 images, stereo needs 2'):
        observer('stereo').check(Frame(0, (View(noise_image(30.0)),)))


def test_selected_features_are_those_by_mask_and_by_index() -> None:
    features = GivenFeatures().detect(noise_image(1.0))
    some = features.chosen(torch.tensor([4, 1]))
    assert torch.equal(some.keypoints_xy, features.keypoints_xy[[4, 1]])
    assert torch.equal(some.sigma_px, features.sigma_px[[4, 1]])
    mask = torch.zeros(len(XY), dtype=torch.bool)
    mask[2] = True
    assert torch.equal(features.chosen(mask).descriptors, features.descriptors[2:3])


def test_blur_lowers_the_sharpness_of_a_frame() -> None:
    sharp = noise_image(30.0)
    frames = [Frame(0, (View(i),)) for i in (sharp, cv2.GaussianBlur(sharp, (5, 5), 1.0))]
    assert observer().sharpness(frames[1]) < 0.5 * observer().sharpness(frames[0])
