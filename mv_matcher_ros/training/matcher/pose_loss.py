# SPDX-License-Identifier: Apache-2.0
"""How far poses from matches and confidences are off: the loss of the end-to-end stage.

Source: Roessle and Niessner, End2End Multi-View Feature Matching, ICCV 2023, section 3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from mv_matcher_ros.config import PoseEstimatorSettings
from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.matcher import Assignment
from mv_matcher_ros.odometry.pair_poses import PairMatches, weighted_poses
from mv_matcher_ros.odometry.pose_estimator import PoseEstimator
from mv_matcher_ros.training.matcher.batches import MatcherBatch
from mv_matcher_ros.training.matcher.losses import pose_angles

# Pairs with less in common teach nothing of a pose.
LEAST_OVERLAP = 0.1
# A pose that is farther off is another solution, not a worse one: its gradient leads nowhere.
LARGEST_RAD = 0.5


@dataclass(frozen=True)
class PoseLoss:
    """Mean angles over the pairs whose pose was found, each at most `LARGEST_RAD`.

    Attributes:
        rotation, translation: () radians, zero without pairs.
        found: how many pairs took part.
    """

    rotation: Tensor
    translation: Tensor
    found: int

    @classmethod
    def of(cls, estimate: Tensor, truth: Tensor, use: Tensor) -> PoseLoss:
        """From (P, 4, 4) poses of b from a, where `use` (P,)."""
        count = max(int(use.sum()), 1)
        rotation, translation = (
            angle.clamp_max(LARGEST_RAD).sum() / count
            for angle in pose_angles(estimate[use], truth[use])
        )
        return cls(rotation, translation, int(use.sum()))

    @staticmethod
    def mean(parts: list[PoseLoss]) -> PoseLoss:
        """Over several tuples, each pair the same."""
        count = sum(part.found for part in parts)
        share = [part.found / max(count, 1) for part in parts]
        rotation = sum(
            (p.rotation * s for p, s in zip(parts, share, strict=True)), torch.zeros(())
        )
        moved = sum(
            (p.translation * s for p, s in zip(parts, share, strict=True)), torch.zeros(())
        )
        return PoseLoss(rotation, moved, count)


def eight_point_loss(assignment: Assignment, batch: MatcherBatch) -> PoseLoss:
    """Of the weighted eight-point of each pair."""
    pairs = list(combinations(range(batch.views.views), 2))
    parts = []
    for number in range(len(batch.overlap)):
        matches = PairMatches.of(
            assignment.matches(number), pairs, batch.plane_xy[number], batch.sigma[number]
        )
        poses = weighted_poses(matches)
        truth, use = _truth(batch, number, matches.pairs)
        use = use & poses.determined
        parts.append(PoseLoss.of(poses.b_from_a, truth, use))
    return PoseLoss.mean(parts)


def adjusted_loss(assignment: Assignment, batch: MatcherBatch) -> PoseLoss:
    """Of the poses of all views after bundle adjustment, by the implicit function theorem."""
    estimator = PoseEstimator(PoseEstimatorSettings())
    pairs = torch.tensor(list(combinations(range(batch.views.views), 2)))
    parts = []
    for number in range(len(batch.overlap)):
        found = estimator.estimate(
            batch.plane_xy[number],
            batch.sigma[number],
            sure(assignment.matches(number)),
            gradient='implicit',
        )
        a, b = pairs.T
        camera_from_world = se3.inverse(found.world_from_body)
        estimate = camera_from_world[b] @ found.world_from_body[a]
        truth, use = _truth(batch, number, pairs)
        use = use & found.found[a] & found.found[b] & found.adjusted
        parts.append(PoseLoss.of(estimate, truth, use))
    return PoseLoss.mean(parts)


def sure(matches: Matches, least: float = 0.05) -> Matches:
    """Without the matches that count for nothing: they only make the adjustment larger."""
    kept = matches.confidence.detach() >= least
    return Matches(matches.views[kept], matches.keypoints[kept], matches.confidence[kept])


def _truth(batch: MatcherBatch, number: int, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 4, 4) true poses of b from a, and (P,) which of them a network can learn from."""
    a, b = pairs.T
    poses = batch.world_from_camera[number]
    truth = se3.inverse(poses[b]) @ poses[a]
    overlap = batch.overlap[number]
    shared = 0.5 * (overlap[a, b] + overlap[b, a]) >= LEAST_OVERLAP
    return truth, shared & (truth[:, :3, 3].norm(dim=1) > 1e-6)
