# SPDX-License-Identifier: Apache-2.0
"""What the matcher is trained for: right assignments, honest confidences, good poses.

Sources: Sarlin et al., SuperGlue, equation 10 (the likelihood); Roessle and Niessner, End2End,
section 3.5 (its balance, the pose).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.geometry.so3 import so3_log
from mv_matcher_ros.models.matcher import Assignment
from mv_matcher_ros.training.data.labels import IGNORED, UNMATCHED


def matching_loss(assignment: Assignment, partner_a: Tensor, partner_b: Tensor) -> Tensor:
    """Negative log-likelihood of the labels, matches and unmatched keypoints weighing the same.

    Args:
        assignment: of P pairs.
        partner_a, partner_b: (B, P, N) labels of both sides (`training.data.labels.packed`).

    Returns:
        () zero where there is no label.
    """
    likelihood = assignment.log_probability
    index = partner_a.clamp_min(0)[..., None]
    matched = -likelihood[..., :-1, :-1].gather(-1, index)[..., 0]
    parts = [_mean(matched, partner_a >= 0)]
    lonely = torch.cat([likelihood[..., :-1, -1], likelihood[..., -1, :-1]], dim=-1)
    parts.append(_mean(-lonely, torch.cat([partner_a, partner_b], dim=-1) == UNMATCHED))
    return 0.5 * (parts[0] + parts[1])


def confidence_loss(assignment: Assignment, partner_a: Tensor) -> Tensor:
    """Binary cross-entropy of the confidences, also of those made with less: is the match that was
    made the labelled one?

    Raises:
        ModelError: the matcher has no confidence head.
    """
    made = (assignment.partner >= 0) & (partner_a != IGNORED)
    return believed_loss(assignment, assignment.partner == partner_a, made)


def believed_loss(assignment: Assignment, right: Tensor, judged: Tensor) -> Tensor:
    """Binary cross-entropy of the confidences, all that were made, of matches that are judged.

    Args:
        assignment: of P pairs.
        right, judged: (B, P, N) bool of a's keypoints.

    Raises:
        ModelError: the matcher has no confidence head.
    """
    logit = assignment.confidence_logit
    if logit is None:
        raise ModelError('this matcher has no confidence head to be trained')
    target = right.to(logit.dtype).expand_as(logit)
    loss = functional.binary_cross_entropy_with_logits(logit, target, reduction='none')
    return _mean(loss.mean(0), judged)


def pose_angles(estimate: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Angles of rotation and of translation direction between (..., 4, 4) poses, rad.

    Gradients are finite everywhere. Where there is no true translation its angle is zero; where
    there is one and none was estimated, it is a right angle.
    """
    turn = estimate[..., :3, :3].mT @ truth[..., :3, :3]
    rotation = so3_log(turn).norm(dim=-1)
    a, b = estimate[..., :3, 3], truth[..., :3, 3]
    across = torch.linalg.cross(a, b, dim=-1).norm(dim=-1)
    along = (a * b).sum(-1)
    moved, missed = b.norm(dim=-1) > 1e-9, a.norm(dim=-1) <= 1e-9
    safe = torch.where(moved & ~missed, along, 1.0)
    angle = torch.where(missed, 0.5 * math.pi, torch.atan2(across, safe))
    return rotation, torch.where(moved, angle, 0.0)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; the others may be anything, infinite too."""
    total = torch.where(chosen, values, 0.0).sum()
    return total / chosen.sum().clamp_min(1)
