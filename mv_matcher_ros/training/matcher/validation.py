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
from mv_matcher_ros.odometry.pair_poses import PairMatches, PairMethod, PairPoses, pair_poses
from mv_matcher_ros.training.matcher.batches import MatcherBatch, is_labelled
from mv_matcher_ros.training.matcher.losses import matching_loss
from mv_matcher_ros.training.matcher.settings import ValidationSettings

THRESHOLDS_DEG = (5.0, 10.0, 20.0)
SCORE = 'pairs_auc10'


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
            the larger pose error of pairs, by the refined weighted eight-point of the matches
            made; pairs_auc5, …: by the same where it holds, else by the robust solver, as the
            odometry does; pairs: how many; loss: mean likelihood of the labels; score:
            pairs_auc10.
    """
    device = next(network.parameters()).device
    right, judged, labelled, losses = 0, 0, 0, []
    errors: dict[str, list[float]] = {'': [], 'pairs_': []}
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
            matches = _packed(made, batch, number, settings.min_confidence)
            for name, relative in (('', 'eight_point'), ('pairs_', 'both')):
                estimator = settings.pose_estimator.model_copy(update={'relative': relative})
                poses = pair_poses(matches, estimator)
                errors[name] += _pose_errors(poses, matches, batch.world_from_camera[number], use)
        loss = matching_loss(made, batch.partner_a.to(device), batch.partner_b.to(device))
        losses.append(float(loss))
    figures = {
        'precision': 100.0 * right / max(judged, 1),
        'recall': 100.0 * right / max(labelled, 1),
        **{
            f'{name}auc{threshold:g}': pose_auc(found, threshold) if found else 0.0
            for name, found in errors.items()
            for threshold in THRESHOLDS_DEG
        },
        'pairs': float(len(errors[''])),
        'loss': float(np.mean(losses)),
    }
    return {'score': figures[SCORE], **figures}


def _shared(batch: MatcherBatch, number: int, least: float) -> Tensor:
    """(P,) bool pairs with enough overlap."""
    a, b = torch.tensor(list(combinations(range(batch.views.views), 2))).T
    overlap = batch.overlap[number]
    shared: Tensor = 0.5 * (overlap[a, b] + overlap[b, a]) >= least
    return shared


def _packed(made: Assignment, batch: MatcherBatch, number: int, least: float) -> PairMatches:
    """The matches of one tuple with enough confidence."""
    found = made.matches(number)
    kept = found.confidence >= least
    found = Matches(found.views[kept], found.keypoints[kept], found.confidence[kept].float())
    pairs = list(combinations(range(batch.views.views), 2))
    return PairMatches.of(found, pairs, batch.plane_xy[number], batch.sigma[number])


def _pose_errors(
    poses: PairPoses, matches: PairMatches, world_from_camera: Tensor, use: Tensor
) -> list[float]:
    """Degrees of the pairs in use, infinite without a pose."""
    errors = []
    for row in use.nonzero()[:, 0].tolist():
        a, b = matches.pairs[row].tolist()
        truth = (se3.inverse(world_from_camera[b]) @ world_from_camera[a]).numpy()
        solved = int(poses.method[row]) != PairMethod.NONE
        errors.append(pose_error(poses.b_from_a[row].numpy() if solved else None, truth).pose_deg)
    return errors
