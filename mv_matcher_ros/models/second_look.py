# SPDX-License-Identifier: Apache-2.0
"""Scores made again with what the first matches say of where partners should be.

A keypoint whose neighbours were matched has its partner about where a similarity, fitted to them,
takes it. That finds partners that look like many others do, and it is learned with few parameters
from few examples, where a graph network alone needs millions. The idea is that of guided matching;
as a term of the scores between two optimal transports it is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.models.confidence import at, nearest
from mv_matcher_ros.models.sinkhorn import exponential

# Matches that a place is predicted from: the nearest, and only believed ones.
NEIGHBOURS = 12
BELIEVED = 0.3
# Of predicted places, in units of the keypoint encoder: the least error (2 px at VGA), and how
# strongly the similarity is held at "as here" where neighbours lie close together (5 px).
LEAST_ERROR = 4e-3
HELD = 1e-4
# Sum of weights of the neighbours below which nothing is predicted.
LEAST_SUPPORT = 0.5
# A partner may be hidden, or on something else: beyond this squared distance farther costs little.
FAR = 9.0


class SecondLook(nn.Module):
    """What the scores of a pair gain where neighbours agree, and lose where they do not.

    With q the squared distance of a keypoint from the place predicted for a partner, in units of
    the prediction's spread: 8 α exp(−q/2) − β q / (1 + q/9). The weights α and β and the width of
    the spread follow from how many neighbours there are and how well they fit (softplus of a
    perceptron).
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 3))
        last = self.weights[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():  # about what is learned
            last.bias.copy_(torch.tensor([-1.5, -1.3, -1.3]))

    def forward(
        self, scores: Tensor, place: Tensor, pairs: Tensor, partner: Tensor, confidence: Tensor
    ) -> Tensor:
        """(B, P, N, N) scores of P pairs with what the first look says added to them.

        Args:
            scores: (B, P, N, N) without it.
            place: (B, V, N, 2) keypoints as the encoder takes them; pairs: (P, 2) views.
            partner, confidence: (B, P, N) of the first look; constants to gradients.
        """
        a, b = pairs.T
        belief = confidence.detach()
        back, belief_back = inverted(partner, belief)
        one, other = place[:, a].detach(), place[:, b].detach()
        ahead = self._expected(one, other, partner, belief)
        behind = self._expected(other, one, back, belief_back)
        there, here = lifted(other).mT, lifted(one)
        # q / (1 + q/9) = 9 − 81 / (9 + q): a product and one pass over the scores for each term.
        scores = scores - FAR * ahead.loss[..., None]
        scores.sub_(FAR * behind.loss[..., None, :])
        scores.addcmul_(ahead.gain[..., None], exponential(ahead.linear(-0.5) @ there))
        scores.addcmul_(behind.gain[..., None, :], exponential(here @ behind.linear(-0.5).mT))
        scores.addcdiv_(FAR**2 * ahead.loss[..., None], ahead.linear(1.0, FAR) @ there)
        scores.addcdiv_(FAR**2 * behind.loss[..., None, :], here @ behind.linear(1.0, FAR).mT)
        return scores

    def _expected(self, here: Tensor, beyond: Tensor, partner: Tensor, belief: Tensor) -> Expected:
        there, spread, support = predicted(here, beyond, partner, belief)
        known = torch.stack([support.clamp_min(0.01).log(), 0.5 * spread.log()], dim=-1)
        gain, width, loss = functional.softplus(self.weights(known)).unbind(-1)
        use = support > LEAST_SUPPORT
        return Expected(
            there,
            1.0 / (4.0 * spread * width.clamp_min(0.05)),
            torch.where(use, 8.0 * gain, 0.0),
            torch.where(use, loss, 0.0),
        )


@dataclass(frozen=True)
class Expected:
    """Where the partners of keypoints should be, and what that is worth.

    Attributes:
        there: (B, P, N, 2) predicted places; precision: (B, P, N), q = precision · distance².
        gain, loss: (B, P, N) what is gained at the place (8 α) and lost far from it (β).
    """

    there: Tensor
    precision: Tensor
    gain: Tensor
    loss: Tensor

    def linear(self, scale: float, offset: float = 0.0) -> Tensor:
        """(B, P, N, 4) whose product with `lifted` places is scale · q + offset."""
        scaled = (scale * self.precision)[..., None]
        length = self.there.square().sum(-1, keepdim=True)
        return torch.cat([-2.0 * scaled * self.there, scaled * length + offset, scaled], dim=-1)


def lifted(place: Tensor) -> Tensor:
    """(..., 4) of places (..., 2): themselves, one, and their squared length."""
    length = place.square().sum(-1, keepdim=True)
    return torch.cat([place, torch.ones_like(length), length], dim=-1)


def inverted(partner: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P, N) partners and beliefs of the second view's keypoints, of those of the first."""
    room = partner.shape[-1]
    here = torch.arange(room, device=partner.device).expand_as(partner)
    back = torch.full((*partner.shape[:-1], room + 1), -1, device=partner.device)
    back = back.scatter(-1, torch.where(partner >= 0, partner, room), here)[..., :-1]
    return back, torch.where(back >= 0, belief.gather(-1, back.clamp_min(0)), 0.0)


def predicted(
    here: Tensor, beyond: Tensor, partner: Tensor, belief: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the partner of each keypoint should be, by the matches around it but its own.

    Args:
        here, beyond: (B, P, N, 2) keypoints of the two views.
        partner: (B, P, N) int64 of those here, −1 for none; belief: (B, P, N).

    Returns:
        (B, P, N, 2) places, (B, P, N) their squared spread, and (B, P, N) the sum of the weights
        of what they were predicted from: a similarity, by weighted least squares.
    """
    target = beyond.gather(2, partner.clamp_min(0)[..., None].expand(*partner.shape, 2))
    index, found, apart = nearest(here, (partner >= 0) & (belief > BELIEVED), NEIGHBOURS)
    farthest = apart.amax(dim=-1, keepdim=True) + HELD
    trust = at(belief[..., None], index)[..., 0]
    weight = torch.where(found, trust * torch.exp(-2.0 * apart / farthest), 0.0)
    support = weight.sum(-1)
    weight = (weight / support[..., None].clamp_min(1e-3))[..., None]
    x, y = at(here, index), at(target, index)
    x_mean, y_mean = (weight * x).sum(-2), (weight * y).sum(-2)
    x, y = x - x_mean[..., None, :], y - y_mean[..., None, :]
    # The similarity as a complex factor.
    size = (weight * x.square()).sum((-2, -1)) + HELD
    real = ((weight * x * y).sum((-2, -1)) + HELD) / size
    imaginary = (weight[..., 0] * (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0])).sum(-1) / size

    def carried(v: Tensor, re: Tensor, im: Tensor) -> Tensor:
        return torch.stack(
            [re * v[..., 0] - im * v[..., 1], im * v[..., 0] + re * v[..., 1]], dim=-1
        )

    place = y_mean + carried(here - x_mean, real, imaginary)
    left = y - carried(x, real[..., None], imaginary[..., None])
    spread = (weight * left.square()).sum((-2, -1)) + LEAST_ERROR**2
    return place, spread, support
