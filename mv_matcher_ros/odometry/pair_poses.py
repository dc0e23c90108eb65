# SPDX-License-Identifier: Apache-2.0
"""Relative pose of every pair of views from its matches and their confidences.

The weighted eight-point (End2End, section 3.4) for all pairs at once; where the confidences or the
geometry do not carry it, a robust solver, one pair at a time and without gradient.
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
from mv_matcher_ros.geometry.robust_kernel import kernel_value_and_weight
from mv_matcher_ros.odometry.robust_pose import FEWEST, robust_pose

# Cheirality: share of the matches that must lie in front of both views.
MIN_SUPPORT = 0.7
# Matches count less from this many sigma off the epipolar geometry on (Cauchy).
KERNEL_WIDTH = 2.0
# A transfer error has noise in two directions and from both views: what is as rare as three sigma
# across a line is √2 times the root of the same quantile of χ² with two degrees of freedom.
TRANSFER_SHARE = 1.62


class PairMethod(IntEnum):
    """What the relative pose of a pair comes from."""

    NONE = 0  # too few matches, or they do not agree on one geometry
    KNOWN = 1  # rig, or both views solved before
    EIGHT_POINT = 2  # weighted eight-point; differentiable
    ROBUST = 3  # LO-RANSAC of PoseLib where installed, else MAGSAC++ of OpenCV
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


def pair_poses(
    matches: PairMatches, settings: PoseEstimatorSettings, known: Tensor | None = None
) -> PairPoses:
    """Relative pose of each pair, or `PairMethod.NONE`.

    Args:
        known: (P,) bool, pairs that need none.
    """
    if known is not None:
        matches = replace(matches, weight=torch.where(known[:, None], 0.0, matches.weight))
    first = weighted_poses(matches, settings)
    trusted = first.method == PairMethod.EIGHT_POINT
    if settings.relative == 'eight_point':
        return _turns_without_baseline(first, matches, settings)
    holds = (first.mass >= settings.min_mass) & (first.share >= settings.min_inlier_share)
    trusted = trusted & holds & (settings.relative == 'both')
    found = replace(first, method=torch.where(trusted, first.method, int(PairMethod.NONE)))
    for pair in (~trusted & (matches.used.sum(1) >= FEWEST)).nonzero()[:, 0].tolist():
        found = _with_robust(found, matches, pair, settings)
    return _turns_without_baseline(found, matches, settings)


def weighted_poses(matches: PairMatches, settings: PoseEstimatorSettings) -> PairPoses:
    """By the weighted eight-point, reweighted where the confidences alone do not carry it.

    Differentiable by confidences and coordinates; the method is EIGHT_POINT or NONE.
    """
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    found, essential = _eight_point(matches, matches.weight, settings)
    for _ in range(settings.reweightings):
        poor = (found.share < settings.min_inlier_share) | (found.method == PairMethod.NONE)
        poor = poor & matches.used.any(dim=1)
        if not bool(poor.any()):
            break
        error = (sampson_error(essential, a, b) / matches.sigma).detach()
        scale = _spread(error, matches)
        _, factor = kernel_value_and_weight((error / scale).square(), 'cauchy', KERNEL_WIDTH)
        again, there = _eight_point(matches, matches.weight * factor, settings)
        essential = torch.where(poor[:, None, None], there, essential)
        found = PairPoses(*(
            torch.where(poor.reshape(-1, *[1] * (old.ndim - 1)), new, old)
            for old, new in zip(vars(found).values(), vars(again).values(), strict=True)
        ))  # fmt: skip
    return found


def _eight_point(
    matches: PairMatches, weight: Tensor, settings: PoseEstimatorSettings
) -> tuple[PairPoses, Tensor]:
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    solved = eight_point(a, b, weight)
    pose = pose_from_essential(solved.essential, a, b, weight)
    method = torch.where(
        solved.degenerate | (pose.support < MIN_SUPPORT),
        int(PairMethod.NONE),
        int(PairMethod.EIGHT_POINT),
    )
    found = _judged(pose.b_from_a, method, solved.essential, pose.in_front, matches, settings)
    return found, solved.essential


def _spread(error: Tensor, matches: PairMatches) -> Tensor:
    """(P, 1) robust standard deviation of (P, K) errors, at least one sigma."""
    ranked = torch.where(matches.used, error.abs(), torch.inf).sort(dim=1).values
    middle = (matches.used.sum(1, keepdim=True) - 1).clamp_min(0) // 2
    if ranked.shape[1] == 0:
        return torch.ones(len(error), 1, dtype=error.dtype)
    return (1.4826 * ranked.gather(1, middle)).clamp(1.0, 1e6)


def _judged(
    b_from_a: Tensor,
    method: Tensor,
    essential: Tensor,
    in_front: Tensor,
    matches: PairMatches,
    settings: PoseEstimatorSettings,
) -> PairPoses:
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    error = sampson_error(essential, a, b).abs() / matches.sigma
    inlier = matches.used & in_front & (error < settings.inlier)
    weight = matches.weight.detach()
    mass = (weight * inlier).sum(1)
    share = mass / weight.sum(1).clamp_min(1e-12)
    return PairPoses(b_from_a, method, inlier, mass, share)


def _with_robust(
    found: PairPoses, matches: PairMatches, pair: int, settings: PoseEstimatorSettings
) -> PairPoses:
    """The pose of one pair by a robust solver, if that explains enough of its matches."""
    used = matches.used[pair]
    best_first = matches.weight[pair].detach().argsort(descending=True)[: int(used.sum())]
    a, b = (matches.plane_xy[pair, view, best_first].detach() for view in (0, 1))
    noise = float(matches.sigma[pair, used].median())
    pose = robust_pose(a, b, settings.inlier * noise)
    if pose is None:
        return found
    one = replace(matches, **{
        name: getattr(matches, name)[pair : pair + 1]
        for name in ('pairs', 'keypoint', 'plane_xy', 'sigma', 'weight')
    })  # fmt: skip
    essential = essential_from_pose(pose)[None]
    front = pose_from_essential(essential, one.plane_xy[:, 0], one.plane_xy[:, 1]).in_front
    method = torch.tensor([int(PairMethod.ROBUST)])
    judged = _judged(pose[None], method, essential, front, one, settings)
    count = int(judged.inlier.sum())
    if count < max(FEWEST, settings.min_robust_share * int(used.sum())):
        return found
    return PairPoses(*(
        torch.cat([old[:pair], new.to(old.dtype), old[pair + 1 :]])
        for old, new in zip(vars(found).values(), vars(judged).values(), strict=True)
    ))  # fmt: skip


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
