# SPDX-License-Identifier: Apache-2.0
"""Which keypoints of two views are the same point of the scene, from depth and pose.

A keypoint is carried to the other view and back. What lands near a keypoint that lands near it is
a match; what lands far from all, outside, or behind something nearer has no partner for certain;
what lies between, or has no depth, teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry import se3

UNMATCHED = -1
IGNORED = -2


@dataclass(frozen=True)
class LabelLimits:
    """Where a match ends and a certain non-match begins.

    Attributes:
        match_px: largest error of a match, both ways.
        far_px: smallest distance to every keypoint of one that is unmatched for certain.
        depth_share: largest relative difference of a depth and the one it was carried to; beyond
            it the point is hidden.
    """

    match_px: float = 3.0
    far_px: float = 10.0
    depth_share: float = 0.05


@dataclass(frozen=True)
class LabelView:
    """What labels need of a view.

    Attributes:
        keypoints_xy: (N, 2) pixels, centres at integers.
        depth: (H, W) metres along the optical axis, 0 where unknown.
        intrinsics: (3, 3) pinhole.
        world_from_camera: (4, 4) metres.
        foreign: (H, W) bool, True where something stands in the way or moves that no other view
            sees at the same place of the world; None: nowhere.
    """

    keypoints_xy: Tensor
    depth: Tensor
    intrinsics: Tensor
    world_from_camera: Tensor
    foreign: Tensor | None = None


def match_labels(
    a: LabelView, b: LabelView, limits: LabelLimits | None = None
) -> tuple[Tensor, Tensor]:
    """Partner of each keypoint of a in b, (N,) int64, and of each of b in a, (M,).

    `UNMATCHED` where there is none for certain, `IGNORED` where nobody knows.
    """
    limits = LabelLimits() if limits is None else limits
    forth = _carried(a, b, limits)
    back = _carried(b, a, limits)
    near = torch.cdist(forth.xy, b.keypoints_xy.to(forth.xy.dtype))
    near_back = torch.cdist(back.xy, a.keypoints_xy.to(back.xy.dtype))
    error = torch.maximum(near, near_back.mT)
    error = error.masked_fill(~(forth.seen[:, None] & back.seen[None]), torch.inf)
    return (
        _partners(error, near, forth, limits),
        _partners(error.mT, near_back, back, limits),
    )


def packed(labels: Sequence[Tensor], capacity: int) -> Tensor:
    """(P, N) labels of P pairs with room for N keypoints each; what is room only is `IGNORED`."""
    rows = torch.full((len(labels), capacity), IGNORED, dtype=torch.int64)
    for row, label in zip(rows, labels, strict=True):
        row[: len(label)] = label
    return rows


@dataclass(frozen=True)
class _Carried:
    """Keypoints in the other view: place, and whether they are seen there, or surely not."""

    xy: Tensor  # (N, 2)
    seen: Tensor  # (N,) bool: in the image, and nothing nearer is in the way
    gone: Tensor  # (N,) bool: outside the image, behind the camera, hidden, or foreign


def _carried(source: LabelView, target: LabelView, limits: LabelLimits) -> _Carried:
    depth, known = depth_at_points(source.depth, source.keypoints_xy)
    xy, z = carried(source, target, depth)
    height, width = target.depth.shape
    inside = (z > 1e-6) & (xy >= -0.5).all(1)
    inside = inside & (xy <= xy.new_tensor([width - 0.5, height - 0.5])).all(1)
    there, there_known = depth_at_points(target.depth, torch.where(inside[:, None], xy, 0.0))
    agrees = (z - there).abs() < limits.depth_share * there
    hidden = inside & there_known & (z > (1.0 + limits.depth_share) * there)
    covered = inside & _is_foreign(target, torch.where(inside[:, None], xy, 0.0))
    alone = _is_foreign(source, source.keypoints_xy)
    seen = known & inside & there_known & agrees & ~covered & ~alone
    return _Carried(xy, seen, alone | (known & (~inside | hidden | covered)))


def _is_foreign(view: LabelView, xy: Tensor) -> Tensor:
    """(N,) whether something foreign is seen at pixels (N, 2) inside the image."""
    if view.foreign is None:
        return torch.zeros(len(xy), dtype=torch.bool)
    row, column = _nearest(view.foreign, xy)
    return view.foreign[row, column]


def _nearest(image: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    height, width = image.shape
    row = xy[:, 1].round().long().clamp(0, height - 1)
    return row, xy[:, 0].round().long().clamp(0, width - 1)


def carried(source: LabelView, target: LabelView, depth: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2) pixels and (N,) depth in the target of the source's keypoints at (N,) depth."""
    kind = source.world_from_camera.dtype
    ones = torch.ones(len(depth), 1, dtype=kind)
    pixels = torch.cat([source.keypoints_xy.to(kind), ones], dim=1)
    rays = pixels @ torch.linalg.inv(source.intrinsics.to(kind)).T
    relative = se3.inverse(target.world_from_camera) @ source.world_from_camera
    there = se3.transform(relative, rays * depth.to(kind)[:, None]) @ target.intrinsics.to(kind).T
    ahead = there[:, 2] > 1e-6
    return there[:, :2] / torch.where(ahead, there[:, 2], 1.0)[:, None], there[:, 2]


def depth_at_points(depth: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) depth at the nearest pixel and whether it is known there and all around.

    At the edge of an object the depth of a keypoint could be either one: not known.
    """
    height, width = depth.shape
    row, column = _nearest(depth, xy)
    steps = torch.tensor([-1, 0, 1])
    rows = (row[:, None, None] + steps[:, None]).clamp(0, height - 1)
    columns = (column[:, None, None] + steps).clamp(0, width - 1)
    around = depth[rows, columns].flatten(1)
    here = depth[row, column]
    smooth = (around.amax(1) - around.amin(1)) < 0.1 * here
    return here, (around.amin(1) > 0) & smooth


def _partners(error: Tensor, near: Tensor, carried: _Carried, limits: LabelLimits) -> Tensor:
    """(N,) labels from the mutual errors (N, M) and the distances one way (N, M)."""
    count, others = error.shape
    label = torch.full((count,), IGNORED, dtype=torch.int64)
    if 0 in (count, others):
        label[carried.seen | carried.gone] = UNMATCHED
        return label
    best, partner = error.min(dim=1)
    mutual = error.min(dim=0).indices[partner] == torch.arange(count)
    lonely = carried.gone | (carried.seen & (near.amin(1) > limits.far_px))
    label[lonely] = UNMATCHED
    good = mutual & (best <= limits.match_px)
    label[good] = partner[good]
    return label
