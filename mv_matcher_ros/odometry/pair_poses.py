# SPDX-License-Identifier: Apache-2.0
"""Relative pose of every pair of views from its matches and their confidences.

The weighted eight-point (End2End, section 3.4) for all pairs at once; where the confidences or the
geometry do not carry it, a robust solver, one pair at a time. Either is a start only: what counts
is the pose with the least Sampson errors near it. The eight-point's own error is that of a matrix
with nine free numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from mv_matcher_ros.config import PoseEstimatorSettings
from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import (
    eight_point,
    essential_from_pose,
    homogeneous,
    pose_from_essential,
    sampson_error,
)
from mv_matcher_ros.geometry.homography import rotation_from_matches
from mv_matcher_ros.geometry.relative_pose import RefinedRelativePose, refine_relative_pose
from mv_matcher_ros.geometry.robust_kernel import Kernel
from mv_matcher_ros.odometry.robust_pose import FEWEST, robust_pose

# Cheirality: share of the matches near their lines that must lie in front of both views.
MIN_SUPPORT = 0.7
# The eight-point takes the most believed matches only: wrong ones are rare among them. It is begun
# with each of these counts: fewer hold fewer wrong ones, more say more.
MOST_BELIEVED = (128, 32)
# A transfer error has noise in two directions and from both views: what is as rare as three sigma
# across a line is √2 times the root of the same quantile of χ² with two degrees of freedom.
TRANSFER_SHARE = 1.62


class PairMethod(IntEnum):
    """What the relative pose of a pair comes from."""

    NONE = 0  # too few matches, or they do not agree on one geometry
    KNOWN = 1  # rig, or both views solved before
    EIGHT_POINT = 2  # refined from the weighted eight-point
    ROBUST = 3  # refined from LO-RANSAC of PoseLib where installed, else MAGSAC++ of OpenCV
    ROTATION = 4  # the views differ by a turn only: no baseline


@dataclass(frozen=True)
class PairMatches:
    """The matches of P pairs with room for K each.

    Attributes:
        pairs: (P, 2) int64 views.
        keypoint: (P, 2, K) int64 in each of the two views.
        plane_xy: (P, 2, K, 2) float64 on the normalised plane of each view.
        sigma: (P, K) standard deviation of a match across its epipolar line, on the plane.
        weight: (P, K) confidence, 0 for padding.
    """

    pairs: Tensor
    keypoint: Tensor
    plane_xy: Tensor
    sigma: Tensor
    weight: Tensor

    @classmethod
    def of(
        cls,
        matches: Matches,
        pairs: Sequence[tuple[int, int]],
        plane_xy: Tensor,
        sigma: Tensor,
    ) -> PairMatches:
        """Pack matches by pair.

        Args:
            matches: between views of `pairs`; matches of other pairs are left out.
            plane_xy: (V, N, 2) float64; sigma: (V, N) of one coordinate.
        """
        pair = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2)
        number = torch.full((len(plane_xy), len(plane_xy)), -1, dtype=torch.int64)
        number[pair[:, 0], pair[:, 1]] = torch.arange(len(pair))
        row = number[matches.views[:, 0], matches.views[:, 1]]
        order = row.argsort(stable=True)
        order = order[row[order] >= 0]
        row = row[order]
        counts = torch.bincount(row, minlength=len(pair))
        column = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        room = int(counts.max()) if len(pair) else 0
        index = torch.zeros(len(pair), room, dtype=torch.int64)
        index[row, column] = order
        used = torch.zeros(len(pair), room, dtype=torch.bool)
        used[row, column] = True
        confidence = torch.nan_to_num(matches.confidence.to(plane_xy.dtype), nan=0.0)
        if len(matches) == 0:
            keypoint = torch.zeros(len(pair), 2, room, dtype=torch.int64)
            weight = plane_xy.new_zeros(len(pair), room)
        else:
            keypoint = matches.keypoints[index].transpose(1, 2)
            weight = torch.where(used, confidence[index], 0.0)
        view = pair[:, :, None]
        noise = sigma[view, keypoint].square().mean(1).sqrt()
        return cls(pair, keypoint, plane_xy[view, keypoint], noise, weight)

    @property
    def used(self) -> Tensor:
        """(P, K) bool, no padding."""
        return self.weight > 0

    def of_pairs(self, rows: Tensor) -> PairMatches:
        """Of the pairs (R,) alone."""
        return PairMatches(*(value[rows] for value in vars(self).values()))

    def most_believed(self, count: int) -> PairMatches:
        """Of each pair those of the largest weights."""
        weight, index = self.weight.topk(min(count, self.weight.shape[1]), dim=1)
        both = index[:, None].expand(-1, 2, -1)
        return PairMatches(
            self.pairs,
            self.keypoint.gather(2, both),
            self.plane_xy.gather(2, both[..., None].expand(*both.shape, 2)),
            self.sigma.gather(1, index),
            weight,
        )


@dataclass(frozen=True)
class PairPoses:
    """Relative poses of P pairs.

    Attributes:
        b_from_a: (P, 4, 4); the translation has unit length where the method is EIGHT_POINT or
            ROBUST, its true length where KNOWN, and is zero for ROTATION.
        method: (P,) int64 `PairMethod`.
        inlier: (P, K) bool, agrees with the pose.
        mass: (P,) confidence of the inliers, summed.
        share: (P,) share of all confidence that it is.
    """

    b_from_a: Tensor
    method: Tensor
    inlier: Tensor
    mass: Tensor
    share: Tensor

    def of_pairs(self, rows: Tensor) -> PairPoses:
        """Of the pairs (R,) alone."""
        return PairPoses(*(value[rows] for value in vars(self).values()))

    def with_rows(self, rows: Tensor, other: PairPoses) -> PairPoses:
        """Those of other pairs (R,) in place of the rows (R,)."""
        return PairPoses(*(
            old.index_copy(0, rows, new)
            for old, new in zip(vars(self).values(), vars(other).values(), strict=True)
        ))  # fmt: skip


def pair_poses(
    matches: PairMatches, settings: PoseEstimatorSettings, known: Tensor | None = None
) -> PairPoses:
    """Relative pose of each pair, or `PairMethod.NONE`.

    Args:
        known: (P,) bool, pairs that need none.
    """
    if known is not None:
        matches = replace(matches, weight=torch.where(known[:, None], 0.0, matches.weight))
    enough = matches.used.sum(1) >= FEWEST
    if settings.relative == 'robust':
        found = _none(matches)
    else:
        found = _judged(_best_start(matches), PairMethod.EIGHT_POINT, matches, settings)
        holds = (found.mass >= settings.min_mass) & (found.share >= settings.min_inlier_share)
        holds = enough & (holds | (settings.relative == 'eight_point'))
        found = replace(found, method=torch.where(holds, found.method, int(PairMethod.NONE)))
    if settings.relative != 'eight_point':
        found = _with_robust(found, enough, matches, settings)
    return _turns_without_baseline(found, matches, settings)


@dataclass(frozen=True)
class WeightedPoses:
    """Poses of P pairs by the weighted eight-point alone.

    Attributes:
        b_from_a: (P, 4, 4), translation of unit length.
        determined: (P,) bool, by these matches and in front of both views.
    """

    b_from_a: Tensor
    determined: Tensor


def weighted_poses(matches: PairMatches) -> WeightedPoses:
    """The weighted eight-point of each pair; differentiable by confidences and coordinates.

    Source: End2End, section 3.4.
    """
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    solved = eight_point(a, b, matches.weight)
    pose = pose_from_essential(solved.essential, a, b, matches.weight)
    return WeightedPoses(pose.b_from_a, ~solved.degenerate & (pose.support >= MIN_SUPPORT))


@dataclass(frozen=True)
class _Refinement:
    """Of poses on the Sampson error, robustly; differentiable."""

    kernel: Kernel
    width: float  # in sigma
    iterations: int

    def refined(self, b_from_a: Tensor, matches: PairMatches) -> RefinedRelativePose:
        """Of (..., P, 4, 4) starts."""

        def each(part: Tensor) -> Tensor:
            return part.expand(*b_from_a.shape[:-3], *part.shape)

        return refine_relative_pose(
            b_from_a,
            each(matches.plane_xy[:, 0]),
            each(matches.plane_xy[:, 1]),
            each(matches.weight),
            each(matches.sigma),
            self.kernel,
            self.width,
            self.iterations,
        )


# From an eight-point: matches far off are still heard.
FROM_FAR = _Refinement('cauchy', 6.0, 6)
# Last: what is off by more than the noise is let go of.
AT_LAST = _Refinement('geman_mcclure', 1.0, 6)


def _best_start(matches: PairMatches) -> Tensor:
    """(P, 4, 4) of the eight-points of some and of fewer matches that with the least errors."""
    believed = [matches.most_believed(count) for count in MOST_BELIEVED]
    starts = torch.stack([weighted_poses(some).b_from_a for some in believed])
    refined = FROM_FAR.refined(starts, believed[0])
    best = refined.cost.argmin(0)
    return refined.b_from_a[best, torch.arange(len(best))]


def _none(matches: PairMatches) -> PairPoses:
    """No pose of any pair."""
    weight = matches.weight
    eye = torch.eye(4, dtype=weight.dtype).expand(len(weight), 4, 4)
    none = torch.full((len(weight),), int(PairMethod.NONE))
    nothing = weight.new_zeros(len(weight))
    return PairPoses(eye, none, torch.zeros_like(matches.used), nothing, nothing)


def _judged(
    start: Tensor, method: PairMethod, matches: PairMatches, settings: PoseEstimatorSettings
) -> PairPoses:
    """What comes of (P, 4, 4) starts, and how much of the matches agrees with it."""
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    essential = essential_from_pose(AT_LAST.refined(start, matches).b_from_a)
    error = sampson_error(essential, a, b).abs() / matches.sigma
    near = matches.used & (error < settings.inlier)
    pose = pose_from_essential(essential, a, b, torch.where(near, matches.weight, 0.0))
    inlier = near & pose.in_front
    weight = matches.weight.detach()
    mass = (weight * inlier).sum(1)
    share = mass / weight.sum(1).clamp_min(1e-12)
    methods = torch.where(pose.support < MIN_SUPPORT, int(PairMethod.NONE), int(method))
    return PairPoses(pose.b_from_a, methods, inlier, mass, share)


def _with_robust(
    found: PairPoses, enough: Tensor, matches: PairMatches, settings: PoseEstimatorSettings
) -> PairPoses:
    """Where there is no pose, that of a robust solver, if it explains enough of the matches.

    Args:
        enough: (P,) bool, pairs with matches for it.
    """
    starts = {}
    for pair in (enough & (found.method == PairMethod.NONE)).nonzero()[:, 0].tolist():
        used = matches.used[pair]
        best_first = matches.weight[pair].detach().argsort(descending=True)[: int(used.sum())]
        a, b = (matches.plane_xy[pair, view, best_first].detach() for view in (0, 1))
        noise = float(matches.sigma[pair, used].median())
        pose = robust_pose(a, b, settings.inlier * noise)
        if pose is not None:
            starts[pair] = pose
    if not starts:
        return found
    rows = torch.tensor(list(starts))
    some = matches.of_pairs(rows)
    judged = _judged(torch.stack(list(starts.values())), PairMethod.ROBUST, some, settings)
    least = (settings.min_robust_share * some.used.sum(1)).clamp_min(FEWEST)
    good = (judged.inlier.sum(1) >= least) & (judged.method != PairMethod.NONE)
    return found.with_rows(rows[good], judged.of_pairs(good))


def _turns_without_baseline(
    found: PairPoses, matches: PairMatches, settings: PoseEstimatorSettings
) -> PairPoses:
    """Pairs that a rotation alone explains as well get no translation: its direction is noise."""
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    weight = torch.where(found.inlier, matches.weight, 0.0)
    nothing = found.method == PairMethod.NONE
    weight = torch.where(nothing[:, None], matches.weight, weight)
    rotation = rotation_from_matches(a, b, weight)
    near = turned_near(rotation, matches, settings)
    mass = (matches.weight * near).sum(1).detach()
    total = torch.where(nothing, matches.weight.detach().sum(1), found.mass)
    turn = (mass >= settings.rotation_share * total) & (near.sum(1) >= FEWEST)
    pose = se3.compose_matrix(rotation, torch.zeros_like(rotation[..., 0]))
    return PairPoses(
        torch.where(turn[:, None, None], pose, found.b_from_a),
        torch.where(turn, int(PairMethod.ROTATION), found.method),
        torch.where(turn[:, None], near, found.inlier),
        torch.where(turn, mass, found.mass),
        torch.where(turn, mass / matches.weight.detach().sum(1).clamp_min(1e-12), found.share),
    )


def turned_near(rotation: Tensor, matches: PairMatches, settings: PoseEstimatorSettings) -> Tensor:
    """(P, K) bool matches that rotations (P, 3, 3) of b from a explain."""
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    turned = homogeneous(a) @ rotation.mT
    ahead = turned[..., 2] > 1e-6
    residual = turned[..., :2] / torch.where(ahead, turned[..., 2], 1.0)[..., None] - b
    limit = TRANSFER_SHARE * settings.inlier * matches.sigma
    return ahead & (residual.norm(dim=-1) < limit) & matches.used


def with_known(
    found: PairPoses,
    matches: PairMatches,
    known: Tensor,
    b_from_a: Tensor,
    settings: PoseEstimatorSettings,
) -> PairPoses:
    """The pairs' poses, those that are known in place of what was found."""
    if not bool(known.any()):
        return found
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    error = sampson_error(essential_from_pose(b_from_a), a, b).abs()
    inlier = matches.used & (error < settings.inlier * matches.sigma)
    still = b_from_a[:, :3, 3].norm(dim=1, keepdim=True) == 0  # a turn has no epipolar lines
    inlier = torch.where(still, turned_near(b_from_a[:, :3, :3], matches, settings), inlier)
    mass = (matches.weight * inlier).sum(1).detach()
    share = mass / matches.weight.detach().sum(1).clamp_min(1e-12)
    return replace(
        found,
        b_from_a=torch.where(known[:, None, None], b_from_a, found.b_from_a),
        method=torch.where(known, int(PairMethod.KNOWN), found.method),
        inlier=torch.where(known[:, None], inlier, found.inlier),
        mass=torch.where(known, mass, found.mass),
        share=torch.where(known, share, found.share),
    )
