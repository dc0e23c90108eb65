# SPDX-License-Identifier: Apache-2.0
"""How a pose between two views agrees with their matches, and robust fits of a part of it.

Kept may be the rotation, the baseline, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import (
    essential_from_pose,
    homogeneous,
    sampson_error,
    symmetric_epipolar_error,
)
from mv_matcher_ros.odometry.landmarks import inverse_depth_from_pair
from mv_matcher_ros.odometry.robust_pose import robust_essential

# Share of the matches that lies near the lines of a rig that is right: 0.89 to 1.0 on real stereo
# recordings (sub-pixel calibration, 1226 to 320 px wide), 0.02 to 0.3 on rigs that are wrong.
EXPLAINED_SHARE = 0.6
# Depth has a sign only where the disparity is larger than the tolerance.
MIN_DECISIVE = 15
# Matches behind the cameras for one in front: the true rigs have none, or one in fifty.
MAX_BEHIND_RATIO = 0.25
# With half of the matches wrong, 100 pairs hold a good one with probability 1 − 0.75^100.
HYPOTHESES = 100
ITERATIONS = 12
# Step of the numeric derivative: far above the rounding of float64, far below a pixel.
DERIVATIVE_STEP = 1e-6


@dataclass(frozen=True)
class Agreement:
    """How matches agree with a rig.

    Attributes:
        distance: (K,) from the epipolar lines, mean square of both views.
        near: (K,) bool, within the tolerance.
        ahead, behind: how many of those have a depth that is clearly positive, clearly negative.
    """

    distance: Tensor
    near: Tensor
    ahead: int
    behind: int

    @property
    def share(self) -> float:
        """Share of the matches near their lines."""
        return float(self.near.double().mean())

    @property
    def behind_cameras(self) -> bool:
        """Whether too many matches lie behind the cameras."""
        return self.behind >= MIN_DECISIVE and self.behind > MAX_BEHIND_RATIO * self.ahead

    @property
    def reversed_depth(self) -> bool:
        """Whether the scene lies behind the cameras rather than in front."""
        return self.behind >= MIN_DECISIVE and self.behind > self.ahead

    @property
    def explains(self) -> bool:
        """Whether the rig explains lines and depths, and there are depths."""
        enough = self.share >= EXPLAINED_SHARE and self.ahead >= MIN_DECISIVE
        return enough and not self.behind_cameras


def agreement(second_from_first: Tensor, a: Tensor, b: Tensor, tolerance: float) -> Agreement:
    """How matches agree with a rig.

    Args:
        second_from_first: (4, 4). a, b: (K, 2) matched plane coordinates. tolerance: on the plane.
    """
    squared = symmetric_epipolar_error(essential_from_pose(second_from_first), a, b)
    distance = (0.5 * squared).sqrt()
    near = distance < tolerance
    inverse_depth, _ = inverse_depth_from_pair(a, b, second_from_first)
    slope = second_from_first[:2, 3] - b * second_from_first[2, 3]
    disparity = inverse_depth * slope.norm(dim=1)
    return Agreement(
        distance,
        near,
        int((near & (disparity > tolerance)).sum()),
        int((near & (disparity < -tolerance)).sum()),
    )


def centre_of(second_from_first: Tensor) -> Tensor:
    """(3,) unit direction of the second camera from the first, in the first one's axes."""
    return torch.nn.functional.normalize(se3.inverse(second_from_first)[:3, 3], dim=0)


def fit_baseline(second_from_first: Tensor, a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """The rotation kept, the direction of the baseline that explains most matches.

    With known rotation, x_b^T hat(t) R x_a = t · (R x_a × x_b) is linear in t: two matches give a
    hypothesis, and the best is refined by the smallest eigenvector over its inliers.

    Args:
        second_from_first: (4, 4), its rotation is kept.
        a, b: (K, 2) matched plane coordinates, K at least 2.
        tolerance: distance from the epipolar line of an inlier, on the plane.

    Returns:
        (4, 4) second_from_first with a baseline of length one, to the side where most depths are
        positive.
    """
    rotation = second_from_first[:3, :3]
    turned, seen = homogeneous(a) @ rotation.T, homogeneous(b)
    normals = torch.linalg.cross(turned, seen)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(a), (HYPOTHESES, 2), generator=generator)
    found = torch.linalg.cross(normals[chosen[:, 0]], normals[chosen[:, 1]])
    length = found.norm(dim=1, keepdim=True)
    found = found[length[:, 0] > 0] / length[length[:, 0] > 0]
    if len(found) == 0:
        return second_from_first
    errors = symmetric_epipolar_error(se3.hat(found) @ rotation, a, b)
    near = errors < 2.0 * tolerance**2
    best = int(near.sum(1).argmax())
    translation, inlier = found[best], near[best]
    for _ in range(2):
        normal = normals[inlier]
        _, vectors = torch.linalg.eigh(normal.T @ normal)
        refined = vectors[:, 0]
        passed = symmetric_epipolar_error(se3.hat(refined) @ rotation, a, b) < 2.0 * tolerance**2
        if int(passed.sum()) < int(inlier.sum()):
            break
        translation, inlier = refined, passed
    # x_b ~ R x_a + ρ t, so that R x_a × x_b = −ρ t × x_b: the sign of the inverse depth ρ.
    depth = -(normals * torch.linalg.cross(translation.expand_as(seen), seen)).sum(1)[inlier]
    sign = -1.0 if int((depth < 0).sum()) > int((depth > 0).sum()) else 1.0
    return se3.compose_matrix(rotation, sign * translation)


def fit_rotation(second_from_first: Tensor, a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """The direction of the baseline kept, the rotation that explains the matches.

    Gauss-Newton on the Sampson error with a Cauchy kernel, whose width shrinks with the median
    error so that offsets of many pixels are still pulled in.

    Args, returns: as `fit_baseline`; the second camera turns, its centre stays.
    """
    pose = second_from_first
    axes = torch.eye(6, dtype=pose.dtype)[3:] * DERIVATIVE_STEP
    turns = se3.exp(torch.cat([torch.zeros_like(axes[:1]), axes, -axes]))
    for _ in range(ITERATIONS):
        # Turned on the left: the centre of the second camera stays where it is in the first.
        errors = sampson_error(essential_from_pose(turns @ pose), a, b)
        residual, jacobian = errors[0], (errors[1:4] - errors[4:]).T / (2.0 * DERIVATIVE_STEP)
        width = residual.abs().median().clamp_min(0.5 * tolerance)
        weight = 1.0 / (1.0 + (residual / width).square())
        normal = jacobian.T @ (weight[:, None] * jacobian)
        # The rotation about the baseline of a far scene is not determined: damp, do not divide.
        damping = 1e-6 * normal.diagonal().sum() * torch.eye(3, dtype=pose.dtype)
        step = -torch.linalg.solve(normal + damping, jacobian.T @ (weight * residual))
        if not bool(step.isfinite().all()):
            break
        pose = se3.exp(torch.cat([torch.zeros_like(step), step])) @ pose
        if float(step.norm()) < 0.01 * tolerance:
            break
    return pose


def fit_pose(second_from_first: Tensor, a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """The pose that explains most matches, baseline of length one; the given one without such.

    Args, returns: as `fit_baseline`.
    """
    first, second = a.numpy(), b.numpy()
    essential, inlier = robust_essential(first, second, tolerance)
    if essential is None:
        return second_from_first
    _, rotation, translation, _ = cv2.recoverPose(
        essential.numpy(), first, second, np.eye(3), mask=inlier.numpy().astype(np.uint8)
    )
    return se3.compose_matrix(torch.from_numpy(rotation), torch.from_numpy(translation[:, 0]))
