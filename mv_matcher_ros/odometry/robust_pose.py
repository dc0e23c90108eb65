# SPDX-License-Identifier: Apache-2.0
"""Two-view geometry from matches with outliers, by the kept libraries."""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.geometry.epipolar import pose_from_essential
from mv_matcher_ros.geometry.relative_pose import refine_relative_pose

# Fewest matches a relative pose can come from.
FEWEST = 8
# Most samples of the robust solver: enough for a quarter of inliers.
MOST_SAMPLES = 10_000


def has_poselib() -> bool:
    """PoseLib is installed."""
    return importlib.util.find_spec('poselib') is not None


def robust_pose(plane_a: Tensor, plane_b: Tensor, threshold: float) -> Tensor | None:
    """(4, 4) b from a with unit translation from (K, 2) matches with outliers, None if it fails.

    The matches come in order of confidence, the best first: samples are drawn from them first.

    LO-RANSAC of PoseLib where it is installed, else MAGSAC++ of OpenCV.
    """
    try:
        import poselib
    except ImportError:
        return _robust_opencv(plane_a, plane_b, threshold)
    # In units of the threshold: its other tolerances are made for pixels.
    focal = 1.0 / threshold
    size = {'model': 'SIMPLE_PINHOLE', 'width': 1, 'height': 1, 'params': [focal, 0.0, 0.0]}
    pose, _ = poselib.estimate_relative_pose(
        focal * plane_a.numpy(),
        focal * plane_b.numpy(),
        size,
        size,
        {
            'max_epipolar_error': 1.0,
            'min_iterations': 100,
            'max_iterations': MOST_SAMPLES,
            'progressive_sampling': True,
        },
        {},
    )
    result = torch.eye(4, dtype=torch.float64)
    result[:3, :4] = torch.from_numpy(pose.Rt)
    length = result[:3, 3].norm()
    if not bool(result.isfinite().all()) or float(length) < 1e-12:
        return None
    result[:3, 3] /= length
    return result


def _robust_opencv(plane_a: Tensor, plane_b: Tensor, threshold: float) -> Tensor | None:
    essential, inlier = robust_essential(plane_a.numpy(), plane_b.numpy(), threshold)
    if essential is None or int(inlier.sum()) < FEWEST:
        return None
    plane_a, plane_b = plane_a[inlier], plane_b[inlier]
    start = pose_from_essential(essential, plane_a, plane_b).b_from_a
    return refine_relative_pose(start, plane_a, plane_b, sigma=threshold / 3.0).b_from_a


def robust_essential(
    first: np.ndarray, second: np.ndarray, threshold: float
) -> tuple[Tensor | None, Tensor]:
    """Essential matrix second from first and its (N,) inliers, by OpenCV's MAGSAC++."""
    essential, inlier = cv2.findEssentialMat(
        first,
        second,
        np.eye(3),
        method=cv2.USAC_MAGSAC,
        prob=0.9999,
        threshold=threshold,
        maxIters=2000,
    )
    if essential is None or essential.shape != (3, 3) or inlier is None:
        return None, torch.zeros(len(first), dtype=torch.bool)
    return torch.from_numpy(essential), torch.from_numpy(inlier[:, 0] > 0)
