# SPDX-License-Identifier: Apache-2.0
"""Scores made again with where neighbours say that partners should be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.models.second_look import LEAST_ERROR, SecondLook, inverted, predicted

PAIRS = torch.tensor([[0, 1]])


def similar(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, 2) places and the same turned by 20 degrees, 1.3 times as large and moved."""
    generator = torch.Generator().manual_seed(seed)
    here = torch.rand(count, 2, generator=generator) - 0.5
    turn = torch.tensor(20.0).deg2rad()
    matrix = torch.stack([
        torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])
    ])  # fmt: skip
    return here, 1.3 * here @ matrix.T + torch.tensor([0.1, -0.2])


def gained(
    look: SecondLook, place: Tensor, partner: Tensor, confidence: Tensor, pairs: Tensor = PAIRS
) -> Tensor:
    """(B, P, N, N) what scores of zero gain."""
    room = place.shape[-2]
    return look(torch.zeros(1, len(pairs), room, room), place, pairs, partner, confidence)


def test_scores_gain_what_the_formula_says() -> None:
    here, beyond = similar(40)
    place, partner = torch.stack([here, beyond])[None], torch.arange(40)[None, None]
    confidence = torch.rand(1, 1, 40, generator=torch.Generator().manual_seed(3))
    look = SecondLook()
    with torch.no_grad():
        for parameter in look.parameters():
            parameter.add_(0.1)
        scores = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(4))
        term = torch.zeros(40, 40, dtype=torch.float64)
        for one, other in ((here, beyond), (beyond, here)):
            there, spread, support = predicted(
                one[None, None], other[None, None], partner, confidence
            )
            known = torch.stack([support.log(), 0.5 * spread.log()], dim=-1)[0, 0]
            alpha, width, beta = torch.nn.functional.softplus(look.weights(known)).double().T
            apart = torch.cdist(there[0, 0].double(), other.double()).square()
            q = apart / (4.0 * spread[0, 0].double() * width)[:, None]
            gain = 8.0 * alpha[:, None] * torch.exp(-0.5 * q) - beta[:, None] * q / (1.0 + q / 9.0)
            term += gain if one is here else gain.T
        found = look(scores, place, PAIRS, partner, confidence)
    assert float(term.abs().max()) > 5.0
    torch.testing.assert_close(found[0, 0], scores[0, 0] + term.float(), rtol=0, atol=0.02)


def test_a_similarity_is_predicted_exactly_and_without_the_own_match() -> None:
    here, beyond = similar(60)
    wrong = beyond.clone()
    wrong[7] = 5.0  # its own match is wrong: its place is predicted by the others all the same
    partner, belief = torch.arange(60)[None, None], torch.ones(1, 1, 60)
    belief[..., 7] = 0.0
    place, spread, support = predicted(here[None, None], wrong[None, None], partner, belief)
    torch.testing.assert_close(place[0, 0], beyond, rtol=0, atol=0.01)
    assert float(spread.sqrt().max()) < 2.0 * LEAST_ERROR
    assert float(support.min()) > 2.0


def test_of_two_that_look_alike_the_one_where_neighbours_point_gains() -> None:
    here, beyond = similar(60)
    twin = beyond[20] + torch.tensor([0.3, 0.3])  # looks like keypoint 20, lies elsewhere
    place = torch.stack([torch.cat([here, here[:1]]), torch.cat([beyond, twin[None]])])[None]
    partner = torch.arange(61)
    partner[20], partner[60] = 60, -1
    confidence = torch.full((61,), 0.9)
    with torch.inference_mode():
        term = gained(SecondLook(), place, partner[None, None], confidence[None, None])[0, 0]
    assert float(term[20, 20] - term[20, 60]) > 1.0
    assert int(term[20].argmax()) == 20


def test_nothing_depends_on_which_view_is_named_first() -> None:
    here, beyond = similar(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    place = torch.stack([here, beyond[order]])[None]
    partner = order.argsort()[None, None].clone()
    partner[..., 30:] = -1
    confidence = torch.rand(1, 1, 40, generator=torch.Generator().manual_seed(2))
    confidence = torch.where(partner >= 0, confidence, 0.0)
    back, belief = inverted(partner, confidence)
    look = SecondLook()
    with torch.inference_mode():
        one = gained(look, place, partner, confidence)
        other = gained(look, place, back, belief, PAIRS.flip(1))
    torch.testing.assert_close(one, other.mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize('matched', [0, 1, 2, 5])
def test_few_matches_and_one_place_for_all(matched: int) -> None:
    partner = torch.arange(5)
    partner[matched:] = -1
    confidence = torch.where(partner >= 0, 0.9, 0.0)
    look = SecondLook()
    term = gained(look, torch.zeros(1, 2, 5, 2), partner[None, None], confidence[None, None])
    assert term.shape == (1, 1, 5, 5)
    assert bool(term.isfinite().all())
    if matched < 2:  # no keypoint hears a match but from another one
        assert not bool(term[0, 0, 0, 0])
        assert bool(term[0, 0, 1, 1]) == (matched == 1)
    term.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in look.parameters() if p.grad is not None)
