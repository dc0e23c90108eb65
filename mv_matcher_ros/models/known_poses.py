# SPDX-License-Identifier: Apache-2.0
"""What is known of the poses between views, told to the matcher as distances from epipolar lines.

The other camera of a rig and keyframes that are already solved are views whose relative pose is
known. A keypoint that lies far from the epipolar line of another is unlikely to be its partner;
attention and scores get that as an additive term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.geometry.se3 import hat

# Squared distance, in units of sigma, beyond which being farther says nothing more: a pose that
# was wrong must not outvote the descriptors.
FARTHEST = 9.0


@dataclass(frozen=True)
class KnownPoses:
    """Relative poses of the views of a batch, where they are known.

    Attributes:
        plane_xy: (B, V, N, 2) keypoints on the normalised plane of their camera.
        target_from_source: (B, V, V, 4, 4) camera [:, target] from camera [:, source], any value
            where unknown.
        sigma: (B, V, V) how far a true partner may lie from its epipolar line, standard deviation
            on the normalised plane; inf where the pose is not known.
    """

    plane_xy: Tensor
    target_from_source: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, plane_xy: Tensor, world_from_camera: Tensor, sigma: Tensor) -> KnownPoses:
        """From (B, V, 4, 4) poses in one world."""
        inverse = torch.linalg.inv(world_from_camera)
        return cls(plane_xy, inverse[:, :, None] @ world_from_camera[:, None], sigma)

    def squared_distance(self) -> Tensor:
        """(B, V, V, N, N) squared distances from epipolar lines, at most `FARTHEST`.

        [batch, source, target, i, j] is that of keypoint j of the target view from the line of
        keypoint i of the source view, in units of sigma; 0 where the pose is unknown or a pure
        rotation, which has no epipolar lines.
        """
        pose = self.target_from_source.transpose(1, 2)
        rays = self.plane_xy
        sigma = self.sigma.transpose(1, 2)
        return squared_epipolar_distance(rays[:, :, None], rays[:, None], pose, sigma)


def squared_epipolar_distance(
    source_xy: Tensor, target_xy: Tensor, target_from_source: Tensor, sigma: Tensor
) -> Tensor:
    """Squared distance of each target keypoint from the epipolar line of each source keypoint.

    Args:
        source_xy: (..., N, 2) and target_xy: (..., M, 2) on the normalised planes.
        target_from_source: (..., 4, 4).
        sigma: (...) standard deviation of the distance; inf where the pose is not known.

    Returns:
        (..., N, M) in units of sigma squared, at most `FARTHEST`; 0 without a pose or baseline.
    """
    essential = hat(target_from_source[..., :3, 3]) @ target_from_source[..., :3, :3]
    lines = homogeneous(source_xy) @ essential.mT
    length = lines[..., :2].norm(dim=-1, keepdim=True)
    lines = lines / torch.where(length > 1e-9, length, torch.inf)
    distance = lines @ homogeneous(target_xy).mT / sigma[..., None, None]
    return distance.square().clamp_max(FARTHEST)
