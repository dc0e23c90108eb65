# SPDX-License-Identifier: Apache-2.0
"""Keyframes as a map might hold them: which keypoints have landmarks, and how wrong those are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.models.point_inference import KnownDepths
from mv_matcher_ros.models.view_batch import padded
from mv_matcher_ros.training.matcher.feature_shards import TupleFeatures
from mv_matcher_ros.training.points.settings import SimulatedMapSettings

Random = np.random.Generator
Floats = NDArray[np.float64]
# Fewer teach nothing: the network does not judge them.
LEAST_KNOWN = 3
# Deviation of the logarithm of a depth that is plain wrong.
_OUTLIER = 0.5
# Of the maps: exact, with an error in metres; the others: by parallax.
_EXACT, _METRES = 0.15, 0.5
# What a map says of its errors is as wrong, all together and each, as logarithms.
_TOLD_TOGETHER, _TOLD_EACH = 0.3, 0.2


@dataclass(frozen=True)
class TrueView:
    """A rendered view: N keypoints and what is true of them.

    Attributes:
        plane_xy: (N, 2) float32; descriptors: (N, D); depth: (N,) float32 metres, 0 not certain.
        matched: (N,) bool, another view of the tuple has the same point: a map would hold it.
        world: name of the place.
    """

    plane_xy: Tensor
    descriptors: Tensor
    depth: Tensor
    matched: Tensor
    world: str

    def chosen(self, index: Tensor) -> TrueView:
        """Some of the keypoints."""
        return replace(
            self,
            plane_xy=self.plane_xy[index],
            descriptors=self.descriptors[index],
            depth=self.depth[index],
            matched=self.matched[index],
        )

    def mirrored(self) -> TrueView:
        """The same in a mirror."""
        return replace(self, plane_xy=self.plane_xy * torch.tensor([-1.0, 1.0]))


@dataclass(frozen=True)
class PointBatch:
    """What the network is given, and (B, N) float32 true depths, 0 where not certain."""

    given: KnownDepths
    depth: Tensor
    stage: int = 0


def true_view(found: TupleFeatures, depths: tuple[Tensor, ...], view: int) -> TrueView:
    """One view of a tuple."""
    one, matrix = found.features[view], found.intrinsics[view]
    focal = torch.stack([matrix[0, 0], matrix[1, 1]])
    plane = ((one.keypoints_xy.double() - matrix[:2, 2]) / focal).float()
    matched = torch.zeros(len(one), dtype=torch.bool)
    count, row = len(found.features), 0
    for a in range(count):
        for b in range(a + 1, count):
            if view in (a, b):
                matched |= found.labels[row][int(view == b)] >= 0
            row += 1
    return TrueView(plane, one.descriptors, depths[view], matched, found.world)


def draw_map(view: TrueView, settings: SimulatedMapSettings, rng: Random) -> PointBatch:
    """The view (B = 1) as a keyframe of a map that is thinned and wrong in some way."""
    share = float(np.exp(rng.uniform(np.log(settings.least_share), 0.0)))
    clustered = bool(rng.random() < settings.clustered)
    known = thinned(view, share, clustered, rng)
    depth = view.depth.double().numpy()
    kind = rng.random()
    if kind < _EXACT:
        sigma = np.full(len(depth), 0.003)
    elif kind < _METRES:
        error = rng.uniform(0.05, 1.0) * settings.largest_error_m
        sigma = error / np.maximum(depth, 0.1)
    else:
        least = np.log(0.05 * settings.largest_parallax_error + 1e-6)
        error = np.exp(rng.uniform(least, np.log(settings.largest_parallax_error + 1e-6)))
        middle = float(np.median(depth[depth > 0])) if (depth > 0).any() else 1.0
        sigma = error * depth / middle
    outliers = settings.outliers * 2.0 * rng.random()
    return wrong_map(view, known, sigma, outliers, rng)


def thinned(view: TrueView, share: float, clustered: bool, rng: Random) -> NDArray[np.bool_]:
    """(N,) bool, so much of what would be triangulated: anywhere, or around a few places."""
    could = (view.matched & (view.depth > 0)).numpy().nonzero()[0]
    known = np.zeros(len(view.depth), np.bool_)
    count = min(len(could), max(LEAST_KNOWN, round(share * len(could))))
    order = rng.permutation(len(could))
    if clustered and len(could):
        place = view.plane_xy[could].numpy()
        middle = place[order[: int(rng.integers(1, 5))]]
        apart = np.linalg.norm(place[:, None] - middle, axis=-1).min(1)
        order = np.argsort(apart + 0.05 * rng.random(len(could)))
    known[could[order[:count]]] = True
    return known


def wrong_map(
    view: TrueView, known: NDArray[np.bool_], sigma: Floats, outliers: float, rng: Random
) -> PointBatch:
    """Depths (B = 1) with errors of (N,) deviations of their logarithms, told about as they are.

    A share of outliers is wrong by far more than is told.
    """
    count = len(known)
    sigma = np.clip(sigma, 1e-3, 0.5)
    error = sigma * rng.normal(size=count)
    error += (rng.random(count) < outliers) * rng.normal(0.0, _OUTLIER, count)
    depth = view.depth.double().numpy() * np.exp(error)
    together = rng.normal(0.0, _TOLD_TOGETHER)
    told = sigma * np.exp(together + rng.normal(0.0, _TOLD_EACH, count))
    given = KnownDepths(
        view.plane_xy[None],
        view.descriptors[None],
        torch.from_numpy(depth).float()[None],
        torch.from_numpy(told).float()[None],
        torch.from_numpy(known)[None],
        torch.ones(1, count, dtype=torch.bool),
    )
    return PointBatch(given, view.depth[None])


def joined(parts: list[PointBatch], room: int, stage: int = 0) -> PointBatch:
    """Keyframes as one batch with room for so many keypoints."""

    def together(name: str) -> Tensor:
        return torch.cat([padded(getattr(part.given, name), room, 1) for part in parts])

    given = KnownDepths(
        together('plane_xy'),
        together('descriptors'),
        together('depth'),
        together('sigma'),
        together('known'),
        together('valid'),
    )
    return PointBatch(given, torch.cat([padded(part.depth, room, 1) for part in parts]), stage)
