# SPDX-License-Identifier: Apache-2.0
"""Tracks grow by keypoints that lie where their point is projected, and merge with others there.

Source: Zhan et al., iMatching, ECCV 2024, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mv_matcher_ros.training.adaptation.views import ClipViews, projected


def grown(
    clip: ClipViews,
    table: Tensor,
    confidence: Tensor,
    points: Tensor,
    camera_from_world: Tensor,
    seen: Tensor,
    reach_px: float,
    least_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tables of tracks with more observations, and with fewer tracks that are one point.

    A keypoint that no track has is taken by the track whose point is nearest to it. Two tracks
    become one where no view sees both, and each sees a keypoint where the point of the other is.

    Args:
        clip: the views.
        table: (T, V) int64 keypoints; confidence: (T, V); points: (T, 3).
        camera_from_world: (V, 4, 4); seen: (V,) bool, views whose pose is known.
        reach_px: largest distance of a keypoint from the projected point.
        least_similarity: of its descriptor to that of the first keypoint of the track.

    Returns:
        table, confidence and points; what has grown is as sure as the least sure before.
    """
    if not len(table):
        return table, confidence, points
    near = _nearest(clip, table, points, camera_from_world, seen, reach_px, least_similarity)
    merged = _merged(table, confidence, points, near)
    return _taken(*merged)


def _nearest(
    clip: ClipViews,
    table: Tensor,
    points: Tensor,
    camera_from_world: Tensor,
    seen: Tensor,
    reach_px: float,
    least_similarity: float,
) -> tuple[Tensor, Tensor]:
    """(T, V) keypoint at the projected point of each track, −1 for none, and (T, V) its distance.

    Only in views that do not see the track yet.
    """
    plane, ahead = projected(camera_from_world, points)
    first = (table >= 0).to(torch.int64).argmax(1)
    rows = torch.arange(len(table))
    wanted = clip.descriptors[first, table[rows, first].clamp_min(0)]  # (T, D)
    keypoint = torch.full_like(table, -1)
    distance = torch.full(table.shape, torch.inf, dtype=torch.float64)
    for view in range(table.shape[1]):
        apart = torch.cdist(plane[:, view], clip.plane_xy[view]) / clip.pixel[view]
        alike = wanted @ clip.descriptors[view].T >= least_similarity
        apart = apart.masked_fill(~(alike & clip.valid[view]), torch.inf)
        best, which = apart.min(dim=1)
        good = (best <= reach_px) & ahead[:, view] & (table[:, view] < 0) & seen[view]
        keypoint[good, view], distance[good, view] = which[good], best[good]
    return keypoint, distance


def _merged(
    table: Tensor, confidence: Tensor, points: Tensor, near: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Each track merged with at most one other; and what is left of the keypoints nearby."""
    keypoint, distance = near
    owner = owners(table, int(max(table.max(), keypoint.max())) + 1)
    track, view = (keypoint >= 0).nonzero(as_tuple=True)
    other = owner[view, keypoint[track, view]]
    order = distance[track, view].argsort()
    wants: dict[int, int] = {}
    for t, o in zip(track[order].tolist(), other[order].tolist(), strict=True):
        if o >= 0:
            wants.setdefault(t, o)
    gone = torch.zeros(len(table), dtype=torch.bool)
    touched: set[int] = set()
    table, confidence = table.clone(), confidence.clone()
    for t, o in wants.items():
        apart = not bool(((table[t] >= 0) & (table[o] >= 0)).any())
        if t < o and wants.get(o) == t and apart and not {t, o} & touched:
            table[t] = torch.maximum(table[t], table[o])
            confidence[t] = torch.maximum(confidence[t], confidence[o])
            gone[o] = True
            touched |= {t, o}
    # What another track has, and what the merged ones were offered, waits for the next round.
    free = torch.zeros_like(keypoint, dtype=torch.bool)
    free[track, view] = other < 0
    for t in touched:
        free[t] = False
    kept = ~gone
    left = torch.where(free, keypoint, -1)[kept], distance[kept]
    return table[kept], confidence[kept], points[kept], left


def _taken(
    table: Tensor, confidence: Tensor, points: Tensor, near: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Free keypoints go to the nearest of the tracks that want them."""
    keypoint, distance = near
    track, view = (keypoint >= 0).nonzero(as_tuple=True)
    which = keypoint[track, view]
    rank = distance[track, view].argsort(stable=True).argsort(stable=True)
    capacity = int(which.max()) + 1 if len(which) else 1
    place = view * capacity + which
    first = torch.full((table.shape[1] * capacity,), len(rank), dtype=torch.int64)
    wins = first.scatter_reduce(0, place, rank, 'amin')[place] == rank
    track, view, which = track[wins], view[wins], which[wins]
    least = torch.where(table >= 0, confidence, torch.inf).amin(1)
    table, confidence = table.clone(), confidence.clone()
    table[track, view] = which
    confidence[track, view] = least[track].to(confidence)
    return table, confidence, points


def owners(table: Tensor, capacity: int) -> Tensor:
    """(V, N) track of each keypoint of a table (T, V), −1 for none."""
    owner = torch.full((table.shape[1], capacity), -1, dtype=torch.int64)
    track, view = (table >= 0).nonzero(as_tuple=True)
    owner[view, table[track, view]] = track
    return owner
