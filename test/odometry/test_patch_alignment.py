# SPDX-License-Identifier: Apache-2.0
"""Patches are found to a small part of a pixel, as well as is said, and not where they are not."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mv_matcher_ros.odometry.patch_alignment import Aligned, PatchWarp, align_patches

Image = NDArray[np.uint8]
REACH_PX = 3.0


def texture(seed: int = 0) -> Image:
    noise = np.random.default_rng(seed).normal(size=(240, 320)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.asarray(cv2.normalize(smooth, None, 20, 220, cv2.NORM_MINMAX), np.uint8)


def seen_through(image: Image, other_from_first: NDArray, noise: float = 0.0) -> Image:
    """The image as another camera sees it, whose pixels are a (2, 3) map of those of the first."""
    moved = cv2.warpAffine(image, other_from_first, (320, 240), flags=cv2.INTER_CUBIC)
    noisy = moved + np.random.default_rng(1).normal(size=moved.shape) * noise
    return np.asarray(np.clip(np.round(noisy), 0, 255), np.uint8)


def shift(along: float, across: float = 0.0, by_x: float = 0.0, by_y: float = 0.0) -> NDArray:
    """A map that moves the centre of the image so far, and grows along over it."""
    a = np.array([[1.0 + by_x, by_y, 0.0], [0.0, 1.0, across]])
    a[0, 2] = along - by_x * 160.0 - by_y * 120.0
    return a


def warp_of(expected: NDArray, xy: NDArray, along: tuple[float, float] = (1.0, 0.0)) -> PatchWarp:
    """What a rig would say that expects a (2, 3) map."""
    count = len(xy)
    return PatchWarp(
        torch.from_numpy(xy).float(),
        torch.from_numpy(xy @ expected[:, :2].T + expected[:, 2]).float(),
        torch.from_numpy(expected[:, :2].copy()).float().expand(count, 2, 2),
        torch.tensor(along).expand(count, 2),
    )


def grid(step: int = 12) -> NDArray:
    x, y = np.meshgrid(np.arange(40, 281, step), np.arange(40, 201, step))
    return np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)


def errors(found: Aligned, truth: NDArray, xy: NDArray) -> NDArray:
    """(K, 2) of those that are good."""
    return (found.other_xy.numpy() - (xy @ truth[:, :2].T + truth[:, 2]))[found.good.numpy()]


@pytest.mark.parametrize('off', [-1.7, 0.4, 1.2])
def test_a_shift_is_found_whatever_the_light(off: float) -> None:
    xy, truth = grid(), shift(off, 0.3)
    darker = (0.7 * seen_through(texture(), truth, noise=2.0) + 30.0).astype(np.uint8)
    found = align_patches(texture(), darker, warp_of(shift(0.0), xy), REACH_PX)
    assert found.good.double().mean() > 0.95
    assert np.sqrt((errors(found, truth, xy) ** 2).mean(0)).max() < 0.06
    assert found.slant[found.good].median() < 0.03


def test_a_slanted_surface_is_followed() -> None:
    """A point every pixel row moves a third of a pixel more, like a road before a car."""
    xy = np.stack([np.arange(60.0, 260.0, 5.0), np.full(40, 120.0)], 1)
    truth = shift(0.5, by_x=0.05, by_y=0.3)
    found = align_patches(texture(), seen_through(texture(), truth), warp_of(shift(0.0), xy), 9.0)
    near = np.abs(xy[:, 0] - 160.0) < 60.0  # farther out the start is more than three pixels off
    good = found.good.numpy() & near
    assert good.sum() > 0.8 * near.sum()
    error = (found.other_xy.numpy() - (xy @ truth[:, :2].T + truth[:, 2]))[good]
    assert np.abs(error).max() < 0.1
    assert float(found.slant[good].median()) == pytest.approx(np.hypot(0.05, 0.3), abs=0.03)


def test_errors_are_as_large_as_is_said() -> None:
    xy, truth = grid(8), shift(0.6)
    faint = (90 + texture() // 6).astype(np.uint8)
    noisy = seen_through(faint, truth, noise=4.0)
    found = align_patches(faint, noisy, warp_of(shift(0.0), xy), REACH_PX)
    assert found.good.double().mean() > 0.5
    ratio = errors(found, truth, xy)[:, 0] / found.sigma_px[found.good].numpy()
    assert 0.4 < np.sqrt((ratio**2).mean()) < 1.2
    sharp = align_patches(texture(), seen_through(texture(), truth), warp_of(truth, xy), REACH_PX)
    assert found.sigma_px[found.good].median() > 1.3 * sharp.sigma_px[sharp.good].median()


@pytest.mark.parametrize('degrees', [30.0, 90.0, 180.0])
def test_the_other_camera_may_be_turned_and_see_larger(degrees: float) -> None:
    angle, size = np.deg2rad(degrees), 1.2
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth = np.concatenate([turn, (np.array([160.0, 120.0]) - turn @ [160.0, 120.0])[:, None]], 1)
    expected = truth.copy()
    expected[:, 2] += turn @ [1.3, 0.0]  # off along the axis that becomes the epipolar line
    xy = grid()[np.abs(grid() - [160.0, 120.0]).max(1) < 70.0]
    found = align_patches(texture(), seen_through(texture(), truth), warp_of(expected, xy), 3.0)
    assert found.good.double().mean() > 0.95
    assert np.abs(errors(found, truth, xy)).max() < 0.15


def test_without_texture_nothing_slants() -> None:
    """What the patch does not say is thought to be flat, however the search went."""
    blurred = cv2.GaussianBlur(texture(), (0, 0), 6.0)
    faint = np.asarray(90 + blurred // 8, np.uint8)
    noisy = seen_through(faint, shift(0.4), noise=2.0)
    found = align_patches(faint, noisy, warp_of(shift(0.0), grid()), REACH_PX)
    assert float(found.slant.median()) < 0.1


@pytest.mark.parametrize('other', [np.full((240, 320), 90, np.uint8), texture(5)])
def test_what_is_not_there_is_not_found(other: Image) -> None:
    found = align_patches(texture(), other, warp_of(shift(0.0), grid()), REACH_PX)
    assert found.good.double().mean() < 0.02


def test_patches_without_texture_are_not_found() -> None:
    flat = np.full((240, 320), 90, np.uint8)
    found = align_patches(flat, flat, warp_of(shift(0.0), grid()), REACH_PX)
    assert not found.good.any()
    assert found.other_xy.isfinite().all()


def test_nothing_is_believed_beyond_the_reach_or_the_image() -> None:
    xy, truth = grid(), shift(2.0)
    seen = seen_through(texture(), truth)
    assert align_patches(texture(), seen, warp_of(shift(0.0), xy), 2.5).good.double().mean() > 0.9
    assert not align_patches(texture(), seen, warp_of(shift(0.0), xy), 1.5).good.any()
    edge = np.array([[3.0, 100.0], [318.0, 100.0], [100.0, 4.0], [-20.0, 50.0]])
    warp = warp_of(shift(0.0), edge)
    assert not align_patches(texture(), texture(), warp, REACH_PX).good.any()
    inside = warp_of(shift(0.0), grid())
    outside = replace(inside, other_xy=inside.other_xy + 400.0)
    assert not align_patches(texture(), texture(), outside, REACH_PX).good.any()


def test_no_patches() -> None:
    found = align_patches(texture(), texture(), warp_of(shift(0.0), np.zeros((0, 2))), REACH_PX)
    assert len(found.good) == len(found.other_xy) == 0
