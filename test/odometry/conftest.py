# SPDX-License-Identifier: Apache-2.0
"""Synthetic observations whose truth is known: points with descriptors of their own, no image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Camera, Features
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.observation import Observation

SIZE = (640, 480)
CAMERA = Camera(*SIZE, (400.0, 400.0, 319.5, 239.5))
DESCRIPTOR_SIZE = 128


@dataclass(frozen=True)
class Scene:
    """Points seen by one pinhole camera that is the body itself.

    Attributes:
        points: (P, 3) float64 in the world.
        descriptors: (P, 128) float32, random and so nearly orthogonal.
        random: source of the noise.
        camera: 640 x 480, focal length 400.
    """

    points: Tensor
    descriptors: Tensor
    random: torch.Generator
    camera: Camera

    def noise(self, *shape: int) -> Tensor:
        """Standard normal float64."""
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def plane(self, world_from_camera: Tensor) -> tuple[Tensor, Tensor]:
        """(P, 2) exact plane coordinates and (P,) depths of all points."""
        local = se3.transform(se3.inverse(world_from_camera), self.points)
        return local[:, :2] / local[:, 2:], local[:, 2]

    def observe(
        self,
        world_from_camera: Tensor,
        stamp_ns: int = 0,
        noise_px: float = 0.0,
        depth_sigma: float | None = None,
    ) -> Observation:
        """All points in order; inverse depths with noise `depth_sigma`, unknown without."""
        focal = self.camera.focal_px
        plane, depth = self.plane(world_from_camera)
        plane = plane + noise_px / focal * self.noise(len(plane), 2)
        centre = torch.tensor(self.camera.intrinsics[2:], dtype=torch.float64)
        count = len(plane)
        features = Features(
            (plane * focal + centre).float(),
            self.descriptors,
            torch.ones(count),
            torch.full((count,), max(noise_px, 0.1)),
            SIZE,
        )
        inverse = torch.full((count,), torch.nan, dtype=torch.float64)
        if depth_sigma is not None:
            inverse = 1.0 / depth + depth_sigma * self.noise(count)
        return Observation(
            stamp_ns,
            0,
            features,
            plane,
            features.sigma_px.double() / focal,
            inverse,
            torch.full_like(inverse, max(depth_sigma or 0.0, 1e-4)),
            torch.zeros(count, dtype=torch.int64),
        )


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """make_scene(count, seed, nearest, farthest): points over the whole view of the origin."""

    def make(
        count: int = 200, seed: int = 0, nearest: float = 2.0, farthest: float = 10.0
    ) -> Scene:
        random = torch.Generator().manual_seed(seed)
        uniform = torch.rand(count, 3, generator=random, dtype=torch.float64)
        depth = 1.0 / (1.0 / farthest + uniform[:, 2] * (1.0 / nearest - 1.0 / farthest))
        half = torch.tensor([0.75, 0.55], dtype=torch.float64)
        plane = (2.0 * uniform[:, :2] - 1.0) * half
        points = torch.cat([plane, torch.ones(count, 1, dtype=torch.float64)], 1) * depth[:, None]
        descriptors = torch.randn(count, DESCRIPTOR_SIZE, generator=random)
        return Scene(points, torch.nn.functional.normalize(descriptors, dim=1), random, CAMERA)

    return make


@pytest.fixture
def pose() -> Callable[..., Tensor]:
    """pose(x, y, z, rx, ry, rz): (4, 4) with that translation (m) and rotation vector (rad)."""

    def make(*xi: float) -> Tensor:
        values = torch.tensor([*xi, *([0.0] * (6 - len(xi)))], dtype=torch.float64)
        turn = se3.exp(torch.cat([torch.zeros(3, dtype=torch.float64), values[3:]]))
        return se3.compose_matrix(turn[:3, :3], values[:3])

    return make
