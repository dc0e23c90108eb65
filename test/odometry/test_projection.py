# SPDX-License-Identifier: Apache-2.0
"""Landmarks as a camera should see them: the stated uncertainty is the one that is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.projection import Projection, project
from mv_matcher_ros.odometry.window import Landmarks

SIGMA = 2e-3


@pytest.fixture
def camera_from_world(pose: Callable[..., Tensor]) -> Tensor:
    return pose(0.4, -0.2, 0.3, 0.1, -0.3, 0.2)


@pytest.fixture
def landmarks(make_scene: Callable[..., Any]) -> Landmarks:
    """50 points with random covariances, standard deviations of about 5 mm."""
    scene = make_scene(50, seed=3)
    found = Landmarks()
    found.add(scene.points, scene.descriptors)
    half = 5e-3 * scene.noise(50, 3, 3)
    found.covariance = half @ half.transpose(1, 2)
    return found


def test_positions_are_those_of_the_pinhole(
    landmarks: Landmarks, camera_from_world: Tensor
) -> None:
    rows = torch.tensor([4, 0, 17])
    seen = project(landmarks, rows, camera_from_world)
    local = se3.transform(camera_from_world, landmarks.position[rows])
    torch.testing.assert_close(seen.depth, local[:, 2])
    torch.testing.assert_close(seen.plane_xy, local[:, :2] / local[:, 2:])


def test_covariance_is_that_of_samples(landmarks: Landmarks, camera_from_world: Tensor) -> None:
    rows = torch.arange(10)
    expected = project(landmarks, rows, camera_from_world).covariance
    random = torch.Generator().manual_seed(1)
    factor = torch.linalg.cholesky(landmarks.covariance[rows])
    drawn = torch.randn(10, 3, 20000, generator=random, dtype=torch.float64)
    points = landmarks.position[rows][:, None] + (factor @ drawn).transpose(1, 2)
    local = se3.transform(camera_from_world, points)
    measured = torch.cat([local[..., :2], torch.ones_like(local[..., :1])], -1) / local[..., 2:]
    for number in range(10):
        sampled = torch.cov(measured[number].T)
        relative = (sampled - expected[number]).norm() / expected[number].norm()
        assert float(relative) < 0.04


def test_whitening_makes_the_joint_covariance_the_identity(
    landmarks: Landmarks, camera_from_world: Tensor
) -> None:
    rows = torch.arange(50)
    seen = project(landmarks, rows, camera_from_world)
    information = torch.tensor([1 / SIGMA, 1 / SIGMA, 1 / 0.01], dtype=torch.float64)
    whitening = seen.whitening(information.expand(50, 3))
    joint = seen.covariance + torch.diag(information.reciprocal().square())
    unit = whitening @ joint @ whitening.transpose(1, 2)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(unit, eye, rtol=0, atol=1e-9)


def test_whitening_leaves_an_unknown_depth_without_weight(
    landmarks: Landmarks, camera_from_world: Tensor
) -> None:
    rows = torch.arange(50)
    seen = project(landmarks, rows, camera_from_world)
    information = torch.tensor([1 / SIGMA, 1 / SIGMA, 0.0], dtype=torch.float64)
    whitening = seen.whitening(information.expand(50, 3))
    assert float(whitening[:, 2].abs().max()) == 0.0
    assert float(whitening[:, :, 2].abs().max()) == 0.0
    joint = seen.covariance[:, :2, :2] + SIGMA**2 * torch.eye(2, dtype=torch.float64)
    unit = whitening[:, :2, :2] @ joint @ whitening[:, :2, :2].transpose(1, 2)
    eye = torch.eye(2, dtype=torch.float64).expand(50, 2, 2)
    torch.testing.assert_close(unit, eye, rtol=0, atol=1e-9)


def test_mahalanobis_is_the_distance_in_the_joint_covariance(
    landmarks: Landmarks, camera_from_world: Tensor
) -> None:
    seen = project(landmarks, torch.arange(50), camera_from_world)
    shift = 3e-3 * torch.randn(
        50, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    sigma = torch.full((50,), SIGMA, dtype=torch.float64)
    found = seen.mahalanobis(seen.plane_xy + shift, sigma)
    joint = seen.covariance[:, :2, :2] + SIGMA**2 * torch.eye(2, dtype=torch.float64)
    expected = (shift[:, None] @ torch.linalg.inv(joint) @ shift[:, :, None])[:, 0, 0].sqrt()
    torch.testing.assert_close(found, expected)


def test_a_certain_landmark_is_judged_by_the_noise_alone() -> None:
    exact = Projection(
        torch.zeros(1, 2, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1, 3, 3, dtype=torch.float64),
    )
    measured = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = exact.mahalanobis(measured, torch.tensor([2.5], dtype=torch.float64))
    assert found.tolist() == pytest.approx([2.0])
