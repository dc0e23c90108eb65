# SPDX-License-Identifier: Apache-2.0
"""The multi-view matcher for views in order of time: a new one costs the layers of one view.

A view attends to itself and to EARLIER views only, so that what earlier views offer to a new one
(keys and values of every cross layer, and the matching descriptors) never changes: it is computed
once and kept with the keyframe. Equal to the joint matcher with `sees` telling each view the ones
that were there when it came.

What it costs: old features never learn of the new view, and what is kept was computed with the
relative poses of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mv_matcher_ros.geometry.se3 import inverse
from mv_matcher_ros.models.known_poses import squared_epipolar_distance
from mv_matcher_ros.models.matcher import Assignment, GraphLayer, MatcherNetwork, Reach
from mv_matcher_ros.models.view_batch import ViewBatch, padded


@dataclass(frozen=True)
class ViewState:
    """What later views need of a view with room for N keypoints.

    Attributes:
        keys, values: (L, heads, N, size) of each of the L cross layers.
        final: (N, width) matching descriptors.
        place: (N, 2) keypoints as `MatcherNetwork.places` gives them.
        valid: (N,) bool.
    """

    keys: Tensor
    values: Tensor
    final: Tensor
    place: Tensor
    valid: Tensor


@dataclass(frozen=True)
class PastViews:
    """W earlier views with room for N keypoints each: `ViewState`s, stacked."""

    keys: Tensor
    values: Tensor
    final: Tensor
    place: Tensor
    valid: Tensor

    @classmethod
    def of(
        cls, states: Sequence[ViewState], network: MatcherNetwork, views: int, room: int
    ) -> PastViews:
        """With room for `views` views of `room` keypoints; what is not used is not valid.

        What a state has beyond `room` has to be room that it did not use: it was made where more
        was needed.
        """
        profile = network.profile
        layers, heads = profile.layers.count('cross'), profile.heads
        weight = network.final.weight
        # One state of nothing gives the shapes, also where there is no earlier view.
        nothing = weight.new_zeros(layers, heads, 0, profile.attention_size // heads)
        empty = ViewState(
            nothing,
            nothing,
            weight.new_zeros(0, profile.width),
            torch.zeros(0, 2, device=weight.device),
            torch.zeros(0, dtype=torch.bool, device=weight.device),
        )
        everyone = [*states, *[empty] * (max(views - len(states), 0) or 1)]
        count = max(views, len(states))

        def stacked(parts: Sequence[Tensor], dim: int) -> Tensor:
            cut = [part.narrow(dim, 0, min(part.shape[dim], room)) for part in parts]
            return torch.stack([padded(part, room, dim) for part in cut])[:count]

        return cls(
            stacked([s.keys for s in everyone], 2),
            stacked([s.values for s in everyone], 2),
            stacked([s.final for s in everyone], 0),
            stacked([s.place for s in everyone], 0),
            stacked([s.valid for s in everyone], 0),
        )


@dataclass(frozen=True)
class PastPoses:
    """Relative poses of W earlier views, where known.

    Attributes:
        plane_xy: (N, 2) keypoints of the new view on its normalised plane.
        past_xy: (W, N, 2) of each earlier one.
        past_from_new: (W, 4, 4), any value where unknown.
        sigma: (W,) as in `KnownPoses`; inf where not known.
    """

    plane_xy: Tensor
    past_xy: Tensor
    past_from_new: Tensor
    sigma: Tensor

    def distances(self) -> tuple[Tensor, Tensor]:
        """(W, N, N) squared epipolar distances, rows being keypoints of the new view, then past.

        The first of the lines of new keypoints, the second of those of past ones.
        """
        there = squared_epipolar_distance(
            self.plane_xy, self.past_xy, self.past_from_new, self.sigma
        )
        eye = torch.eye(4, dtype=self.past_from_new.dtype, device=self.past_from_new.device)
        known = self.sigma.isfinite()[:, None, None]
        new_from_past = inverse(torch.where(known, self.past_from_new, eye))
        back = squared_epipolar_distance(self.past_xy, self.plane_xy, new_from_past, self.sigma)
        return there, back


class StreamingNetwork(nn.Module):
    """A matcher that sees one new view. Keeps no state: the caller keeps the `ViewState`s."""

    def __init__(self, network: MatcherNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        keypoints_xy: Tensor,
        descriptors: Tensor,
        scores: Tensor,
        valid: Tensor,
        image_size: Tensor,
        keys: Tensor,
        values: Tensor,
        final: Tensor,
        place: Tensor,
        past_valid: Tensor,
        *poses: Tensor,
    ) -> tuple[Tensor, ...]:
        """`look` as a function of tensors (fields of `ViewBatch`, `PastViews`, `PastPoses`).

        Returns keys, values, final and place of the new view, then partner, log_score and
        confidence.
        """
        batch = ViewBatch(keypoints_xy, descriptors, scores, valid, image_size)
        past = PastViews(keys, values, final, place, past_valid)
        state, made = self.look(batch, past, PastPoses(*poses) if poses else None)
        return (
            state.keys, state.values, state.final, state.place,
            made.partner, made.log_score, made.confidence,
        )  # fmt: skip

    def look(
        self, batch: ViewBatch, past: PastViews, poses: PastPoses | None = None
    ) -> tuple[ViewState, Assignment]:
        """What a new view offers to later ones, and its matches with the earlier ones.

        Args:
            batch: one tuple of one view, N keypoints.
            past: W earlier views, with the same N.
            poses: relative poses of the earlier views, where known.

        Returns:
            the state to keep if the view becomes a keyframe; the assignment of pairs
            (w, W) of every earlier view w with the new one, which is number W.

        Raises:
            ModelError: descriptors of another width than the network's.
        """
        network = self.network
        views = past.keys.shape[0]
        distances = None
        if poses is not None and network.geometry is not None and views:
            distances = poses.distances()
        state = self._seen(batch, past, None if distances is None else distances[0])
        final = torch.cat([past.final, state.final[None]])
        place = torch.cat([past.place, state.place[None]])
        valid = torch.cat([past.valid, state.valid[None]])
        earlier = torch.arange(views, device=final.device)
        pairs = torch.stack([earlier, torch.full_like(earlier, views)], dim=1)
        penalty = None
        if distances is not None:
            penalty = network.penalty_of((distances[0].mT + distances[1])[None])
        return state, network.assign(final[None], place[None], valid[None], pairs, penalty)

    def _seen(self, batch: ViewBatch, past: PastViews, distance: Tensor | None) -> ViewState:
        network = self.network
        x = network.encode(batch)[0]
        valid = batch.valid[0]
        if distance is not None:
            distance = distance.transpose(0, 1).flatten(1)[None, None]
        own, across = Reach.of(valid), Reach.of(past.valid.reshape(1, -1), distance)
        offered: list[tuple[Tensor, Tensor]] = []
        for number, (kind, layer) in enumerate(
            zip(network.profile.layers, network.layers, strict=True)
        ):
            assert isinstance(layer, GraphLayer)
            keys, values = layer.keys_and_values(x)
            if kind == 'self':
                x = layer.updated(x, keys, values, own)
                continue
            offered.append((keys[0], values[0]))
            if not past.valid.numel():
                x = layer.alone(x)
                continue
            keys, values = (
                part[:, len(offered) - 1].transpose(0, 1).flatten(1, 2)[None]
                for part in (past.keys, past.values)
            )
            x = layer.updated(x, keys, values, across, network.weight_of_lines(number))
        kept, given = (torch.stack(parts) for parts in zip(*offered, strict=True))
        return ViewState(kept, given, network.final(x)[0], network.places(batch)[0, 0], valid[0])
