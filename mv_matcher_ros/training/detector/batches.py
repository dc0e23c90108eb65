# SPDX-License-Identifier: Apache-2.0
"""What a step of the detector's training gets: augmented views, what the teacher says of the clean
ones, and where its keypoints lie in the other view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.config import Section
from mv_matcher_ros.models.detector import CELL
from mv_matcher_ros.training.data.augmentation import Augmentation, augment
from mv_matcher_ros.training.data.correspondence import Carried, carry
from mv_matcher_ros.training.data.view_pairs import ViewPair
from mv_matcher_ros.training.detector.teacher import Taught, TaughtOnce

NONE = CELL * CELL


class TargetSettings(Section):
    """How much of the teacher's score of a keypoint the student is to give."""

    alone: float = Field(
        0.4, ge=0.0, le=1.0, description='Share where the other view sees the place, not found.'
    )
    unseen: float = Field(
        0.7, ge=0.0, le=1.0, description='Share where the other view does not see the place.'
    )
    repeated: float = Field(
        0.8, ge=0.0, le=1.0, description='Share where the other view has a keypoint there.'
    )
    # Whole where its nearest descriptor in the other view is that keypoint's, too.
    within_px: float = Field(2.0, gt=0.0, description='Farthest that other keypoint may lie.')


@dataclass(frozen=True)
class DetectorBatch:
    """Views of pairs, one after the other: the partner of view v is v ^ 1.

    N is room for keypoints.

    Attributes:
        images: (V, 1, H, W) float32 in [0, 1], augmented.
        target: (V, 65, h, w) what the scores of a cell should be; sums to 1.
        known: (V, h, w) bool, cells of which the teacher saw what the student sees.
        xy: (V, N, 2) the teacher's keypoints, pixels.
        taught: (V, N, D) their descriptors.
        valid: (V, N) bool, keypoints that are there and not covered.
        there: (V, N, 2) where they lie in the partner view.
        jacobian: (V, N, 2, 2) of `there` by `xy`.
        seen: (V, N) bool, seen in both views.
    """

    images: Tensor
    target: Tensor
    known: Tensor
    xy: Tensor
    taught: Tensor
    valid: Tensor
    there: Tensor
    jacobian: Tensor
    seen: Tensor

    def to(self, device: torch.device) -> DetectorBatch:
        """The same on a device."""
        parts = (getattr(self, field.name) for field in fields(self))
        return DetectorBatch(*(part.to(device, non_blocking=True) for part in parts))


def pair_batch(
    pair: ViewPair,
    teacher: TaughtOnce,
    room: int,
    rng: np.random.Generator,
    augmentation: Augmentation | None,
    targets: TargetSettings,
) -> DetectorBatch:
    """Both views of a pair, augmented anew; None leaves them clean."""
    taught = [teacher.teach(image).strongest(room) for image in pair.images]
    carried = [carry(there, said.xy) for there, said in zip(pair.both, taught, strict=True)]
    images, foreign = pair.images, torch.zeros(pair.images.shape, dtype=torch.bool)
    if augmentation is not None:
        shown = augment(images, np.ones(images.shape, np.float32), rng, augmentation)
        images, foreign = shown.images, torch.from_numpy(shown.foreign)
    views = []
    for view in (0, 1):
        here, other = taught[view], taught[1 - view]
        share = shares(here, carried[view], other, targets)
        target = cell_target(here.xy, here.scores * share, images.shape[1], images.shape[2])
        valid = ~at(foreign[view], here.xy)
        seen = carried[view].seen & valid & ~at(foreign[1 - view], carried[view].xy)
        covered = functional.max_pool2d(foreign[view][None, None].float(), CELL, ceil_mode=True)
        views.append(
            DetectorBatch(
                torch.from_numpy(images[view])[None].float() / 255.0,
                target,
                covered[0, 0] == 0,
                _roomy(here.xy, room),
                _roomy(here.descriptors, room),
                _roomy(valid, room),
                _roomy(carried[view].xy, room),
                _roomy(carried[view].jacobian, room),
                _roomy(seen, room),
            )
        )
    return stacked(views)


def stacked(views: Sequence[DetectorBatch]) -> DetectorBatch:
    """Single views as a batch."""
    names = [field.name for field in fields(DetectorBatch)]
    return DetectorBatch(*(torch.stack([getattr(v, name) for v in views]) for name in names))


def joined(batches: Sequence[DetectorBatch]) -> DetectorBatch:
    """Batches one after the other."""
    names = [field.name for field in fields(DetectorBatch)]
    return DetectorBatch(*(torch.cat([getattr(b, name) for b in batches]) for name in names))


def shares(here: Taught, carried: Carried, other: Taught, targets: TargetSettings) -> Tensor:
    """(N,) share of each keypoint's score: more where it is found again, most where its
    descriptor finds it."""
    share = torch.full((len(here.xy),), targets.unseen)
    if len(other.xy) == 0 or len(here.xy) == 0:
        return torch.where(carried.seen, targets.alone, share)
    distance = torch.cdist(carried.xy, other.xy)
    repeated = distance.amin(1) <= targets.within_px
    similar = (here.descriptors @ other.descriptors.T).argmax(1)
    found = distance.gather(1, similar[:, None])[:, 0] <= targets.within_px
    value = torch.where(repeated, targets.repeated, targets.alone)
    value = torch.where(repeated & found, 1.0, value)
    return torch.where(carried.seen, value, share)


def cell_target(xy: Tensor, mass: Tensor, height: int, width: int) -> Tensor:
    """(65, h, w) probability of each pixel of a cell, and of none.

    A keypoint between pixels is divided among the four around it; a cell whose keypoints weigh
    more than 1 shares that out among them.
    """
    rows, columns = (-(-side // CELL) * CELL for side in (height, width))
    image = torch.zeros(rows * columns)
    corner = xy.floor()
    share = xy - corner
    for right in (0, 1):
        for below in (0, 1):
            x, y = corner[:, 0].long() + right, corner[:, 1].long() + below
            part = (share[:, 0] if right else 1 - share[:, 0]) * (
                share[:, 1] if below else 1 - share[:, 1]
            )
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            image.index_add_(0, (y * columns + x)[inside], (mass * part)[inside])
    cells = functional.pixel_unshuffle(image.reshape(1, 1, rows, columns), CELL)[0]
    total = cells.sum(0, keepdim=True)
    cells = cells / total.clamp_min(1.0)
    return torch.cat([cells, (1.0 - total).clamp_min(0.0)])


def at(image: Tensor, xy: Tensor) -> Tensor:
    """(N,) of an (H, W) image at the nearest pixels, those outside at the border."""
    height, width = image.shape
    x = xy[:, 0].round().long().clamp(0, width - 1)
    y = xy[:, 1].round().long().clamp(0, height - 1)
    return image[y, x]


def _roomy(values: Tensor, room: int) -> Tensor:
    """(N, …) → (room, …), zeros behind."""
    return torch.cat([values, values.new_zeros(room - len(values), *values.shape[1:])])
