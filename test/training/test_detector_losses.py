# SPDX-License-Identifier: Apache-2.0
"""Losses of the detector: known answers, gradients, targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.profiles import DetectorProfile
from mv_matcher_ros.training.data.correspondence import Carried
from mv_matcher_ros.training.detector import losses as detector_losses
from mv_matcher_ros.training.detector.batches import (
    DetectorBatch,
    TargetSettings,
    cell_target,
    shares,
)
from mv_matcher_ros.training.detector.losses import (
    DetectorLossSettings,
    contrast_loss,
    imitation_loss,
    place_loss,
    score_loss,
)
from mv_matcher_ros.training.detector.teacher import Taught

TINY = DetectorProfile(widths=(4, 4, 8, 8), head_width=8, descriptor_size=8)


def test_target_of_a_keypoint_on_and_between_pixels() -> None:
    target = cell_target(torch.tensor([[3.0, 2.0], [12.5, 9.0]]), torch.tensor([0.6, 0.5]), 16, 16)
    assert target.shape == (65, 2, 2)
    assert torch.allclose(target.sum(0), torch.ones(2, 2))
    assert target[2 * 8 + 3, 0, 0] == pytest.approx(0.6)
    assert target[64, 0, 0] == pytest.approx(0.4)
    assert target[1 * 8 + 4, 1, 1] == pytest.approx(0.25)
    assert target[1 * 8 + 5, 1, 1] == pytest.approx(0.25)
    crowded = cell_target(torch.tensor([[1.0, 1.0], [5.0, 5.0]]), torch.tensor([0.9, 0.6]), 8, 8)
    assert crowded[9, 0, 0] == pytest.approx(0.6)
    assert crowded[64, 0, 0] == 0.0


def test_keypoints_that_are_found_again_count_more() -> None:
    said = torch.eye(4)
    here = Taught(torch.zeros(4, 2), torch.ones(4), said)
    places = torch.tensor([[10.0, 10], [30, 30], [50, 50], [90, 90]])
    carried = Carried(places, torch.eye(2).expand(4, 2, 2), torch.tensor([True] * 3 + [False]))
    # The first is found by its descriptor, the second is there under another one, the third not.
    other = Taught(torch.tensor([[10.5, 10], [31, 30], [0, 0]]), torch.ones(3), said[[0, 2, 1]])
    settings = TargetSettings(alone=0.1, unseen=0.2, repeated=0.3)
    found = shares(here, carried, other, settings)
    assert torch.allclose(found, torch.tensor([1.0, 0.3, 0.1, 0.2]))


def test_score_loss_is_zero_when_said_is_wanted_and_ignores_unknown_cells() -> None:
    target = torch.rand(2, 65, 3, 4).softmax(1)
    known = torch.ones(2, 3, 4, dtype=torch.bool)
    assert torch.allclose(torch.stack(score_loss(target.log(), target, known)), torch.zeros(2),
                          atol=1e-6)  # fmt: skip
    wrong = target.clone()
    wrong[0, :, 0, 0] = torch.rand(65).softmax(0)
    assert min(score_loss(wrong.log(), target, known)) > 0.0
    known[0, 0, 0] = False
    assert torch.allclose(torch.stack(score_loss(wrong.log(), target, known)), torch.zeros(2),
                          atol=1e-6)  # fmt: skip


def test_score_loss_of_a_cell_that_says_nothing() -> None:
    even = torch.full((1, 65, 1, 2), -math.log(65))
    target = torch.zeros(1, 65, 1, 2)
    target[0, 64, 0, 0] = 1.0  # no keypoint
    target[0, [9, 64], 0, 1] = torch.tensor([0.6, 0.4])  # one of mass 0.6
    known = torch.ones(1, 1, 2, dtype=torch.bool)
    presence, position = score_loss(even, target, known)
    half = 0.6 * math.log(0.6 / (64 / 65)) + 0.4 * math.log(0.4 * 65)
    assert presence == pytest.approx(0.5 * (math.log(65) + half), rel=1e-5)
    assert position == pytest.approx(math.log(64), rel=1e-5)
    # Both parts together are the divergence of the whole distribution.
    whole = 0.6 * math.log(0.6 * 65) + 0.4 * math.log(0.4 * 65)
    assert half + 0.6 * position == pytest.approx(whole, rel=1e-5)


def test_imitation_by_cosine_or_by_similarities() -> None:
    said = torch.nn.functional.normalize(torch.randn(1, 5, 8), dim=-1)
    valid = torch.tensor([[True] * 4 + [False]])
    assert imitation_loss(said, said, valid) == pytest.approx(0.0, abs=1e-6)
    assert imitation_loss(said, -said, valid) == pytest.approx(2.0, abs=1e-6)
    # Another width, the same geometry: an isometry into more dimensions.
    turn = torch.linalg.qr(torch.randn(16, 8)).Q
    assert imitation_loss(said @ turn.T, said, valid) == pytest.approx(0.0, abs=1e-6)


def test_contrast_of_even_similarities_is_the_logarithm_of_the_candidates() -> None:
    there = torch.tensor([[[0.0, 0], [20, 0], [40, 0], [41, 0]]])
    seen = torch.ones(1, 4, dtype=torch.bool)
    even = torch.zeros(1, 4, 4)
    assert contrast_loss(even, there, seen, 0.0) == pytest.approx(math.log(4))
    # The last two lie together: neither is held against the other.
    expected = 0.5 * (math.log(4) + math.log(3))
    assert contrast_loss(even, there, seen, 4.0) == pytest.approx(expected)
    good = torch.eye(4)[None] * 30.0
    assert contrast_loss(good, there, seen, 4.0) == pytest.approx(0.0, abs=1e-5)
    seen[0, 3] = False
    assert contrast_loss(even, there, seen, 4.0) == pytest.approx(math.log(3))
    assert contrast_loss(even, there, ~seen & False, 4.0) == 0.0


def batch(views: int = 2, room: int = 6) -> DetectorBatch:
    torch.manual_seed(3)
    target = torch.rand(views, 65, 4, 4).softmax(1)
    xy = torch.rand(views, room, 2) * 24 + 4
    taught = torch.nn.functional.normalize(torch.randn(views, room, 8), dim=-1)
    yes = torch.ones(views, room, dtype=torch.bool)
    jacobian = torch.eye(2).expand(views, room, 2, 2).contiguous()
    known = torch.ones(views, 4, 4, dtype=torch.bool)
    return DetectorBatch(
        torch.rand(views, 1, 32, 32), target, known, xy, taught, yes, xy.clone(), jacobian, yes
    )


def test_place_loss_of_said_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both views are 0.3 px off in x, in opposite directions; the errors said are 0.3 and 0.4."""
    given = batch()
    shift, sigmas = torch.tensor([0.3, 0.0]), iter((0.3, 0.4))
    signs = iter((1.0, -1.0))

    def refined(network: object, scores: Tensor, hidden: Tensor, xy: Tensor) -> tuple[Tensor, ...]:
        return xy + next(signs) * shift, torch.full(xy.shape[:2], next(sigmas))

    monkeypatch.setattr(detector_losses, '_refined', refined)
    network = DetectorNetwork(TINY)
    loss, error = place_loss(network, network.dense(given.images), given, anchor=0.0)
    assert error == pytest.approx(0.6, abs=1e-3)
    assert loss == pytest.approx(math.sqrt(3) * 0.6 / 0.5 + 2 * math.log(0.5), abs=1e-2)


def test_every_part_has_finite_gradients_and_reaches_its_head() -> None:
    network = DetectorNetwork(TINY)
    losses = detector_losses.detector_losses(network, batch(), DetectorLossSettings())
    assert set(losses) == {
        'loss', 'presence', 'position', 'imitation', 'contrast', 'place', 'place_px',
    }  # fmt: skip
    losses['loss'].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_what_weighs_nothing_is_not_computed() -> None:
    settings = DetectorLossSettings(presence=1.0, imitation=0.0, contrast=0.0, place=0.0)
    losses = detector_losses.detector_losses(DetectorNetwork(TINY), batch(), settings)
    assert set(losses) == {'loss', 'presence', 'position'}
    assert losses['loss'] == losses['presence'] + losses['position']


def test_nothing_seen_is_no_loss_and_no_fault() -> None:
    given = batch()
    nothing = torch.zeros_like(given.seen)
    empty = DetectorBatch(
        given.images, given.target, given.known & False, given.xy, given.taught, nothing,
        given.there, given.jacobian, nothing,
    )  # fmt: skip
    losses = detector_losses.detector_losses(DetectorNetwork(TINY), empty, DetectorLossSettings())
    losses['loss'].backward()
    assert losses['loss'] == 0.0
