# SPDX-License-Identifier: Apache-2.0
"""Landmarks as a camera should see them, with the uncertainty of their positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry.schur import half_inverse_of
from mv_matcher_ros.odometry.seeing import moved
from mv_matcher_ros.odometry.window import Landmarks


@dataclass(frozen=True)
class Projection:
    """K landmarks, each seen by one camera.

    Attributes:
        plane_xy: (K, 2) on the normalised plane.
        depth: (K,) along the optical axis; the rest has a meaning only where it is positive.
        covariance: (K, 3, 3) of (x/z, y/z, 1/z) from the uncertainty of the positions alone.
    """

    plane_xy: Tensor
    depth: Tensor
    covariance: Tensor

    def mahalanobis(self, measured_xy: Tensor, sigma: Tensor) -> Tensor:
        """(K,) distance, in standard deviations, of points (K, 2) with noise `sigma` (K,)."""
        spread = self.covariance[:, :2, :2] + torch.diag_embed(
            sigma.square()[:, None].expand(-1, 2)
        )
        a, b, c = spread[:, 0, 0], spread[:, 0, 1], spread[:, 1, 1]
        dx, dy = (measured_xy - self.plane_xy).unbind(1)
        squared = (c * dx * dx - 2.0 * b * dx * dy + a * dy * dy) / (a * c - b * b).clamp_min(
            1e-300
        )
        return squared.clamp_min(0.0).sqrt()

    def whitening(self, sqrt_information: Tensor) -> Tensor:
        """(K, 3, 3) square-root information of measurement (K, 3) and landmark together.

        A landmark from little parallax is uncertain along its ray; seen from elsewhere, that moves
        its projection along the epipolar line. Components without measurement (0) stay without.
        """
        known = sqrt_information > 0
        noise = torch.where(known, 1.0 / sqrt_information.clamp_min(1e-12), 1.0).square()
        mask = known[:, :, None] & known[:, None, :]
        covariance = torch.where(mask, self.covariance, 0.0) + torch.diag_embed(noise)
        return half_inverse_of(covariance) * known[:, :, None]


def project(landmarks: Landmarks, rows: Tensor, camera_from_world: Tensor) -> Projection:
    """Landmarks (K,) rows in a camera at (4, 4) `camera_from_world`, or in one each (K, 4, 4)."""
    local = moved(camera_from_world, landmarks.position[rows])
    inverse = 1.0 / local[:, 2].clamp_min(1e-9)
    zero = torch.zeros_like(inverse)
    by_camera = torch.stack(
        [
            torch.stack([inverse, zero, -local[:, 0] * inverse * inverse], 1),
            torch.stack([zero, inverse, -local[:, 1] * inverse * inverse], 1),
            torch.stack([zero, zero, -inverse * inverse], 1),
        ],
        dim=1,
    )
    jacobian = by_camera @ camera_from_world[..., :3, :3]
    covariance = jacobian @ landmarks.covariance[rows] @ jacobian.transpose(1, 2)
    return Projection(local[:, :2] * inverse[:, None], local[:, 2], covariance)
