# SPDX-License-Identifier: Apache-2.0
"""Matches that listen to their neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.models.confidence import ConfidenceHead, Edges, at, nearest
from mv_matcher_ros.models.profiles import MatcherProfile

PROFILE = MatcherProfile(width=8, attention_size=8, confidence_size=16, neighbours=6)
PAIRS = torch.tensor([[0, 1]])


def head(profile: MatcherProfile = PROFILE) -> ConfidenceHead:
    torch.manual_seed(0)
    return ConfidenceHead(profile).eval()


def scene(count: int, wrong: int, seed: int) -> tuple[Tensor, Tensor]:
    """(2, N, 2) places of matched keypoints: a similarity, but for the last `wrong` matches."""
    generator = torch.Generator().manual_seed(seed)
    turn, scale = (torch.rand(2, generator=generator) - 0.5) * torch.tensor([1.0, 0.6])
    here = torch.rand(count, 2, generator=generator) - 0.5
    matrix = torch.stack(
        [
            torch.stack([turn.cos(), -turn.sin()]),
            torch.stack([turn.sin(), turn.cos()]),
        ]
    )
    there = scale.exp() * here @ matrix.T
    if wrong:
        there[-wrong:] = torch.rand(wrong, 2, generator=generator) - 0.5
    right = torch.ones(count)
    right[count - wrong :] = 0.0
    return torch.stack([here, there]), right


def logits(model: ConfidenceHead, place: Tensor, final: Tensor | None = None) -> Tensor:
    count = place.shape[1]
    final = torch.zeros(1, 2, count, PROFILE.width) if final is None else final
    partner = torch.arange(count)[None, None]
    return model(final, place[None], PAIRS, partner, torch.zeros(1, 1, count))


def test_wrong_matches_are_told_by_their_neighbours_alone() -> None:
    """Nodes and scores of all matches are equal here: only places tell them apart."""
    model = head().train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        place, right = scene(60, 20, step)
        loss = functional.binary_cross_entropy_with_logits(logits(model, place)[-1, 0, 0], right)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    place, right = scene(60, 20, 10_000)
    with torch.inference_mode():
        found = logits(model, place)[:, 0, 0]
    assert float(((found[-1] > 0) == right.bool()).float().mean()) > 0.9
    assert float(found[0].std()) < 1e-6  # before the first round nothing tells them apart


def test_a_match_has_one_confidence_whichever_view_is_named_first() -> None:
    model, (place, _) = head(), scene(30, 10, 0)
    final = torch.randn(1, 2, 30, PROFILE.width, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    final[:, 1], place[1] = final[:, 1, order], place[1, order]
    there = order.argsort()
    score = -torch.rand(30, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        one = model(final, place[None], PAIRS, there[None, None], score[None, None])
        turned = PAIRS.flip(1)
        other = model(final, place[None], turned, order[None, None], score[order][None, None])
    torch.testing.assert_close(one[:, 0, 0, order], other[:, 0, 0], rtol=0, atol=1e-5)


def test_keypoints_without_partner_are_heard_by_nobody() -> None:
    model, (place, _) = head(), scene(30, 0, 0)
    final = torch.randn(1, 2, 30, PROFILE.width, generator=torch.Generator().manual_seed(1))
    partner = torch.arange(30)
    partner[20:] = -1
    score = torch.where(partner >= 0, -1.0, -torch.inf)
    with torch.inference_mode():
        less = model(
            final[:, :, :20],
            place[None, :, :20],
            PAIRS,
            partner[None, None, :20],
            score[None, None, :20],
        )
        more = model(final, place[None], PAIRS, partner[None, None], score[None, None])
    torch.testing.assert_close(less, more[..., :20], rtol=0, atol=1e-5)
    assert bool(more.isfinite().all())


@pytest.mark.parametrize('count', [0, 1, 2, 7])
def test_few_matches_and_one_place_for_all(count: int) -> None:
    place = torch.zeros(2, count, 2, requires_grad=True)
    found = logits(head(), place)
    assert found.shape == (PROFILE.consensus + 1, 1, 1, count)
    found.sum().backward()
    assert bool(found.isfinite().all())
    assert place.grad is not None
    assert bool(place.grad.isfinite().all())


@pytest.mark.parametrize('count', [3, 60, 700])
def test_the_nearest_matches_are_those_of_all_distances(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    place = torch.rand(2, 3, count, 2, generator=generator, dtype=torch.float64) - 0.5
    matched = torch.rand(2, 3, count, generator=generator) < 0.4
    index, there, apart = nearest(place.float(), matched, 10)
    every = torch.cdist(place, place).square()
    every = every.masked_fill(~matched[..., None, :], torch.inf)
    every = every.masked_fill(torch.eye(count, dtype=torch.bool), torch.inf)
    wanted = every.topk(min(10, count), largest=False).values
    assert torch.equal(there, wanted.isfinite())
    # Those that are as far to the last bit but one may change places.
    torch.testing.assert_close(apart[there].double(), wanted[there], rtol=0, atol=3e-6)
    assert bool(matched[:, :, None].expand(-1, -1, count, -1).gather(-1, index)[there].all())


def test_the_nearest_matches_are_found_and_how_they_lie() -> None:
    here = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.3], [5.0, 5.0], [0.01, 0.0]])
    beyond = 2.0 * torch.stack([-here[:, 1], here[:, 0]], dim=1)  # a quarter turn, twice as far
    matched = torch.tensor([True, True, True, True, False])
    index, there, apart = nearest(here[None, None], matched[None, None], 4)
    assert index[0, 0, 0, :3].tolist() == [1, 2, 3]
    assert there[0, 0, 0].tolist() == [True, True, True, False]
    assert apart[0, 0, 0].tolist() == pytest.approx([0.01, 0.09, 50.0, 0.0])
    edges, back = Edges.both_ways(here[None, None], beyond[None, None], matched[None, None], 1)
    length, beyond_length, ratio, cosine, sine = edges.geometry[0, 0, 0, 0]
    assert float(length.exp()) == pytest.approx(0.1, rel=1e-3)
    assert float(beyond_length.exp()) == pytest.approx(0.2, rel=1e-3)
    assert float(ratio.exp()) == pytest.approx(2.0, rel=1e-3)
    assert (float(cosine), float(sine)) == pytest.approx((0.0, 1.0), abs=1e-3)
    assert float(back.geometry[0, 0, 0, 0, 4]) == pytest.approx(-1.0, abs=1e-3)
    assert at(here[None, None], edges.index)[0, 0, 0, 0].tolist() == pytest.approx([0.1, 0.0])
