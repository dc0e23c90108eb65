# SPDX-License-Identifier: Apache-2.0
"""How good a matcher is on tuples of a world that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.evaluation.matching_error import pose_auc, pose_error
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.matcher import Assignment, MatcherNetwork
from mv_matcher_ros.odometry.pair_poses import PairMatches, PairMethod, weighted_poses
from mv_matcher_ros.training.losses import matching_loss
from mv_matcher_ros.training.matcher_batches import MatcherBatch, is_labelled
from mv_matcher_ros.training.matcher_settings import ValidationSettings

THRESHOLDS_DEG = (5.0, 10.0, 20.0)
SCORE = 'auc10'


@torch.inference_mode()
def validate_matcher(
    network: MatcherNetwork,
    batches: Iterable[MatcherBatch],
    settings: ValidationSettings,
    pairwise: bool = False,
) -> dict[str, float]:
    """Shares in percent over all pairs of views with enough overlap.

    Returns:
        precision: of the matches made (by their confidence) whose label is certain, those that are
            right; recall: of the labelled matches, those that were made; auc5, auc10, auc20: of
            the larger pose error of pairs, by the weighted eight-point; pairs: how many; loss:
            mean likelihood of the labels; score: auc10.
    """
    device = next(network.parameters()).device
    right, judged, labelled, losses = 0, 0, 0, []
    errors: list[float] = []
    for whole in batches:
        batch = whole.in_pairs() if pairwise else whole
        made = network(batch.views.to(device))
        for number in range(len(batch.overlap)):
            use = _shared(batch, number, settings.min_overlap)
            partner, confidence = made.partner[number].cpu(), made.confidence[number].cpu()
            sure = (partner >= 0) & (confidence >= settings.min_confidence)
            certain = is_labelled(batch)[number] & use[:, None]
            right += int((sure & certain & (partner == batch.partner_a[number])).sum())
            judged += int((sure & certain).sum())
            labelled += int((certain & (batch.partner_a[number] >= 0)).sum())
            errors += _pose_errors(made, batch, number, use, settings)
        loss = matching_loss(made, batch.partner_a.to(device), batch.partner_b.to(device))
        losses.append(float(loss))
    figures = {
        'precision': 100.0 * right / max(judged, 1),
        'recall': 100.0 * right / max(labelled, 1),
        **{f'auc{t:g}': pose_auc(errors, t) if errors else 0.0 for t in THRESHOLDS_DEG},
        'pairs': float(len(errors)),
        'loss': float(np.mean(losses)),
    }
    return {'score': figures[SCORE], **figures}


def _shared(batch: MatcherBatch, number: int, least: float) -> Tensor:
    """(P,) bool pairs with enough overlap."""
    a, b = torch.tensor(list(combinations(range(batch.views.views), 2))).T
    overlap = batch.overlap[number]
    shared: Tensor = 0.5 * (overlap[a, b] + overlap[b, a]) >= least
    return shared


def _pose_errors(
    made: Assignment,
    batch: MatcherBatch,
    number: int,
    use: Tensor,
    settings: ValidationSettings,
) -> list[float]:
    """Degrees, infinite without a pose; of the pairs in use."""
    pairs = list(combinations(range(batch.views.views), 2))
    found = made.matches(number)
    found = Matches(found.views, found.keypoints, found.confidence.float())
    packed = PairMatches.of(found, pairs, batch.plane_xy[number], batch.sigma[number])
    poses = weighted_poses(packed, settings.pose_estimator)
    world = batch.world_from_camera[number]
    errors = []
    for row, (a, b) in enumerate(pairs):
        if bool(use[row]):
            truth = (se3.inverse(world[b]) @ world[a]).numpy()
            solved = int(poses.method[row]) == PairMethod.EIGHT_POINT
            pose = poses.b_from_a[row].numpy() if solved else None
            errors.append(pose_error(pose, truth).pose_deg)
    return errors
