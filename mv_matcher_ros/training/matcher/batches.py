# SPDX-License-Identifier: Apache-2.0
"""Batches for the matcher out of tuples of features: which views and keypoints, what is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.view_batch import ViewBatch, padded
from mv_matcher_ros.training.data.datasets import connected_views
from mv_matcher_ros.training.data.labels import IGNORED, UNMATCHED, packed
from mv_matcher_ros.training.matcher.feature_shards import TupleFeatures
from mv_matcher_ros.training.matcher.settings import MatcherStage

Random = np.random.Generator
# What the network is told: poses of keyframes are good to about this, pixels across the line; a
# predicted pose of the newest view is worse by one of these.
KNOWN_PX = 2.0
PREDICTED_PX = (2.0, 4.0, 8.0)
# Of the tuples with known poses: the newest view is the only unknown or predicted one; else one
# pair is known (a rig).
_NEWEST_SHARE, _PREDICTED_SHARE = 0.6, 0.75


@dataclass(frozen=True)
class MatcherBatch:
    """B tuples of V views with N keypoints, P pairs a < b.

    Attributes:
        views: what the network takes.
        partner_a, partner_b: (B, P, N) labels.
        plane_xy: (B, V, N, 2) float64 keypoints on the normalised planes.
        sigma: (B, V, N) float64 their standard deviation there.
        world_from_camera: (B, V, 4, 4) float64, true.
        overlap: (B, V, V).
        sees: (B, V, V) bool, or None; known: as told to the network, or None.
        stage: number of the stage; pose_share: of the poses in the loss.
    """

    views: ViewBatch
    partner_a: Tensor
    partner_b: Tensor
    plane_xy: Tensor
    sigma: Tensor
    world_from_camera: Tensor
    overlap: Tensor
    sees: Tensor | None = None
    known: KnownPoses | None = None
    stage: int = 0
    pose_share: float = 0.0

    def in_pairs(self) -> MatcherBatch:
        """The same pairs as tuples of two views (B·P): what a pairwise matcher gets."""
        a, b = torch.tensor(list(combinations(range(self.views.views), 2))).T

        def of_views(part: Tensor) -> Tensor:
            return torch.stack([part[:, a], part[:, b]], dim=2).flatten(0, 1)

        def of_matrix(part: Tensor) -> Tensor:
            chosen = [torch.stack([part[:, s, t] for t in (a, b)], dim=2) for s in (a, b)]
            return torch.stack(chosen, dim=2).flatten(0, 1)

        known = self.known
        if known is not None:
            known = KnownPoses(
                of_views(known.plane_xy),
                of_matrix(known.target_from_source),
                of_matrix(known.sigma),
            )
        return MatcherBatch(
            ViewBatch(*(of_views(part) for part in self.views.tensors())),
            self.partner_a.flatten(0, 1)[:, None],
            self.partner_b.flatten(0, 1)[:, None],
            of_views(self.plane_xy),
            of_views(self.sigma),
            of_views(self.world_from_camera),
            of_matrix(self.overlap),
            None if self.sees is None else of_matrix(self.sees),
            known,
            self.stage,
            self.pose_share,
        )


def draw(
    found: TupleFeatures, stage: MatcherStage, views: int, keypoints: int, rng: Random
) -> MatcherBatch:
    """One tuple (B = 1): views that hang together, some keypoints, some known poses."""
    chosen = connected_views(found.overlap.numpy(), min(views, len(found.features)), rng)
    kept = [
        _keypoints(len(found.features[view]), keypoints, stage.random_keypoints, rng)
        for view in chosen
    ]
    batch = gathered(found, chosen, kept, keypoints)
    if rng.random() >= stage.known_poses:
        return batch
    return _with_known(batch, 1.0 / float(found.intrinsics[chosen[0], 0, 0]), rng)


def strongest(found: TupleFeatures, keypoints: int) -> MatcherBatch:
    """All views with their strongest keypoints, nothing known (B = 1): for validation."""
    kept = [torch.arange(min(keypoints, len(view))) for view in found.features]
    return gathered(found, list(range(len(kept))), kept, keypoints)


def _keypoints(count: int, wanted: int, random_share: float, rng: Random) -> Tensor:
    """Index of the keypoints of a view that take part: the strongest, or some of the stronger."""
    if count <= wanted:
        return torch.arange(count)
    if rng.random() >= random_share:
        return torch.arange(wanted)
    among = int(rng.integers(wanted, count + 1))
    return torch.from_numpy(rng.permutation(among)[:wanted])


def gathered(
    found: TupleFeatures, chosen: Sequence[int], kept: Sequence[Tensor], room: int
) -> MatcherBatch:
    """A tuple (B = 1) of chosen views with the keypoints that are kept, in this order."""
    features = [
        found.features[view].chosen(index) for view, index in zip(chosen, kept, strict=True)
    ]
    intrinsics = found.intrinsics[list(chosen)]
    number = {p: i for i, p in enumerate(combinations(range(len(found.features)), 2))}
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a, b in combinations(range(len(chosen)), 2):
        label_a, label_b = found.labels[number[chosen[a], chosen[b]]]
        sides[0].append(relabelled(label_a, kept[a], kept[b], len(label_b)))
        sides[1].append(relabelled(label_b, kept[b], kept[a], len(label_a)))
    plane = torch.stack([_plane(f, k, room) for f, k in zip(features, intrinsics, strict=True)])
    focal = intrinsics[:, 0, 0]
    sigma = torch.stack([padded(f.sigma_px.double(), room) for f in features]) / focal[:, None]
    return MatcherBatch(
        ViewBatch.of(features, room),
        packed(sides[0], room)[None],
        packed(sides[1], room)[None],
        plane[None],
        sigma[None],
        found.world_from_camera[list(chosen)][None],
        found.overlap[list(chosen)][:, list(chosen)][None],
    )


def relabelled(label: Tensor, mine: Tensor, others: Tensor, other_count: int) -> Tensor:
    """Labels of the kept keypoints by the numbers that the other view's kept ones now have.

    A keypoint whose partner was not kept has none.
    """
    new = torch.full((other_count + 1,), UNMATCHED, dtype=torch.int64)
    new[others] = torch.arange(len(others))
    old = label[mine]
    return torch.where(old >= 0, new[old.clamp_min(0)], old)


def _plane(features: Features, intrinsics: Tensor, room: int) -> Tensor:
    centre = intrinsics[:2, 2]
    focal = torch.stack([intrinsics[0, 0], intrinsics[1, 1]])
    return padded((features.keypoints_xy.double() - centre) / focal, room)


def _with_known(batch: MatcherBatch, pixel: float, rng: Random) -> MatcherBatch:
    """The batch (B = 1) with some poses told: those of keyframes, or of a rig."""
    views = batch.views.views
    poses = batch.world_from_camera.clone()
    sigma = torch.full((views, views), math.inf)
    if rng.random() < _NEWEST_SHARE:
        sigma[:] = KNOWN_PX * pixel
        newest = math.inf
        if rng.random() < _PREDICTED_SHARE:
            error_px = float(rng.choice(PREDICTED_PX))
            newest = error_px * pixel
            # Rotations move pixels alike at all depths; 0.6: mostly within what is told.
            twist = np.concatenate([np.zeros(3), rng.normal(0.0, 0.6 * newest, 3)])
            poses[0, -1] = poses[0, -1] @ se3.exp(torch.from_numpy(twist))
        sigma[-1], sigma[:, -1] = newest, newest
    else:
        a, b = rng.permutation(views)[:2].tolist()
        sigma[a, b] = sigma[b, a] = KNOWN_PX * pixel
    return replace(batch, known=KnownPoses.of(batch.plane_xy.float(), poses, sigma[None]))


def joined(
    parts: Sequence[MatcherBatch], causal: bool, stage: int, pose_share: float
) -> MatcherBatch:
    """Tuples of as many views as one batch. `causal`: views hear earlier ones only."""
    views = ViewBatch(*(
        torch.cat(tensors) for tensors in zip(*(p.views.tensors() for p in parts), strict=True)
    ))  # fmt: skip
    count = views.views

    def together(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    known = None
    if any(part.known is not None for part in parts):
        unknown = torch.full((1, count, count), math.inf)
        told = [
            part.known or KnownPoses.of(part.plane_xy.float(), part.world_from_camera, unknown)
            for part in parts
        ]
        known = KnownPoses(*(
            torch.cat([getattr(k, field.name) for k in told]) for field in fields(KnownPoses)
        ))  # fmt: skip
    sees = None
    if causal:
        earlier = torch.ones(count, count, dtype=torch.bool).tril(-1)
        sees = earlier.expand(len(parts), count, count)
    return MatcherBatch(
        views,
        together('partner_a'),
        together('partner_b'),
        together('plane_xy'),
        together('sigma'),
        together('world_from_camera'),
        together('overlap'),
        sees,
        known,
        stage,
        pose_share,
    )


def is_labelled(batch: MatcherBatch) -> Tensor:
    """(B, P, N) bool keypoints of a whose partner, or lack of one, is certain."""
    return batch.partner_a != IGNORED
