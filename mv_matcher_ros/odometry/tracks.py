# SPDX-License-Identifier: Apache-2.0
"""Pairwise matches of V views become tracks: one point in the world, at most once in each view.

Everything here is on the CPU, as all of odometry.

The same result as taking the matches one after another, most confident first, and joining two
tracks unless some view would see the joint track twice. In rounds: a match that is the best one
left of both tracks it would join is the next to be taken of all that touch them, so that all
such matches are taken at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.errors import GeometryError

MOST_VIEWS = 62  # a track's views are the bits of one integer


@dataclass(frozen=True)
class Tracks:
    """Consistent tracks over V views.

    Attributes:
        keypoint: (T, V) int64 keypoint that sees the track in each view, −1 where none does; every
            track is seen by two views or more.
        confidence: (T, V) the highest confidence of the matches that hold the keypoint in the
            track, 0 where unseen. Differentiable by the confidences of the matches.
    """

    keypoint: Tensor
    confidence: Tensor

    def __len__(self) -> int:
        return int(self.keypoint.shape[0])


def build_tracks(matches: Matches, views: int, capacity: int) -> Tracks:
    """Tracks from matches between any pairs of views.

    Args:
        matches: between V views; of equal confidence the earlier one goes first.
        views: V; capacity: more than the largest keypoint index.

    Raises:
        GeometryError: too many views, or a match names a view or keypoint that is not there.
    """
    if views > MOST_VIEWS:
        raise GeometryError(f'{views} views are too many for tracks ({MOST_VIEWS} at most)')
    inside = (matches.views >= 0) & (matches.views < views)
    inside = inside & (matches.keypoints >= 0) & (matches.keypoints < capacity)
    if not bool(inside.all()):
        raise GeometryError(f'matches name others than {views} views of {capacity} keypoints')
    nodes = matches.views * capacity + matches.keypoints  # (M, 2)
    confidence = torch.nan_to_num(matches.confidence.detach(), nan=0.0)
    label = _joined(nodes, confidence, views, capacity)
    kept = label[nodes[:, 0]] == label[nodes[:, 1]]
    seen = torch.unique(nodes[kept])
    _, row = torch.unique(label[seen], return_inverse=True)
    count = int(row.max()) + 1 if len(row) else 0
    keypoint = torch.full((count, views), -1, dtype=torch.int64)
    view = torch.div(seen, capacity, rounding_mode='floor')
    keypoint[row, view] = seen - view * capacity
    place = torch.full((views * capacity,), -1, dtype=torch.int64)
    place[seen] = row * views + view
    ends = place[nodes[kept]].T.flatten()
    confidence = matches.confidence.new_zeros(count * views)
    confidence = confidence.scatter_reduce(0, ends, matches.confidence[kept].repeat(2), 'amax')
    return Tracks(keypoint, confidence.reshape(count, views))


def _joined(nodes: Tensor, confidence: Tensor, views: int, capacity: int) -> Tensor:
    """(V·N,) label of the track of each keypoint."""
    count = views * capacity
    label = torch.arange(count)
    sees = (torch.ones(views, dtype=torch.int64) << torch.arange(views)).repeat_interleave(
        capacity
    )
    rank = torch.empty(len(nodes), dtype=torch.int64)
    rank[confidence.argsort(descending=True, stable=True)] = torch.arange(len(nodes))
    while len(nodes):
        a, b = label[nodes].T
        possible = (a != b) & ((sees[a] & sees[b]) == 0)
        nodes, rank, a, b = nodes[possible], rank[possible], a[possible], b[possible]
        if not len(nodes):
            break
        best = torch.full((count,), len(confidence), dtype=torch.int64)
        best = best.scatter_reduce(0, torch.cat([a, b]), rank.repeat(2), 'amin')
        taken = (best[a] == rank) & (best[b] == rank)
        low, high = torch.minimum(a[taken], b[taken]), torch.maximum(a[taken], b[taken])
        renamed = torch.arange(count)
        renamed[high] = low
        label = renamed[label]
        sees[low] |= sees[high]
    return label
