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

from mv_matcher_ros.geometry.epipolar import epipolar_lines, homogeneous
from mv_matcher_ros.geometry.se3 import inverse

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
        """From (B, V, 4, 4) poses in one world; all in the type of `plane_xy`.

        Relative poses are formed before they are rounded: far from the origin the poses themselves
        have no room for what lies between them.
        """
        relative = inverse(world_from_camera)[:, :, None] @ world_from_camera[:, None]
        kind = plane_xy.dtype
        return cls(plane_xy, relative.to(kind), sigma.to(kind))

    def to(self, device: torch.device | str) -> KnownPoses:
        """The same on a device."""
        return KnownPoses(
            self.plane_xy.to(device), self.target_from_source.to(device), self.sigma.to(device)
        )

    def squared_distance(self, others: Tensor) -> Tensor:
        """(B, V, W, N, N) squared distances from epipolar lines, at most `FARTHEST`.

        [batch, source, w, i, j] is that of keypoint j of view others[source, w] from the line of
        keypoint i of the source view, in units of sigma; 0 where the pose is unknown or a pure
        rotation, which has no epipolar lines.

        Args:
            others: (V, W) int64 views.
        """
        source = torch.arange(len(others), device=others.device)[:, None]
        pose, sigma = self.target_from_source[:, others, source], self.sigma[:, others, source]
        return squared_epipolar_distance(
            self.plane_xy[:, :, None], self.plane_xy[:, others], pose, sigma
        )


def squared_epipolar_distance(
    source_xy: Tensor, target_xy: Tensor, target_from_source: Tensor, sigma: Tensor
) -> Tensor:
    """Squared distance of each target keypoint from the epipolar line of each source keypoint.

    Args:
        source_xy: (..., N, 2) and target_xy: (..., M, 2) on the normalised planes.
        target_from_source: (..., 4, 4).
        sigma: (...) standard deviation of the distance; inf where the pose is not known.

    Returns:
        (..., N, M) in units of sigma squared, at most `FARTHEST`; 0 without a pose or baseline,
        with a pose that is no number and for a keypoint that is none.
    """
    known = sigma.isfinite() & target_from_source.isfinite().all(-1).all(-1)
    eye = torch.eye(4, dtype=target_from_source.dtype, device=target_from_source.device)
    pose = torch.where(known[..., None, None], target_from_source, eye)
    per_sigma = torch.where(known, 1.0 / sigma, 0.0)[..., None, None]
    lines, points = per_sigma * epipolar_lines(pose, source_xy), homogeneous(target_xy)
    lines, points = (torch.where(x.isfinite().all(-1, True), x, 0.0) for x in (lines, points))
    return (lines @ points.mT).square().clamp_max(FARTHEST)
