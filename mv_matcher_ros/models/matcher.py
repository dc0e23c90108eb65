# SPDX-License-Identifier: Apache-2.0
"""The multi-view matcher: SuperGlue's graph network over V views, with a confidence per match.

Keypoints of all views are the nodes of one graph. Self layers attend to the own view, cross layers
to the keypoints of all other views together. For two views it is SuperGlue. There is no loop over
views or pairs: views are a dimension.

Sources: Sarlin et al., SuperGlue, CVPR 2020; Roessle and Niessner, End2End Multi-View Feature
Matching with Differentiable Pose Optimization, ICCV 2023 (the cross layers, the confidences).
Own: layer norm in place of batch norm, known poses as a term of attention and scores, what
`confidence` adds to the paper's head, and the `second_look`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.confidence import ConfidenceHead
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.perceptron import perceptron
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.models.second_look import SecondLook
from mv_matcher_ros.models.sinkhorn import log_optimal_transport, mutual_matches
from mv_matcher_ros.models.view_batch import ViewBatch

# Share of the image's longer side that is one unit of the keypoint encoder (SuperGlue).
ENCODER_SCALE = 0.7
# Untrained: score of two equal descriptors, and the similarity below which none is a partner.
STARTING_SHARPNESS = 20.0
STARTING_DUSTBIN = 0.8


@dataclass(frozen=True)
class Assignment:
    """What the matcher says of P pairs of views.

    Attributes:
        pairs: (P, 2) int64, views a < b.
        log_probability: (B, P, N + 1, N + 1) logarithm of the assignment with dustbins.
        partner: (B, P, N) int64 keypoint of b for each of a, −1 for none.
        log_score: (B, P, N) logarithm of the match's probability, −inf for none.
        confidence: (B, P, N) in [0, 1], 0 for none.
        confidence_logit: (R, B, P, N) for training, the last is what the confidence is the sigmoid
            of, those before were made with less; None without a confidence head.
        before: of the look before this one, for training; None for the first.
    """

    pairs: Tensor
    log_probability: Tensor
    partner: Tensor
    log_score: Tensor
    confidence: Tensor
    confidence_logit: Tensor | None = None
    before: Assignment | None = None

    @property
    def looks(self) -> list[Assignment]:
        """All looks, the first one first."""
        return [*(self.before.looks if self.before is not None else ()), self]

    def matches(self, tuple_index: int = 0) -> Matches:
        """The matches of one tuple of the batch on the host, in order of pairs and keypoints."""
        partner, confidence = self.partner[tuple_index].cpu(), self.confidence[tuple_index].cpu()
        return matches_from(self.pairs.cpu(), partner, confidence)


def matches_from(pairs: Tensor, partner: Tensor, confidence: Tensor) -> Matches:
    """Matches in order of pairs and keypoints; (P, 2), (P, N), (P, N) as in `Assignment`."""
    pair, keypoint = (partner >= 0).nonzero(as_tuple=True)
    keypoints = torch.stack([keypoint, partner[pair, keypoint]], dim=1)
    return Matches(pairs[pair], keypoints, confidence[pair, keypoint])


def pair_index(views: int, pairs: Sequence[tuple[int, int]] | None = None) -> Tensor:
    """(P, 2) int64 of the named pairs, None: of all pairs of so many views.

    Raises:
        ModelError: a pair that is not of two of the views, the first before the second.
    """
    chosen = list(combinations(range(views), 2) if pairs is None else pairs)
    for a, b in chosen:
        if not 0 <= a < b < views:
            raise ModelError(f'pair ({a}, {b}) of {views} views: 0 <= a < b < {views} is needed')
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2)


class MatcherNetwork(nn.Module):
    """The network. `profile` says how it looks; weights come from `models.weights`."""

    def __init__(self, profile: MatcherProfile) -> None:
        super().__init__()
        self.profile = profile
        width = profile.width
        inputs = 3 if profile.uses_scores else 2
        self.encoder = perceptron((inputs, *profile.encoder, width), profile.normalised)
        # Unit descriptors as nodes with entries of about one, which the layers are made for.
        self.gain = width**0.5 if profile.normalised else 1.0
        self.descriptor: nn.Module = nn.Identity()
        if profile.descriptor_size != width:
            self.descriptor = nn.Linear(profile.descriptor_size, width)
        self.layers = nn.ModuleList(GraphLayer(profile) for _ in profile.layers)
        self.final = nn.Linear(width, width)
        self.dustbin = nn.Parameter(torch.tensor(1.0))
        self.confidence = ConfidenceHead(profile) if profile.confidence_size else None
        self.again = SecondLook() if profile.confidence_size and profile.looks > 1 else None
        # Weight of the epipolar term in each layer and, last, in the scores (softplus of it).
        self.geometry = (
            nn.Parameter(torch.zeros(len(profile.layers) + 1)) if profile.geometry else None
        )
        if profile.normalised:
            self._start_as_nearest_neighbours()

    def _start_as_nearest_neighbours(self) -> None:
        """Untrained, layers change nothing and scores are similarities of the descriptors.

        Training starts from a matcher that works instead of from noise.
        """
        updates = [layer.update for layer in self.layers if isinstance(layer, GraphLayer)]
        for part in (self.encoder, *updates):
            for parameter in part[-1].parameters():
                nn.init.zeros_(parameter)
        width = self.profile.width
        gain = (STARTING_SHARPNESS * width**-0.5) ** 0.5
        if isinstance(self.descriptor, nn.Linear):
            nn.init.orthogonal_(self.descriptor.weight)
            nn.init.zeros_(self.descriptor.bias)
        with torch.no_grad():
            self.final.weight.copy_(gain * torch.eye(width))
            self.final.bias.zero_()
            self.dustbin.fill_(STARTING_SHARPNESS * STARTING_DUSTBIN)

    def backbone_to(self, dtype: torch.dtype) -> MatcherNetwork:
        """Make the graph run in `dtype`; confidences, transport and geometry stay as they are."""
        for part in (self.encoder, self.descriptor, self.layers, self.final):
            part.to(dtype)
        return self

    def forward(
        self,
        batch: ViewBatch,
        sees: Tensor | None = None,
        known: KnownPoses | None = None,
        pairs: Sequence[tuple[int, int]] | Tensor | None = None,
    ) -> Assignment:
        """Match all views of each tuple jointly.

        Args:
            batch: the views.
            sees: (B, V, V) bool, cross layers of view [:, v] attend to view [:, :, w]; None: every
                view to all others. Views in order of time that see only earlier ones are what the
                streaming matcher computes.
            known: relative poses, where known.
            pairs: views a < b to be matched, (P, 2) int64 if a tensor; None: all pairs.

        Raises:
            ModelError: descriptors of another width than the network's.
        """
        index = pairs if isinstance(pairs, Tensor) else pair_index(batch.views, pairs)
        index = index.to(batch.valid.device)
        distance = None
        if known is not None and self.geometry is not None and batch.views > 1:
            distance = known.squared_distance(others(batch.views, batch.valid.device))
        final = self.describe(batch, sees, distance)
        penalty = None if distance is None else self.penalty(distance, index)
        return self.assign(final, self.places(batch), batch.valid, index, penalty)

    def describe(
        self, batch: ViewBatch, sees: Tensor | None = None, distance: Tensor | None = None
    ) -> Tensor:
        """(B, V, N, width) matching descriptors: the keypoint encoder and all graph layers.

        distance: as `KnownPoses.squared_distance` of all other views gives it.
        """
        x = self.encode(batch).flatten(0, 1)
        own, across = neighbourhood(batch, sees, distance)
        for number, (kind, layer) in enumerate(zip(self.profile.layers, self.layers, strict=True)):
            assert isinstance(layer, GraphLayer)
            if kind == 'self':
                x = layer.updated(x, *layer.keys_and_values(x), own)
            elif batch.views > 1:
                keys, values = (of_others(part, batch.views) for part in layer.keys_and_values(x))
                x = layer.updated(x, keys, values, across, self.weight_of_lines(number))
            else:
                x = layer.alone(x)
        return self.final(x).unflatten(0, batch.valid.shape[:2])

    def encode(self, batch: ViewBatch) -> Tensor:
        """(B, V, N, width) keypoints as nodes: descriptor plus encoded position."""
        given = batch.descriptors.shape[-1]
        if given != self.profile.descriptor_size:
            raise ModelError(
                f'the matcher takes descriptors of width {self.profile.descriptor_size}, '
                f'these have {given}: its weights belong to another detector'
            )
        place = self.places(batch).to(self.final.weight.dtype)
        descriptors, scores = (
            torch.where(batch.valid[..., None], x.to(place.dtype), 0.0)
            for x in (batch.descriptors, batch.scores[..., None])
        )
        if self.profile.uses_scores:
            place = torch.cat([place, scores], dim=-1)
        return self.descriptor(self.gain * descriptors) + self.encoder(place)

    @staticmethod
    def places(batch: ViewBatch) -> Tensor:
        """(B, V, N, 2) keypoints as the encoder takes them.

        Whatever stands where nothing is used, also what is no number, enters nowhere.
        """
        size = batch.image_size[:, :, None]
        longer = size.amax(dim=-1, keepdim=True)
        place = (batch.keypoints_xy - 0.5 * size) / (ENCODER_SCALE * longer)
        return torch.where(batch.valid[..., None], place, 0.0)

    def penalty(self, distance: Tensor, pairs: Tensor) -> Tensor:
        """(B, P, N, N) what the scores of pairs lose by epipolar distances; see `describe`."""
        a, b = pairs.T
        # The number of b among the others of a, and of a among those of b.
        return self.penalty_of(
            distance[:, a, b - (b > a).long()] + distance[:, b, a - (a > b).long()].mT
        )

    def penalty_of(self, both_ways: Tensor) -> Tensor:
        """What scores lose by the sum of the squared distances both ways, of any shape."""
        assert self.geometry is not None
        return 0.5 * functional.softplus(self.geometry[-1]).to(both_ways.dtype) * both_ways

    def weight_of_lines(self, layer: int) -> Tensor | None:
        """() what a squared epipolar distance takes from the logits of a layer's attention."""
        return None if self.geometry is None else functional.softplus(self.geometry[layer])

    def assign(
        self,
        final: Tensor,
        place: Tensor,
        valid: Tensor,
        pairs: Tensor,
        penalty: Tensor | None = None,
    ) -> Assignment:
        """Optimal transport, mutual matches and confidences of pairs, in float32.

        Args:
            final: (B, V, N, width) matching descriptors; place: (B, V, N, 2) as `places` gives
                them; valid: (B, V, N) bool.
            pairs: (P, 2) int64 views.
            penalty: (B, P, N, N) subtracted from the scores.
        """
        with torch.autocast(final.device.type, enabled=False):
            if final.dtype != torch.float64:
                final = final.float()
            a, b = pairs.T
            scores = (final * self.profile.width**-0.5)[:, a] @ final[:, b].mT
            if penalty is not None:
                scores = scores - penalty
            place = place.to(final.dtype)
            made = self._look(scores, final, place, valid, pairs, None)
            if self.again is not None and place.shape[2]:
                for _ in range(self.profile.looks - 1):
                    seen = self.again(scores, place, pairs, made.partner, made.confidence)
                    made = self._look(seen, final, place, valid, pairs, made)
            return made

    def _look(
        self,
        scores: Tensor,
        final: Tensor,
        place: Tensor,
        valid: Tensor,
        pairs: Tensor,
        before: Assignment | None,
    ) -> Assignment:
        log_probability = log_optimal_transport(
            scores,
            self.dustbin,
            valid[:, pairs[:, 0]],
            valid[:, pairs[:, 1]],
            self.profile.iterations,
            self.profile.sinkhorn,
        )
        partner, log_score = mutual_matches(log_probability, self.profile.threshold)
        if self.confidence is None:
            return Assignment(pairs, log_probability, partner, log_score, log_score.exp())
        logit = self.confidence(final, place, pairs, partner, log_score)
        confidence = torch.where(partner >= 0, logit[-1].sigmoid(), 0.0)
        return Assignment(pairs, log_probability, partner, log_score, confidence, logit, before)


@dataclass(frozen=True)
class Reach:
    """The keys that nodes may hear.

    Attributes:
        allowed: (K, 1, 1, M) bool; where nothing may be heard everything is, to no effect.
        heard: (K, 1, 1) bool, whether there is anything to hear.
        distance: (K, 1, N, M) squared epipolar distance; None: unknown.
    """

    allowed: Tensor
    heard: Tensor
    distance: Tensor | None = None

    @classmethod
    def of(cls, keys: Tensor, distance: Tensor | None = None) -> Reach:
        """Of (K, M) bool keys."""
        heard = keys.any(dim=-1)[:, None, None]
        return cls(keys[:, None, None] | ~heard[..., None], heard, distance)

    def mask(self, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What attention takes: bool, or what is added to its logits.

        weight: () of a squared distance.
        """
        if self.distance is None or weight is None:
            return self.allowed
        hidden = torch.zeros_like(self.allowed, dtype=dtype).masked_fill(~self.allowed, -torch.inf)
        return torch.addcmul(hidden, self.distance.to(dtype), -weight.to(dtype))


def others(views: int, device: torch.device) -> Tensor:
    """(V, V − 1) int64, the other views of each view in order."""
    everyone = torch.arange(views, device=device)
    rest = everyone[: max(views - 1, 0)].expand(views, -1)
    return rest + (rest >= everyone[:, None])


def of_others(part: Tensor, views: int) -> Tensor:
    """(B·V, heads, N, C) of each view → (B·V, heads, (V − 1)·N, C) of all others."""
    by_head = part.unflatten(0, (-1, views)).transpose(1, 2)
    gathered = by_head[:, :, others(views, part.device)].flatten(3, 4)  # (B, heads, V, M, C)
    return gathered.transpose(1, 2).flatten(0, 1)


def neighbourhood(
    batch: ViewBatch, sees: Tensor | None, distance: Tensor | None
) -> tuple[Reach, Reach]:
    """What each of the B·V views may hear of itself, and of the others; see `describe`."""
    count, views, capacity = batch.valid.shape
    rest = others(views, batch.valid.device)
    keys = batch.valid[:, rest]
    if sees is not None:
        keys = keys & sees.gather(2, rest.expand(count, *rest.shape))[..., None]
    room = (views - 1) * capacity
    if distance is not None:  # (B, V, V − 1, N, N)
        distance = distance.transpose(2, 3).reshape(count * views, 1, capacity, room)
    return (
        Reach.of(batch.valid.reshape(count * views, capacity)),
        Reach.of(keys.reshape(count * views, max(room, 0)), distance),
    )


class GraphLayer(nn.Module):
    """Attention, then x + MLP([x ‖ message]) (SuperGlue, equations 3 to 6)."""

    def __init__(self, profile: MatcherProfile) -> None:
        super().__init__()
        width, size = profile.width, profile.attention_size
        if size % profile.heads:
            raise ModelError(f'{profile.heads} heads do not divide the attention size {size}')
        self.heads = profile.heads
        self.query = nn.Linear(width, size)
        self.source = nn.Linear(width, 2 * size)  # keys and values
        self.merge = nn.Linear(size, width)
        self.update = perceptron((2 * width, 2 * width, width), profile.normalised)

    def alone(self, x: Tensor) -> Tensor:
        """There is nobody to attend to: the message is nothing."""
        return x + self.update(torch.cat([x, torch.zeros_like(x)], dim=-1))

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(K, heads, N, size) of nodes x (K, N, width)."""
        keys, values = self.source(x).chunk(2, dim=-1)
        return self._by_head(keys), self._by_head(values)

    def updated(
        self, x: Tensor, keys: Tensor, values: Tensor, reach: Reach, weight: Tensor | None = None
    ) -> Tensor:
        """Nodes x (K, N, width) after a message from keys and values (K, heads, M, size).

        weight: of squared epipolar distances, see `Reach`. Who can hear nothing gets no message.
        """
        query = self._by_head(self.query(x))
        message = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=reach.mask(weight, x.dtype)
        )
        message = self.merge(message.transpose(1, 2).flatten(2))
        message = torch.where(reach.heard, message, 0.0)
        return x + self.update(torch.cat([x, message], dim=-1))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
