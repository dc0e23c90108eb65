# SPDX-License-Identifier: Apache-2.0
"""How `pairs` gets a relative pose from the matches of two images."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mv_matcher_ros.cli.pair_matching import MatchedPair
    from mv_matcher_ros.config import PoseEstimatorSettings
    from mv_matcher_ros.datatypes import Array


class Solver(str, Enum):
    """Robust solvers of OpenCV and PoseLib, and the pose estimator of the odometry: as it is, or
    with one way only to begin its adjustment."""

    magsac = 'magsac'
    ransac = 'ransac'
    loransac = 'loransac'
    estimator = 'estimator'
    eight_point = 'eight_point'
    robust = 'robust'

    @property
    def full_name(self) -> str:
        """For results."""
        return {
            'magsac': 'opencv-usac-magsac',
            'ransac': 'opencv-ransac',
            'loransac': 'poselib-lo-ransac-and-adjustment',
            'estimator': 'weighted-eight-point-or-lo-ransac-and-adjustment',
            'eight_point': 'weighted-eight-point-and-adjustment',
            'robust': 'lo-ransac-and-adjustment',
        }[self.value]


@dataclass(frozen=True)
class PairSolver:
    """A solver with its threshold.

    Attributes:
        kind: which.
        threshold_px: error of an inlier; the pose estimator takes a third of it as sigma.
        estimator: settings of the pose estimator.
    """

    kind: Solver
    threshold_px: float
    estimator: PoseEstimatorSettings

    @property
    def name(self) -> str:
        """For results: poses depend on solver and threshold."""
        return f'{self.kind.full_name}-{self.threshold_px:g}px'

    def __call__(self, matched: MatchedPair) -> Array | None:
        """(4, 4) b_from_a, or None; the translation has unit length, or is zero for a turn."""
        threshold = self.threshold_px / matched.focal_px
        if self.kind in (Solver.estimator, Solver.eight_point, Solver.robust):
            both = self.kind is Solver.estimator
            chosen = {} if both else {'relative': self.kind.value}
            settings = self.estimator.model_copy(update=chosen)
            return _by_estimator(*matched.points, matched.confidence, threshold, settings)
        if self.kind is Solver.loransac:
            return _by_loransac(*matched.points, matched.confidence, threshold)
        return _by_opencv(*matched.points, threshold, self.kind)


def _by_estimator(
    points_a: Array,
    points_b: Array,
    confidence: Array,
    threshold: float,
    settings: PoseEstimatorSettings,
) -> Array | None:
    import numpy as np
    import torch

    from mv_matcher_ros.datatypes import Matches
    from mv_matcher_ros.odometry.pose_estimator import PoseEstimator

    count = len(points_a)
    plane = torch.from_numpy(np.stack([points_a, points_b]))
    number = torch.arange(count)
    matches = Matches(
        torch.tensor([[0, 1]]).expand(count, 2),
        torch.stack([number, number], dim=1),
        torch.from_numpy(confidence),
    )
    sigma = torch.full((2, count), threshold / 3.0, dtype=torch.float64)
    found = PoseEstimator(settings).estimate(plane, sigma, matches)
    length = float(found.world_from_body[1, :3, 3].norm())
    if not bool(found.found[1]):
        return None
    b_from_a = np.linalg.inv(found.world_from_body[1].numpy())
    b_from_a[:3, 3] /= max(length, 1e-12)
    return np.asarray(b_from_a)


def _by_loransac(
    points_a: Array, points_b: Array, confidence: Array, threshold: float
) -> Array | None:
    """Samples are drawn from confident matches first; the pose is refined over its inliers."""
    import numpy as np
    import torch

    from mv_matcher_ros.errors import MissingDependencyError
    from mv_matcher_ros.odometry.robust_pose import FEWEST, has_poselib, robust_pose

    if not has_poselib():
        raise MissingDependencyError('poselib', 'robust', '--solver loransac')
    if len(points_a) < FEWEST:
        return None
    order = np.argsort(-confidence, kind='stable')
    first, second = (torch.from_numpy(points[order]) for points in (points_a, points_b))
    found = robust_pose(first, second, threshold)
    return None if found is None else np.asarray(found.numpy())


def _by_opencv(points_a: Array, points_b: Array, threshold: float, solver: Solver) -> Array | None:
    import cv2
    import numpy as np

    if len(points_a) < 5:
        return None
    method = cv2.USAC_MAGSAC if solver is Solver.magsac else cv2.RANSAC
    try:
        essential, inlier = cv2.findEssentialMat(
            points_a, points_b, np.eye(3), method=method, prob=0.99999, threshold=threshold
        )
    except cv2.error:  # degenerate samples: some versions raise instead of returning nothing
        return None
    if essential is None or essential.shape[0] % 3 or essential.shape[1] != 3:
        return None
    best, best_count = None, 0
    for candidate in np.split(essential, essential.shape[0] // 3):
        count, rotation, translation, _ = cv2.recoverPose(
            candidate, points_a, points_b, np.eye(3), 1e9, mask=inlier.copy()
        )[:4]
        if count > best_count:
            best_count, best = count, np.eye(4)
            best[:3, :3], best[:3, 3] = rotation, translation[:, 0]
    return best
