# SPDX-License-Identifier: Apache-2.0
"""What several keyframes say of the points that a view shows, made one.

Source: Giang, Song and Jo, DeViLoc, CVPR 2024, Confidence-based Point Aggregation: points with
little confidence are dropped, those of keypoints that are near in the image are merged by their
confidences. Own: what disagrees beyond its errors is not averaged, the group that most believe
wins; the mean is weighted by the errors too, by covariance intersection, because points inferred
from the same landmarks are not independent (Julier and Uhlmann, A non-divergent estimation
algorithm in the presence of unknown correlations, ACC 1997).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mv_matcher_ros.config import PointInferenceSettings

# Squared Mahalanobis distance of two points that agree: 99 % of a chi-squared of three degrees.
AGREES = 11.34


@dataclass(frozen=True)
class PointMatches:
    """Keypoints of a view with the landmarks that they show.

    Attributes:
        feature: (K,) int64 keypoints, each once.
        landmark: (K,) int64 numbers in the map; −1 for a point that is no landmark.
        points: (K, 3) float64 in the body frame and units of the keyframe that was asked first.
        spread: (K, 3, 3) their covariances.
        confidence: (K,) float64.
        asked: how many matches with keypoints there were, also of those without a landmark.
    """

    feature: Tensor
    landmark: Tensor
    points: Tensor
    spread: Tensor
    confidence: Tensor
    asked: int

    def __len__(self) -> int:
        return len(self.feature)


@dataclass(frozen=True)
class Candidates:
    """C points that keypoints of a view may show, of several keyframes; a keypoint any number.

    Attributes:
        feature: (C,) int64 keypoints of the view.
        landmark: (C,) int64, −1 for inferred points.
        points: (C, 3) float64 in one frame; spread: (C, 3, 3) their covariances.
        depth: (C,) from the keyframe that says so, units of the points.
        match, point: (C,) float64 confidences of the match and of the point.
    """

    feature: Tensor
    landmark: Tensor
    points: Tensor
    spread: Tensor
    depth: Tensor
    match: Tensor
    point: Tensor

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def weight(self) -> Tensor:
        """(C,) how far each is believed."""
        return self.match * self.point

    def chosen(self, index: Tensor) -> Candidates:
        """Those that a (C,) mask or an index chooses."""
        return Candidates(*(getattr(self, field.name)[index] for field in fields(self)))


def surest(candidates: Candidates, asked: int) -> PointMatches:
    """The candidate of each keypoint that is believed most."""
    order = candidates.weight.argsort(descending=True, stable=True)
    feature = candidates.feature[order]
    unique, inverse = feature.unique(return_inverse=True)
    first = torch.full((len(unique),), len(feature), dtype=torch.int64)
    first = first.scatter_reduce(0, inverse, torch.arange(len(feature)), 'amin')
    best = candidates.chosen(order[first])
    return PointMatches(
        best.feature, best.landmark, best.points, best.spread, best.weight, asked
    )  # fmt: skip


class PointAggregation:
    """Merges candidates; keeps no state.

    Args:
        settings: least confidence, and how near keypoints are one.
        focal_px: of the view.
    """

    def __init__(self, settings: PointInferenceSettings, focal_px: float) -> None:
        self._settings, self._focal = settings, focal_px

    def merged(self, candidates: Candidates, keypoints_xy: Tensor, asked: int) -> PointMatches:
        """One point for each keypoint, or group of near keypoints, of which anything is believed.

        Args:
            keypoints_xy: (N, 2) pixels of all keypoints of the view.
        """
        kept = candidates.chosen(candidates.point > self._settings.min_confidence)
        if not len(kept):
            return surest(kept, asked)
        speaker = self._speakers(kept, keypoints_xy.double())
        moved_px = (keypoints_xy[kept.feature] - keypoints_xy[speaker]).double().norm(dim=1)
        # A point of a keypoint beside lies beside this one's by as many pixels.
        beside = (moved_px / self._focal * kept.depth) ** 2
        spread = kept.spread + beside[:, None, None] * torch.eye(3, dtype=torch.float64)
        feature, group = speaker.unique(return_inverse=True)
        member = _members(group, len(feature))
        return self._joined(kept, spread, feature, member, asked)

    def _speakers(self, kept: Candidates, keypoints_xy: Tensor) -> Tensor:
        """(C,) for each candidate the keypoint that stands for its own: itself, or a surer one
        within the distance at which they are one."""
        feature, inverse = kept.feature.unique(return_inverse=True)
        speaker = feature.clone()
        place = keypoints_xy[feature]
        near = torch.cdist(place, place) < self._settings.merge_px
        near.fill_diagonal_(False)
        if bool(near.any()):
            best = torch.zeros(len(feature), dtype=torch.float64)
            best = best.scatter_reduce(0, inverse, kept.weight, 'amax')
            free = torch.ones(len(feature), dtype=torch.bool)
            for one in best.argsort(descending=True, stable=True).tolist():
                if free[one] and bool(near[one].any()):
                    taken = near[one] & free
                    taken[one] = True
                    speaker[taken] = feature[one]
                    free &= ~taken
        return speaker[inverse]

    def _joined(
        self, kept: Candidates, spread: Tensor, feature: Tensor, member: Tensor, asked: int
    ) -> PointMatches:
        """Of each row of members (G, R), −1 for none, the largest group that agrees, as one."""
        there = member >= 0
        index = member.clamp_min(0)
        points, spread = kept.points[index], spread[index]
        weight = torch.where(there, kept.weight[index], 0.0)
        apart = points[:, :, None] - points[:, None]
        both = spread[:, :, None] + spread[:, None]
        distance = (apart * torch.linalg.solve(both, apart)).sum(-1)
        agrees = (distance <= AGREES) & there[:, :, None] & there[:, None]
        believed = (agrees * weight[:, None]).sum(-1)
        # Of groups that are believed alike, that around the surest.
        chosen = (believed + 1e-6 * weight).masked_fill(~there, -1.0).argmax(dim=1)
        row = torch.arange(len(feature))
        part = agrees[row, chosen]
        share = torch.where(part, weight, 0.0)
        total = share.sum(1).clamp_min(1e-12)
        share = share / total[:, None]
        information = torch.linalg.inv(spread)
        merged = torch.linalg.inv((share[..., None, None] * information).sum(1))
        pulled = (share[..., None, None] * information @ points[..., None]).sum(1)
        number = kept.landmark[index]
        seen = torch.where(part & (number >= 0), weight, -1.0)
        surest_seen = seen.argmax(dim=1)
        landmark = torch.where(seen.amax(1) >= 0, number[row, surest_seen], -1)
        # Who is contradicted is believed less.
        confidence = (
            torch.where(part, weight, 0.0).amax(1) * total / weight.sum(1).clamp_min(1e-12)
        )
        return PointMatches(
            feature, landmark, (merged @ pulled)[..., 0], merged, confidence, asked
        )  # fmt: skip


def _members(group: Tensor, count: int) -> Tensor:
    """(G, R) int64 numbers of the candidates of each of G groups, −1 for none."""
    order = group.argsort(stable=True)
    size = torch.bincount(group, minlength=count)
    begin = size.cumsum(0) - size
    column = torch.arange(len(group)) - begin[group[order]]
    member = torch.full((count, int(size.max())), -1, dtype=torch.int64)
    member[group[order], column] = order
    return member
