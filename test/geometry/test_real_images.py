# SPDX-License-Identifier: Apache-2.0
"""Geometry on real photographs with known calibration and pose."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.geometry import epipolar, se3
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.geometry.relative_pose import refine_relative_pose
from mv_matcher_ros.geometry.triangulation import triangulate
from mv_matcher_ros.geometry.two_view_model import TwoViewKind, select_two_view_model

pytestmark = pytest.mark.data


def sift_matches(path_a: Path, path_b: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 2) of ratio-tested mutual SIFT matches."""
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (path_a, path_b)]
    sift = cv2.SIFT_create(1500)
    (points_a, a), (points_b, b) = (sift.detectAndCompute(image, None) for image in images)
    pairs = cv2.BFMatcher().knnMatch(a, b, k=2)
    good = [m for m, n in pairs if m.distance < 0.75 * n.distance]
    return (
        torch.tensor([points_a[m.queryIdx].pt for m in good], dtype=torch.float64),
        torch.tensor([points_b[m.trainIdx].pt for m in good], dtype=torch.float64),
    )


def euroc_camera(folder: Path, distorted: bool = True) -> Camera:
    content = yaml.safe_load((folder / 'sensor.yaml').read_text())
    width, height = content['resolution']
    pose = np.array(content['T_BS']['data']).reshape(4, 4)
    coefficients = tuple(content['distortion_coefficients']) if distorted else ()
    intrinsics = tuple(content['intrinsics'])
    return Camera(width, height, intrinsics, 'radtan', coefficients, pose, folder.name)


def test_euroc_stereo_agrees_with_its_calibration_only_when_undistorted(sequences: Path) -> None:
    root = sequences / 'euroc_v101_static' / 'mav0'
    images = [sorted((root / name / 'data').glob('*.png'))[0] for name in ('cam0', 'cam1')]
    matches = sift_matches(*images)
    error_px = {}
    for distorted in (True, False):
        cameras = [euroc_camera(root / name, distorted) for name in ('cam0', 'cam1')]
        body_from_left, body_from_right = (
            torch.from_numpy(camera.body_from_camera.copy()) for camera in cameras
        )
        right_from_left = se3.inverse(body_from_right) @ body_from_left
        xy_a, xy_b = (camera_normalise(c, m)[0] for c, m in zip(cameras, matches, strict=True))
        essential = epipolar.essential_from_pose(right_from_left)
        error = epipolar.sampson_error(essential, xy_a, xy_b).abs()
        error_px[distorted] = float(error.median()) * cameras[0].focal_px
        if distorted:
            inlier = error * cameras[0].focal_px < 1.0
            both = torch.stack((xy_a, xy_b), 1)[inlier]
            poses = torch.stack((torch.eye(4, dtype=torch.float64), right_from_left))
            room = triangulate(both, poses)
            depth = room.depths[room.valid, 0]
            assert room.valid.float().mean() > 0.5
            assert depth.quantile(0.1) > 0.5  # metres, inside the Vicon room
            assert depth.quantile(0.9) < 12.0
    assert error_px[True] < 0.2
    assert error_px[False] > 3 * error_px[True]


def test_wide_baseline_pair_gives_its_laser_scanned_pose(data_root: Path) -> None:
    folder = data_root / 'pairs' / 'strecha'
    first = (folder / 'pairs_with_gt.txt').read_text().splitlines()[0].split()
    k = torch.tensor([float(v) for v in first[4:13]], dtype=torch.float64).reshape(3, 3)
    truth = torch.tensor([float(v) for v in first[22:38]], dtype=torch.float64).reshape(4, 4)
    pixels = sift_matches(folder / first[0], folder / first[1])
    xy_a, xy_b = ((p - k[:2, 2]) / k.diagonal()[:2] for p in pixels)
    sigma = 0.7 / float(k[0, 0])
    essential, mask = cv2.findEssentialMat(
        xy_a.numpy(), xy_b.numpy(), np.eye(3), method=cv2.USAC_MAGSAC, threshold=2 * sigma
    )
    weights = torch.from_numpy(mask[:, 0]).double()
    start = epipolar.pose_from_essential(torch.from_numpy(essential[:3]), xy_a, xy_b, weights)
    pose = refine_relative_pose(start.b_from_a, xy_a, xy_b, weights, sigma=sigma, kernel='cauchy')
    turn = se3.rotation_angle(pose.b_from_a[:3, :3].mT @ truth[:3, :3])
    direction = truth[:3, 3] / truth[:3, 3].norm()
    assert torch.rad2deg(turn) < 0.2
    assert torch.rad2deg(torch.acos(direction @ pose.b_from_a[:3, 3])) < 0.5
    model = select_two_view_model(
        xy_a, xy_b, sigma, weights, epipolar.essential_from_pose(pose.b_from_a)
    )
    assert model.kind == TwoViewKind.ESSENTIAL
