# SPDX-License-Identifier: Apache-2.0
"""Depth of one camera in another: a plane stays that plane, what is nearer hides, sizes count."""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.depth_registration import DepthRegistration

DEPTH = Camera(80, 60, (70.0, 70.0, 39.5, 29.5), 'radtan', (0.02, -0.01, 0.0, 0.0, 0.0))
COLOUR = Camera(160, 120, (150.0, 152.0, 79.0, 61.0), 'radtan', (-0.05, 0.01, 1e-3, 0.0, 0.0))


def beside(x_m: float) -> np.ndarray:
    """colour_from_depth: the depth camera is x to the right, turned by two degrees."""
    pose = np.eye(4)
    c, s = np.cos(np.deg2rad(2)), np.sin(np.deg2rad(2))
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[0, 3] = x_m
    return pose


def test_the_same_camera_keeps_the_image() -> None:
    depth = np.random.default_rng(0).uniform(1.0, 1.001, (60, 80)).astype(np.float32)
    same = DepthRegistration(DEPTH, DEPTH, np.eye(4))(depth)
    assert (same > 0).mean() > 0.97
    assert np.abs(same[same > 0] - 1.0).max() < 0.0011


def test_a_plane_is_the_same_plane_seen_from_beside_it() -> None:
    """Of a plane n·x = d, the depth at a pixel with ray r is d / n·r in either camera."""
    import torch

    from mv_matcher_ros.geometry.camera import camera_normalise

    def depth_of(camera: Camera, normal: np.ndarray, distance: float) -> np.ndarray:
        v, u = np.mgrid[0 : camera.height, 0 : camera.width]
        pixels = torch.from_numpy(np.stack([u, v], 2).reshape(-1, 2).astype(np.float64))
        rays = np.concatenate(
            [camera_normalise(camera, pixels)[0].numpy(), np.ones((u.size, 1))], 1
        )
        return (distance / (rays @ normal)).reshape(u.shape).astype(np.float32)

    normal, distance = np.array([0.2, -0.1, 0.97]), 2.0
    pose = beside(0.05)
    turned = pose[:3, :3] @ normal
    found = DepthRegistration(DEPTH, COLOUR, pose)(depth_of(DEPTH, normal, distance))
    true = depth_of(COLOUR, turned, distance + turned @ pose[:3, 3])
    inner = np.s_[20:100, 25:135]
    assert (found[inner] > 0).all()  # twice as many pixels in a row, and no hole
    # Half a pixel of depth gradient, no more.
    assert np.abs(found[inner] / true[inner] - 1.0).max() < 0.01
    assert np.abs(np.median(found[inner] / true[inner]) - 1.0) < 0.002


def test_what_is_nearer_hides_what_is_behind() -> None:
    depth = np.full((60, 80), 3.0, np.float32)
    depth[20:40, 30:50] = 1.0
    moved = DepthRegistration(DEPTH, DEPTH, beside(0.2))(depth)
    # The near square lies 14 px further right, the wall behind it 4.7 px and a turn.
    row = moved[30]
    assert not ((row > 1.1) & (row < 2.8)).any()
    near = np.flatnonzero((row > 0) & (row < 1.5))
    assert 19 <= len(near) <= 22
    assert near.min() >= 30


def test_unknown_depth_stays_unknown() -> None:
    registration = DepthRegistration(DEPTH, COLOUR, beside(0.05))
    assert not registration(np.zeros((60, 80), np.float32)).any()
    assert not registration(np.full((60, 80), np.nan, np.float32)).any()
    assert not registration(np.full((60, 80), np.inf, np.float32)).any()


def test_depth_of_another_size_is_refused() -> None:
    with pytest.raises(GeometryError, match='depth is 160x120, its calibration is for 80x60'):
        DepthRegistration(DEPTH, COLOUR, np.eye(4))(np.ones((120, 160), np.float32))
