# SPDX-License-Identifier: Apache-2.0
"""What bundle adjustment says of keypoints and matches: labels that nobody had to make.

Keypoints of one point are partners. A keypoint whose point lies outside another view, or far from
every keypoint of it, has no partner there, hidden or not. A match is wrong where its keypoint's
point lies elsewhere, where it is off its epipolar line, or where its rays meet behind a view; of
what has no point and contradicts nothing nothing is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_project
from mv_matcher_ros.geometry.epipolar import essential_from_pose, symmetric_epipolar_error
from mv_matcher_ros.geometry.triangulation import triangulate
from mv_matcher_ros.training.adaptation.growing import owners
from mv_matcher_ros.training.adaptation.structure import Structure
from mv_matcher_ros.training.adaptation.views import ClipViews, projected
from mv_matcher_ros.training.data.labels import IGNORED, UNMATCHED

# Beyond this a keypoint cannot be the point that is projected there, pixels.
FAR_PX = 8.0
# The same of a match that was made, times the limit of an inlier: between the two nobody knows.
ELSEWHERE = 2.0
# Parallax from which rays that meet behind a view say that a match is wrong.
MEETING_DEG = 0.5
# How far outside the image a projected point is seen by none of its keypoints for certain.
OUTSIDE_PX = 4.0


@dataclass(frozen=True)
class Verdicts:
    """Labels of P pairs of views.

    Attributes:
        partner_a, partner_b: (P, N) int64 partner in the other view, `UNMATCHED` for certain, or
            `IGNORED`.
        wrong: (P, N) bool, what keypoint of a was matched with is not its partner.
    """

    partner_a: Tensor
    partner_b: Tensor
    wrong: Tensor


@torch.no_grad()
def verdicts(
    clip: ClipViews, structure: Structure, pairs: Tensor, partner: Tensor, inlier_px: float
) -> Verdicts:
    """Of the pairs (P, 2) and the matches that were made, (P, N) partners of a's keypoints.

    Args:
        inlier_px: largest residual of an observation that counts, and largest distance of a match
            from its epipolar lines (root mean square of the two).
    """
    capacity = clip.plane_xy.shape[1]
    table = torch.where(structure.residual_px <= inlier_px, structure.table, -1)
    table = torch.where(((table >= 0).sum(1) >= 2)[:, None], table, -1)
    nowhere, elsewhere_px = _seen_from(clip, structure)
    owner = owners(table, capacity)
    side_a = torch.full((len(pairs), capacity), IGNORED, dtype=torch.int64)
    side_b = side_a.clone()
    wrong = torch.zeros_like(side_a, dtype=torch.bool)
    for number, (a, b) in enumerate(pairs.tolist()):
        if not bool(structure.seen[a] & structure.seen[b]):
            continue
        _label(side_a[number], table, a, b, nowhere)
        _label(side_b[number], table, b, a, nowhere)
        made = partner[number]
        limit_px = ELSEWHERE * inlier_px
        wrong[number] = _contradicts(made, owner, a, b, elsewhere_px, limit_px)
        wrong[number] |= _against_the_motion(clip, structure, made, a, b, inlier_px)
    wrong &= (partner >= 0) & (partner != side_a)
    return Verdicts(side_a, side_b, wrong)


def _label(row: Tensor, table: Tensor, here: int, there: int, nowhere: Tensor) -> None:
    """Partners in view `there` of the keypoints of `here`, into the row (N,)."""
    seen = table[:, here] >= 0
    both = seen & (table[:, there] >= 0)
    alone = seen & ~both & nowhere[:, there]
    row[table[alone, here]] = UNMATCHED
    row[table[both, here]] = table[both, there]


def _seen_from(clip: ClipViews, structure: Structure) -> tuple[Tensor, list[Tensor]]:
    """(T, V) bool, no keypoint of a view can be the point; and of each view (T, N) distances in
    pixels of its keypoints from the projected points."""
    nowhere, distances = [], []
    plane, ahead = projected(structure.camera_from_world, structure.points)
    for view, camera in enumerate(clip.cameras):
        there = se3.transform(structure.camera_from_world[view], structure.points)
        pixels, valid = camera_project(camera, there)
        limit = pixels.new_tensor([camera.width, camera.height]) - 0.5 + OUTSIDE_PX
        outside = (pixels < -0.5 - OUTSIDE_PX).any(1) | (pixels > limit).any(1)
        outside = outside | ~ahead[:, view]
        apart = torch.cdist(plane[:, view], clip.plane_xy[view]) / clip.pixel[view]
        apart = apart.masked_fill(~clip.valid[view], torch.inf)
        nearest = apart.amin(1) if apart.shape[1] else torch.full((len(apart),), torch.inf)
        nowhere.append(outside | (valid & (nearest > FAR_PX)))
        distances.append(apart)
    return torch.stack(nowhere, dim=1), distances


def _contradicts(
    made: Tensor, owner: Tensor, a: int, b: int, elsewhere_px: list[Tensor], limit_px: float
) -> Tensor:
    """(N,) the matched keypoint is far from where the point of a's keypoint is projected.

    The other way round, too: the keypoint in b sees a point that is elsewhere in a.
    """
    index = torch.arange(len(made))
    bad = torch.zeros(len(made), dtype=torch.bool)
    for here, there, mine, others in ((a, b, index, made), (b, a, made, index)):
        track = owner[here, mine.clamp_min(0)]
        known = (track >= 0) & (made >= 0)
        apart = elsewhere_px[there][track.clamp_min(0), others.clamp_min(0)]
        bad |= known & (apart > limit_px)
    return bad


def _against_the_motion(
    clip: ClipViews, structure: Structure, made: Tensor, a: int, b: int, limit_px: float
) -> Tensor:
    """(N,) the match is off its epipolar lines, or its rays meet behind a view."""
    pose = structure.camera_from_world[b] @ se3.inverse(structure.camera_from_world[a])
    xy_a, xy_b = clip.plane_xy[a], clip.plane_xy[b][made.clamp_min(0)]
    squared = symmetric_epipolar_error(essential_from_pose(pose), xy_a, xy_b)
    pixel = torch.maximum(clip.pixel[a], clip.pixel[b])
    off = squared.isfinite() & (squared > 2.0 * (limit_px * pixel) ** 2)
    eye = torch.eye(4, dtype=pose.dtype)
    met = triangulate(torch.stack([xy_a, xy_b], dim=1), torch.stack([eye, pose]))
    wide = met.parallax_rad > math.radians(MEETING_DEG)
    behind = wide & (met.depths < 0).any(1)
    return (made >= 0) & (off | behind)
