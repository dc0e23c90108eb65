# SPDX-License-Identifier: Apache-2.0
"""Losses have the values they should have, and gradients where something is to be learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.matcher import Assignment
from mv_matcher_ros.training.data.labels import IGNORED, UNMATCHED
from mv_matcher_ros.training.matcher.losses import confidence_loss, matching_loss, pose_angles


def assignment(probability: torch.Tensor, confidence: list[float]) -> Assignment:
    """One pair of two and two keypoints, mutual matches 0 → 1 only."""
    return Assignment(
        torch.tensor([[0, 1]]),
        probability.log()[None, None].requires_grad_(),
        torch.tensor([[[1, -1]]]),
        torch.tensor([[[math.log(0.8), -torch.inf]]]),
        torch.tensor([[confidence]]),
        torch.tensor([[[confidence]]]).logit(1e-6).requires_grad_(),
    )


PROBABILITY = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.1, 0.7], [0.7, 0.1, 0.5]])


def labels(*values: int) -> torch.Tensor:
    return torch.tensor([[list(values)]])


def test_matching_loss_weighs_matches_and_unmatched_the_same() -> None:
    made = assignment(PROBABILITY, [0.9, 0.0])
    loss = matching_loss(made, labels(1, UNMATCHED), labels(UNMATCHED, 0))
    expected = -0.5 * (math.log(0.8) + 0.5 * (math.log(0.7) + math.log(0.7)))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_without_labels_nothing_is_learned_and_nothing_is_infinite() -> None:
    made = assignment(PROBABILITY, [0.9, 0.0])
    infinite = made.log_probability.detach().clone()
    infinite[..., 1, :] = -torch.inf
    made = replace(made, log_probability=infinite.requires_grad_())
    loss = matching_loss(made, labels(IGNORED, IGNORED), labels(IGNORED, IGNORED))
    loss = loss + confidence_loss(made, labels(IGNORED, IGNORED))
    assert loss.item() == 0.0
    loss.backward()
    assert float(made.log_probability.grad.abs().max()) == 0.0  # type: ignore[union-attr]


@pytest.mark.parametrize(('label', 'right'), [(1, True), (0, False), (UNMATCHED, False)])
def test_confidence_is_that_of_the_match_that_was_made(label: int, right: bool) -> None:
    made = assignment(PROBABILITY, [0.9, 0.0])
    expected = -math.log(0.9 if right else 0.1)
    assert confidence_loss(made, labels(label, 0)).item() == pytest.approx(expected, rel=1e-4)


def test_a_sure_and_wrong_match_can_be_unlearned() -> None:
    made = replace(
        assignment(PROBABILITY, [0.9, 0.0]), confidence_logit=torch.full((1, 1, 1, 2), 30.0)
    )
    assert made.confidence_logit is not None
    made.confidence_logit.requires_grad_()
    confidence_loss(made, labels(0, 0)).backward()
    assert float(made.confidence_logit.grad[0, 0, 0, 0]) == pytest.approx(1.0)  # type: ignore[index]
    with pytest.raises(ModelError, match='no confidence head'):
        confidence_loss(replace(made, confidence_logit=None), labels(0, 0))


def test_a_missing_translation_is_no_right_one() -> None:
    truth = se3.exp(torch.tensor([1.0, 0.0, 0.0, 0.1, -0.2, 0.3], dtype=torch.float64))
    still = truth.clone()
    still[:3, 3] = 0.0
    assert float(pose_angles(still, truth)[1]) == pytest.approx(math.pi / 2)


def test_pose_angles() -> None:
    truth = se3.exp(torch.tensor([1.0, 0.0, 0.0, 0.1, -0.2, 0.3], dtype=torch.float64))
    turned = truth @ se3.exp(torch.tensor([0, 0, 0, 0.0, 0.05, 0.0], dtype=torch.float64))
    rotation, translation = pose_angles(turned, truth)
    assert float(rotation) == pytest.approx(0.05)
    assert float(translation) == pytest.approx(0.0, abs=1e-9)
    opposite = truth.clone()
    opposite[:3, 3] *= -2.0
    assert float(pose_angles(opposite, truth)[1]) == pytest.approx(math.pi)
    still = truth.clone()
    still[:3, 3] = 0.0
    assert float(pose_angles(truth, still)[1]) == 0.0


def test_pose_angles_have_finite_gradients_at_the_truth() -> None:
    truth = se3.exp(torch.tensor([1.0, 0.0, 0.0, 0.1, -0.2, 0.3], dtype=torch.float64))
    for target in (truth, torch.eye(4, dtype=torch.float64)):
        estimate = truth.clone().requires_grad_()
        sum(pose_angles(estimate, target)).backward()  # type: ignore[union-attr]
        assert estimate.grad is not None
        assert bool(estimate.grad.isfinite().all())
