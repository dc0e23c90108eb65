# SPDX-License-Identifier: Apache-2.0
"""Which keypoints were worth finding: where keypoints are is a choice, and learns by ranking.

A keypoint of a point that is seen wherever it lies in the image is worth one; one that no other
view has found, nothing. In between, half of its worth is to be found again at all, half the share
of the views that find it: with that share alone fewer points would be seen in more views. Scores
are to put keypoints in that order; only the order decides which ones are chosen.

Sources: Tyszkiewicz et al., DISK, NeurIPS 2020 (a reward for keypoints that are matched rightly);
Burges et al., Learning to rank using gradient descent, ICML 2005 (the loss).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_project
from mv_matcher_ros.models.detector import DenseFeatures
from mv_matcher_ros.training.adaptation.growing import owners
from mv_matcher_ros.training.adaptation.structure import Structure
from mv_matcher_ros.training.adaptation.views import ClipViews


@torch.no_grad()
def worth(
    clip: ClipViews,
    structure: Structure,
    pairs: Tensor,
    partner: Tensor,
    wrong: Tensor,
    inlier_px: float,
) -> Tensor:
    """(V, N) of each keypoint in [0, 1], NaN where nobody knows.

    Of a keypoint without a point that is matched, and not wrongly, nobody knows: it may be far
    away. Nor of keypoints of views whose pose was not found.

    Args:
        pairs: (P, 2) of views; partner, wrong: (P, N) what a's keypoints were matched with, −1 for
            none, and whether that is wrong.
        inlier_px: largest residual of an observation that counts.
    """
    count, capacity = clip.valid.shape
    table = torch.where(structure.residual_px <= inlier_px, structure.table, -1)
    observed = (table >= 0).sum(1)
    expected = torch.stack([
        _inside(clip, structure, view) for view in range(count)
    ]).logical_or((table >= 0).T).sum(0)  # fmt: skip
    share = (observed - 1).clamp_min(0) / (expected - 1).clamp_min(1)
    owner = owners(table, capacity)
    perhaps = torch.zeros_like(clip.valid)
    for number, (a, b) in enumerate(pairs.tolist()):
        here = ((partner[number] >= 0) & ~wrong[number]).nonzero()[:, 0]
        perhaps[a, here] = True
        perhaps[b, partner[number, here]] = True
    on_track = (owner >= 0) & (observed[owner.clamp_min(0)] >= 2)
    found = torch.where(on_track, 0.5 + 0.5 * share[owner.clamp_min(0)], 0.0)
    unknown = (~on_track & perhaps) | ~clip.valid | ~structure.seen[:, None]
    return torch.where(unknown, torch.nan, found)


def ranking_loss(log_score: Tensor, value: Tensor) -> Tensor:
    """() mean of log(1 + s_j / s_i) over keypoints i worth more than j, as much as they are.

    Args:
        log_score: (N,) logarithms of the scores s of keypoints of one image; value: (N,) what they
            are worth, NaN for unknown.
    """
    known = ~value.isnan()
    score, value = log_score[known], value[known]
    more = (value[:, None] - value).clamp_min(0.0)
    loss = functional.softplus(score - score[:, None])
    return (more * loss).sum() / more.sum().clamp_min(1.0)


def density_moved(were: DenseFeatures, dense: DenseFeatures) -> Tensor:
    """() squared logarithm of how many times as many keypoints there are as before.

    An order says nothing of how large scores are, but keypoints have to exceed a threshold.
    """
    there, before = (one.log_probability[:, :-1].exp().sum().log() for one in (dense, were))
    return (there - before).square()


def _inside(clip: ClipViews, structure: Structure, view: int) -> Tensor:
    """(T,) bool, the point lies in the image of the view."""
    camera = clip.cameras[view]
    there = se3.transform(structure.camera_from_world[view], structure.points)
    pixels, valid = camera_project(camera, there)
    limit = pixels.new_tensor([camera.width, camera.height]) - 0.5
    inside = valid & (pixels > -0.5).all(1) & (pixels < limit).all(1)
    return inside & structure.seen[view]
