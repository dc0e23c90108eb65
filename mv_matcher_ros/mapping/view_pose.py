# SPDX-License-Identifier: Apache-2.0
"""The pose of a view from landmarks of a map, with a covariance that hears theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.config import LoopSettings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.absolute_pose import refine_absolute_pose
from mv_matcher_ros.geometry.pose_ransac import estimate_absolute_pose
from mv_matcher_ros.mapping.point_aggregation import PointMatches

# Width that settings in pixels are stated for.
REFERENCE_WIDTH = 640.0
# Refinements; between them observations are weighed and chosen anew.
ROUNDS = 3
ITERATIONS = 10
# Standard deviations beyond which an observation is none of the pose's.
FARTHEST = 3.5
# A point says nothing nearer to the plane of the camera than this (cosine from its axis), or where
# its projection is uncertain by more than this (normalised plane).
LEAST_COSINE, ANYWHERE = 0.01, 1.0


@dataclass(frozen=True)
class ViewPose:
    """Where a view was.

    Attributes:
        world_from_body: (4, 4) in the frame of the points.
        covariance: (6, 6) of its right perturbation, x y z rx ry rz.
        inlier: (K,) bool, of the matches.
        depth: (K,) of the points along the optical axis, units of the points.
        spread: share of the image that the inliers span, by their standard deviations.
    """

    world_from_body: Tensor
    covariance: Tensor
    inlier: Tensor
    depth: Tensor
    spread: float

    @property
    def inliers(self) -> int:
        """How many."""
        return int(self.inlier.sum())


def find_view_pose(
    matches: PointMatches,
    plane_xy: Tensor,
    sigma: Tensor,
    camera: Camera,
    threshold: float,
    guesses: Tensor | None = None,
) -> ViewPose | None:
    """Robust start, then robust refinement with the uncertainty of points and keypoints.

    Args:
        matches: of the view.
        plane_xy, sigma: (N, 2), (N,) all keypoints of the view and their standard deviations.
        camera: of the view, for its mount.
        threshold: largest error of an inlier of the start, on the normalised plane.
        guesses: (G, 4, 4) body_from_world poses to begin with, too.

    Returns:
        None where no pose explains five matches, or they do not determine one.
    """
    xy, points = plane_xy[matches.feature], matches.points
    mount = torch.from_numpy(camera.body_from_camera.copy())
    starts = None if guesses is None else se3.inverse(mount) @ guesses
    start = estimate_absolute_pose(points, xy, threshold, matches.confidence, guesses=starts)
    if not start.valid:
        return None
    pose, inlier = start.camera_from_world, start.inliers
    for _ in range(ROUNDS):
        information = _information(pose, points, matches.spread, sigma[matches.feature])
        weighed = information * (matches.confidence * inlier)[:, None, None]
        refined = refine_absolute_pose(
            points, xy, pose, weighed, kernel='cauchy', kernel_width=2.0, iterations=ITERATIONS
        )
        if not bool(refined.valid):
            return None
        pose = refined.camera_from_world
        local = se3.transform(pose, points)
        ahead = local[:, 2] > 0
        error = local[:, :2] / torch.where(ahead, local[:, 2], 1.0)[:, None] - xy
        squared = (error[:, None] @ information @ error[:, :, None])[:, 0, 0]
        near = error.norm(dim=1) <= 2.0 * threshold
        known = information[:, 0, 0] > 0
        inlier = ahead & known & near & (squared <= FARTHEST**2)
    if int(inlier.sum()) < 5:
        return None
    # Residuals larger than they should be make the pose as much less certain.
    excess = (squared[inlier].mean() / 2.0).clamp_min(1.0)
    covariance = excess * torch.linalg.pinv(refined.information, hermitian=True)
    adjoint = se3.adjoint(mount)
    seen = xy[inlier] * camera.focal_px
    spread = float(seen.std(dim=0).prod().sqrt()) / (camera.width * camera.height) ** 0.5
    return ViewPose(
        se3.inverse(pose) @ se3.inverse(mount),
        adjoint @ covariance @ adjoint.T,
        inlier,
        local[:, 2],
        spread,
    )


def agreed_pose(
    matches: PointMatches,
    plane_xy: Tensor,
    sigma: Tensor,
    camera: Camera,
    settings: LoopSettings,
    guesses: Tensor | None = None,
) -> ViewPose | str:
    """The pose, if enough of the matches agree on it, or in a few words why there is none.

    Args:
        settings: what is enough; the others as for `find_view_pose`.
    """
    if len(matches) < settings.min_inliers:
        return f'{len(matches)} matches with landmarks'
    threshold = settings.max_error_px * camera.width / REFERENCE_WIDTH / camera.focal_px
    found = find_view_pose(matches, plane_xy, sigma, camera, threshold, guesses)
    if found is None:
        return 'no pose explains the matches'
    if found.inliers < settings.min_inliers:
        return f'only {found.inliers} landmarks agree'
    if found.inliers < settings.min_inlier_share * len(matches):
        return f'only {100 * found.inliers / len(matches):.0f} % of the matches agree'
    if found.spread < settings.min_spread:
        return 'the landmarks that agree lie in one corner'
    return found


def _information(pose: Tensor, points: Tensor, spread: Tensor, sigma: Tensor) -> Tensor:
    """(K, 2, 2) inverse covariances of observations: of keypoint and projected point.

    Zero where the view does not say where a point would be seen: it lies at its side or behind
    it, or could be anywhere in the image.
    """
    local = se3.transform(pose, points)
    x, y = local[:, 0], local[:, 1]
    z = local[:, 2].clamp_min(1e-6)
    zero = torch.zeros_like(z)
    rows = torch.stack([
        torch.stack([1.0 / z, zero, -x / z**2], dim=1),
        torch.stack([zero, 1.0 / z, -y / z**2], dim=1),
    ], dim=1)  # fmt: skip
    jacobian = rows @ pose[:3, :3]
    noise = (sigma**2)[:, None, None] * torch.eye(2, dtype=sigma.dtype)
    total = jacobian @ spread @ jacobian.mT + noise
    ahead = local[:, 2] > LEAST_COSINE * local.norm(dim=1)
    known = ahead & (total.diagonal(dim1=1, dim2=2).sum(1) < ANYWHERE**2)  # no number: not known
    whole = torch.where(known[:, None, None], total, torch.eye(2, dtype=total.dtype))
    return torch.linalg.inv(whole) * known[:, None, None]
