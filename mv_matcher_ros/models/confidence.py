# SPDX-License-Identifier: Apache-2.0
"""How far a match is to be believed: by itself, then by whether its neighbours move alike.

What two nodes say of each other does not show that a match of a repeated texture is wrong; that
the keypoints around it went elsewhere does. Wrong matches that are believed are what a weighted
eight-point does not survive.

Sources: Roessle and Niessner, End2End Multi-View Feature Matching, ICCV 2023, section 3.3 (a match
by itself). Rounds in which matches listen to their neighbours are our own, in the line of
Yi et al., Learning to Find Good Correspondences, CVPR 2018 (the mean over all matches) and Bian
et al., GMS, CVPR 2017 (neighbours that move alike).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mv_matcher_ros.models.perceptron import perceptron
from mv_matcher_ros.models.profiles import MatcherProfile

# Nearer than this, in units of the keypoint encoder (half a pixel at VGA), is at the same place.
SAME_PLACE = 1e-3
# What an edge says: two lengths, their ratio, a turn (2), a confidence.
EDGE = 6


class ConfidenceHead(nn.Module):
    """Confidence of a match: sigmoid(F1(F2(log score) + F3(f_i, f_j))) (End2End, section 3.3),
    then the same after each round of listening to neighbours.

    The paper concatenates f_i and f_j, which gives a pair a direction. Sum and absolute difference
    hold the same, without order: a match has one confidence, whichever view is named first.
    """

    def __init__(self, profile: MatcherProfile) -> None:
        super().__init__()
        size, width = profile.confidence_size, profile.width
        self.neighbours = profile.neighbours
        self.of_score = perceptron((1, size, size), normalised=True, ends_active=True)
        self.of_nodes = perceptron((2 * width, 2 * size, size), normalised=True, ends_active=True)
        self.together = nn.Linear(size, 1)
        self.rounds = nn.ModuleList(ConsensusRound(size) for _ in range(profile.consensus))

    def forward(
        self, final: Tensor, place: Tensor, pairs: Tensor, partner: Tensor, log_score: Tensor
    ) -> Tensor:
        """(R, B, P, N) logits before and after each round, any value for keypoints without
        partner; the last ones are the confidences.

        Args:
            final: (B, V, N, width) matching descriptors; place: (B, V, N, 2) of the keypoints.
            pairs: (P, 2); partner: (B, P, N); log_score: (B, P, N), as in `Assignment`.
        """
        matched = partner >= 0
        there = partner.clamp_min(0)[..., None]
        a, b = pairs.T

        def both(of_views: Tensor) -> tuple[Tensor, Tensor]:
            index = there.expand(*partner.shape, of_views.shape[-1])
            return of_views[:, a], of_views[:, b].gather(2, index)

        one, other = both(final)
        nodes = torch.cat([one + other, (one - other).abs()], dim=-1)
        score = torch.where(matched, log_score, 0.0)[..., None]
        hidden = self.of_score(score) + self.of_nodes(nodes)
        logits = [self.together(hidden)[..., 0]]
        if len(self.rounds):
            edges = Edges.both_ways(*both(place), matched, self.neighbours)
            for layer in self.rounds:
                hidden, logit = layer(hidden, logits[-1], edges, matched)
                logits.append(logit)
        return torch.stack(logits)


@dataclass(frozen=True)
class Edges:
    """From each of N matches of a pair to its nearest ones, in one of the two views.

    Attributes:
        index: (B, P, N, K) int64 the neighbours; there: (B, P, N, K) bool, they are matches.
        geometry: (B, P, N, K, 5) how a neighbour lies: logarithms of its distance here and in the
            other view, of their ratio, cosine and sine of the turn between the two.
    """

    index: Tensor
    there: Tensor
    geometry: Tensor

    @classmethod
    def both_ways(
        cls, one: Tensor, other: Tensor, matched: Tensor, count: int
    ) -> tuple[Edges, Edges]:
        """In the first view and in the second; places: (B, P, N, 2) of both keypoints."""
        return cls._of(one, other, matched, count), cls._of(other, one, matched, count)

    @classmethod
    def _of(cls, here: Tensor, beyond: Tensor, matched: Tensor, count: int) -> Edges:
        index, there, _ = nearest(here.detach(), matched, count)
        step, step_beyond = (at(x, index) - x[..., None, :] for x in (here, beyond))
        length, length_beyond = (
            (x.square().sum(-1) + SAME_PLACE**2).sqrt() for x in (step, step_beyond)
        )
        both = length * length_beyond
        cosine = (step * step_beyond).sum(-1) / both
        sine = (step[..., 0] * step_beyond[..., 1] - step[..., 1] * step_beyond[..., 0]) / both
        near, near_beyond = length.log(), length_beyond.log()
        geometry = torch.stack([near, near_beyond, near_beyond - near, cosine, sine], dim=-1)
        return cls(index, there, geometry)


class ConsensusRound(nn.Module):
    """Matches listen to their neighbours in both views and to the mean of all, the believed ones
    being heard most. Nothing depends on which view is named first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        inner = size // 2
        self.of_edge = nn.Linear(EDGE, inner)
        self.of_match = nn.Linear(size, inner, bias=False)
        self.message = nn.Sequential(nn.LayerNorm(inner), nn.ReLU(), nn.Linear(inner, inner))
        self.update = perceptron((2 * size + 2 * inner, 2 * size, size), normalised=True)
        self.together = nn.Linear(size, 1)

    def forward(
        self, hidden: Tensor, logit: Tensor, edges: tuple[Edges, Edges], matched: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, P, N, size) what matches hold, and (B, P, N) logits, after listening."""
        belief = torch.where(matched, logit.sigmoid(), 0.0)
        said = self.of_match(hidden)
        heard = self._heard(said, belief, edges[0]) + self._heard(said, belief, edges[1])
        everyone = (belief[..., None] * hidden).sum(-2, keepdim=True)
        everyone = everyone / belief.sum(-1)[..., None, None].clamp_min(SAME_PLACE)
        parts = [hidden, heard, everyone.expand_as(hidden)]
        hidden = hidden + self.update(torch.cat(parts, dim=-1))
        return hidden, self.together(hidden)[..., 0]

    def _heard(self, said: Tensor, belief: Tensor, edges: Edges) -> Tensor:
        """(B, P, N, 2·inner) mean and spread of what the neighbours in one view say."""
        of_neighbour = at(belief[..., None], edges.index)
        edge = self.of_edge(torch.cat([edges.geometry, of_neighbour], dim=-1))
        message = self.message(edge + at(said, edges.index))
        weight = torch.where(edges.there[..., None], of_neighbour, 0.0)
        weight = weight / weight.sum(-2, keepdim=True).clamp_min(SAME_PLACE)
        mean = (weight * message).sum(-2)
        spread = (weight * (message - mean[..., None, :]).square()).sum(-2)
        return torch.cat([mean, (spread + SAME_PLACE**2).sqrt()], dim=-1)


def nearest(place: Tensor, matched: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest matches of each keypoint but its own, by places (B, P, N, 2).

    Returns:
        (B, P, N, K) int64 which, bool whether there is one, and the squared distances, zero where
        there is none. K is `count`, or N where that is less. What differs by less than a
        millionth of the largest squared distance (four with 2048 keypoints) is as near.
    """
    if place.shape[-2] == 0:
        none = matched[..., None].expand(*matched.shape, 0)
        return none.long(), none, none.to(place)
    # Squared distances |x|² − 2 x·y + |y|² by one product, in whole steps; the number of y in the
    # low bits, so that the least of a row says which one it is: faster than topk on a CPU.
    bits = max(place.shape[-2] - 1, 1).bit_length()
    nowhere = 2.0 ** min(31 - bits, 24) - 1.0
    length = place.square().sum(-1, keepdim=True)
    step = (4.0 * length.amax(dim=-2, keepdim=True)).clamp_min(1e-12) / nowhere
    one = torch.ones_like(length)
    far = torch.where(matched[..., None], length / step, 2.0 * nowhere)
    apart = torch.cat([-2.0 * place / step, length / step, one], dim=-1) @ (
        torch.cat([place, one, far], dim=-1).mT
    )
    number = torch.arange(place.shape[-2], device=place.device)
    apart.scatter_(-1, number.expand_as(matched)[..., None], nowhere)  # not its own
    apart = apart.clamp_(0.0, nowhere).to(torch.int32).bitwise_left_shift_(bits)
    apart.bitwise_or_(number.to(torch.int32))
    found = []
    for _ in range(min(count, place.shape[-2])):
        found.append(apart.amin(dim=-1, keepdim=True))
        chosen = found[-1].bitwise_and(2**bits - 1).long()
        apart.scatter_(-1, chosen, 2**31 - 1)
    least = torch.cat(found, dim=-1)
    index = least.bitwise_and(2**bits - 1).long()
    there = least.bitwise_right_shift(bits) < nowhere
    distance = (at(place, index) - place[..., None, :]).square().sum(-1)
    return index, there, torch.where(there, distance, 0.0)


def at(of_matches: Tensor, index: Tensor) -> Tensor:
    """(B, P, N, K, C) rows of (B, P, N, C) that (B, P, N, K) names."""
    room, size = of_matches.shape[-2:]
    pairs = index.flatten(0, -3)
    first = room * torch.arange(len(pairs), device=index.device)[:, None, None]
    rows = of_matches.reshape(-1, size).index_select(0, (pairs + first).flatten())
    return rows.reshape(*index.shape, size)
