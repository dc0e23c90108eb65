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
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.geometry.se3 import inverse
from mv_matcher_ros.models.known_poses import squared_epipolar_distance
from mv_matcher_ros.models.matcher import Assignment, GraphLayer, MatcherNetwork
from mv_matcher_ros.models.view_batch import ViewBatch


@dataclass(frozen=True)
class ViewState:
    """What later views need of a view with N keypoints.

    Attributes:
        keys, values: of each cross layer, (1, heads, N, size).
        final: (N, width) matching descriptors.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    final: Tensor


@dataclass(frozen=True)
class PastPoses:
    """Relative poses of W earlier views, where known.

    Attributes:
        plane_xy: (N, 2) keypoints of the new view on its normalised plane.
        past_xy: (N_w, 2) of each earlier one.
        past_from_new: (W, 4, 4), any value where unknown.
        sigma: (W,) as in `KnownPoses`; inf where not known.
    """

    plane_xy: Tensor
    past_xy: Sequence[Tensor]
    past_from_new: Tensor
    sigma: Tensor

    def to(self, device: torch.device | str) -> PastPoses:
        """The same on a device."""
        return PastPoses(
            self.plane_xy.to(device),
            [xy.to(device) for xy in self.past_xy],
            self.past_from_new.to(device),
            self.sigma.to(device),
        )


class StreamingMatcher:
    """Matches a new view with earlier ones. Keeps no state: the caller keeps the `ViewState`s."""

    def __init__(self, matcher: MatcherNetwork) -> None:
        self._matcher = matcher

    def match(
        self, features: Features, past: Sequence[ViewState], poses: PastPoses | None = None
    ) -> tuple[ViewState, Assignment]:
        """What the new view offers to later ones, and its matches with the earlier ones.

        Args:
            features: of the new view.
            past: earlier views in the order in which the new one numbers them.
            poses: relative poses of the earlier views, where known.

        Returns:
            the state to keep if the view becomes a keyframe; the assignment of pairs
            (w, W) of every earlier view w with the new one, which is number W.

        Raises:
            ModelError: descriptors of another width than the network's.
        """
        network = self._matcher
        poses = None if poses is None else poses.to(network.final.weight.device)
        there = self._distances(poses, past) if network.geometry is not None else None
        state = self._look(features, past, there)
        states = [*past, state]
        capacity = max(len(s.final) for s in states)
        final = torch.stack([
            functional.pad(s.final, (0, 0, 0, capacity - len(s.final))) for s in states
        ])  # fmt: skip
        count = torch.tensor([len(s.final) for s in states], device=final.device)
        valid = torch.arange(capacity, device=final.device) < count[:, None]
        earlier = torch.arange(len(past), device=final.device)
        pairs = torch.stack([earlier, torch.full_like(earlier, len(past))], dim=1)
        penalty = None
        if there is not None and len(past):
            both = _both_ways(poses, there, capacity) if poses is not None else None
            penalty = None if both is None else network.penalty_of(both)
        return state, network.assign(final[None], valid[None], pairs, penalty)

    def _look(
        self, features: Features, past: Sequence[ViewState], distances: list[Tensor] | None
    ) -> ViewState:
        network = self._matcher
        x = network.encode(ViewBatch.of([features]).to(network.final.weight.device))[0]
        distance = None if not distances else torch.cat(distances, dim=1)[None, None]
        kept_keys: list[Tensor] = []
        kept_values: list[Tensor] = []
        for number, (kind, layer) in enumerate(
            zip(network.profile.layers, network.layers, strict=True)
        ):
            assert isinstance(layer, GraphLayer)
            keys, values = layer.keys_and_values(x)
            if kind == 'cross':
                cross = len(kept_keys)
                kept_keys.append(keys)
                kept_values.append(values)
                if not sum(len(p.final) for p in past):
                    x = layer.alone(x)
                    continue
                keys = torch.cat([p.keys[cross] for p in past], dim=2)
                values = torch.cat([p.values[cross] for p in past], dim=2)
            mask = None
            if kind == 'cross' and distance is not None:
                mask = network.attention_term(distance, number).to(x.dtype)
            x = layer.updated(x, keys, values, mask)
        return ViewState(tuple(kept_keys), tuple(kept_values), network.final(x)[0])

    def _distances(
        self, poses: PastPoses | None, past: Sequence[ViewState]
    ) -> list[Tensor] | None:
        """Of each earlier view, (N, N_w) of its keypoints from the lines of the new ones."""
        if poses is None or not past:
            return None
        return [
            squared_epipolar_distance(poses.plane_xy, xy, pose, sigma)
            for xy, pose, sigma in zip(
                poses.past_xy, poses.past_from_new, poses.sigma, strict=True
            )
        ]


def _both_ways(poses: PastPoses, there: Sequence[Tensor], capacity: int) -> Tensor:
    """(1, W, capacity, capacity) sum of the distances both ways, rows being the earlier view."""
    rows = []
    eye = torch.eye(4, dtype=poses.past_from_new.dtype, device=poses.past_from_new.device)
    known = poses.sigma.isfinite()[:, None, None]
    new_from_past = inverse(torch.where(known, poses.past_from_new, eye))
    for xy, pose, sigma, other in zip(
        poses.past_xy, new_from_past, poses.sigma, there, strict=True
    ):
        back = squared_epipolar_distance(xy, poses.plane_xy, pose, sigma)
        room = (0, capacity - back.shape[1], 0, capacity - back.shape[0])
        rows.append(functional.pad(back + other.mT, room))
    return torch.stack(rows)[None]
