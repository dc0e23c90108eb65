# SPDX-License-Identifier: Apache-2.0
"""Depths of keypoints of which a map holds no landmark, from those of which it does.

Keypoints with a known depth pass it on to those without: once, then in rounds in which the known
ones hear each other and all hear the known ones. Each keypoint then chooses whom to believe, and
continues the surface on which those lie.

Source: Giang, Song and Jo, Learning to Produce Semi-dense Correspondences for Visual Localization
(DeViLoc), CVPR 2024, the Point Inference Network: observed and unobserved keypoints, a propagation
and rounds of self and cross attention, depth along the ray and a confidence. Own: attention
falls with distance in the image; depth comes from planes through believed neighbours instead of
from a vector alone, so that an untrained network interpolates; a standard deviation; errors of the
known depths are told; everything is relative to the median depth, so that units do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.perceptron import perceptron
from mv_matcher_ros.models.point_surface import FEATURES, Surface, fitted_surfaces
from mv_matcher_ros.models.profiles import PointProfile

# Fewer known depths determine no surface: nothing that is made of them is to be believed.
LEAST_KNOWN = 3
# Standard deviations of the logarithm of a depth that are told and said lie within.
LEAST_SIGMA, LARGEST_SIGMA = 1e-3, 1.0
# The widest correction of a surface, as a logarithm of depth.
LARGEST_CORRECTION = 0.7
# Distance of a known point that is padding: its weight is zero.
NOWHERE = 1e6


@dataclass(frozen=True)
class KnownDepths:
    """Keypoints of B keyframes, of some of which the depth is known; room for N each.

    Attributes:
        plane_xy: (B, N, 2) keypoints on the normalised plane.
        descriptors: (B, N, D) unit length.
        depth: (B, N) along the optical axis, any unit; any value where not known.
        sigma: (B, N) standard deviation of the depth as a share of it.
        known: (B, N) bool; valid: (B, N) bool, the others are padding.
    """

    plane_xy: Tensor
    descriptors: Tensor
    depth: Tensor
    sigma: Tensor
    known: Tensor
    valid: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KnownDepths:
        """The same on a device; descriptors as `dtype`."""
        return replace(
            self,
            plane_xy=self.plane_xy.to(device),
            descriptors=self.descriptors.to(device, dtype),
            depth=self.depth.to(device),
            sigma=self.sigma.to(device),
            known=self.known.to(device),
            valid=self.valid.to(device),
        )


@dataclass(frozen=True)
class InferredDepths:
    """Depths of all keypoints, (B, N) each, float32.

    Attributes:
        depth: along the optical axis in the units that were given, 0 where nothing is known of
            the keyframe, and for padding.
        sigma: standard deviation of its logarithm, infinite there.
        confidence: in [0, 1] that it is right within `RIGHT_SHARE` of the training; 0 there, and
            of keyframes with fewer than three known depths.
        logit: what the confidence is the sigmoid of, for training.
    """

    depth: Tensor
    sigma: Tensor
    confidence: Tensor
    logit: Tensor


class PointInferenceNetwork(nn.Module):
    """The network. `profile` says how it looks; weights come from `models.weights`.

    Nothing depends on the order of keypoints, on padding, or on the unit of depth.
    """

    def __init__(self, profile: PointProfile) -> None:
        super().__init__()
        self.profile = profile
        width = profile.width
        self.of_place = perceptron((2, 32, 64, width), normalised=True)
        self.of_depth = perceptron((2, 32, 64, width), normalised=True)
        self.descriptor = nn.Linear(profile.descriptor_size, width)
        self.propagation = PointLayer(profile)
        self.hearing = nn.ModuleList(PointLayer(profile) for _ in range(profile.rounds))
        self.telling = nn.ModuleList(PointLayer(profile) for _ in range(profile.rounds))
        self.surfaces = SurfaceHead(profile)

    def backbone_to(self, dtype: torch.dtype) -> PointInferenceNetwork:
        """Make everything before the head run in `dtype`."""
        for part in (
            self.of_place, self.of_depth, self.descriptor,
            self.propagation, self.hearing, self.telling,
        ):  # fmt: skip
            part.to(dtype)
        return self

    def forward(self, batch: KnownDepths) -> InferredDepths:
        """Depths of all keypoints.

        Raises:
            ModelError: descriptors of another width than the network's.
        """
        given = batch.descriptors.shape[-1]
        if given != self.profile.descriptor_size:
            raise ModelError(
                f'the point inference takes descriptors of width {self.profile.descriptor_size}, '
                f'these have {given}: its weights belong to another detector'
            )
        place = torch.where(batch.valid[..., None], batch.plane_xy.float(), 0.0)
        certain = batch.depth.isfinite() & (batch.depth > 0) & batch.sigma.isfinite()
        known = batch.known & batch.valid & certain
        log_depth = torch.where(known, batch.depth, 1.0).log().float()
        # One column more, so that a keyframe may be empty.
        given_depths = functional.pad(
            log_depth.masked_fill(~known, torch.nan), (0, 1), value=torch.nan
        )
        centre = given_depths.nanmedian(dim=1).values
        centre = torch.where(known.any(1), centre, 0.0)
        relative = torch.where(known, log_depth - centre[:, None], 0.0)
        sigma = torch.where(known, batch.sigma, 1.0).float().clamp(LEAST_SIGMA, LARGEST_SIGMA)
        nodes, points, apart = self._listen(batch, place, relative, sigma, known)
        with torch.autocast(nodes.device.type, enabled=False):
            made = self.surfaces(nodes.float(), points, place, apart)
        there = batch.valid & known.any(1)[:, None]
        enough = there & (known.sum(1) >= LEAST_KNOWN)[:, None]
        return InferredDepths(
            torch.where(there, (centre[:, None] + made.log_depth).exp(), 0.0),
            torch.where(there, made.sigma, torch.inf),
            torch.where(enough, made.logit.sigmoid(), 0.0),
            made.logit,
        )

    def _listen(
        self, batch: KnownDepths, place: Tensor, relative: Tensor, sigma: Tensor, known: Tensor
    ) -> tuple[Tensor, KnownPoints, Distances]:
        """(B, N, width) keypoints after all rounds, the known ones, how far those are."""
        kind = self.descriptor.weight.dtype
        width = self.profile.width
        look = torch.where(batch.valid[..., None], batch.descriptors.to(kind), 0.0)
        # Unit descriptors as nodes with entries of about one.
        nodes = self.descriptor(width**0.5 * look) + self.of_place(place.to(kind))
        told = self.of_depth(torch.stack([relative, sigma.log()], dim=-1).to(kind))
        nodes = nodes + torch.where(known[..., None], told, 0.0)
        # The known ones in front, so that rounds among them cost what they are.
        room = max(int(known.sum(1).max()), 1)
        index = known.int().argsort(dim=1, descending=True, stable=True)[:, :room]
        points = KnownPoints(
            rows(nodes, index), rows(place, index), relative.gather(1, index),
            sigma.gather(1, index), known.gather(1, index),
        )  # fmt: skip
        everywhere = points.distances(place)
        among = points.distances(points.place)
        nodes = self.propagation(nodes, points.nodes, everywhere)
        for hear, tell in zip(self.hearing, self.telling, strict=True):
            points = replace(points, nodes=hear(points.nodes, points.nodes, among))
            nodes = tell(nodes, points.nodes, everywhere)
        return nodes, replace(points, nodes=points.nodes.float()), everywhere


@dataclass(frozen=True)
class KnownPoints:
    """The M keypoints with known depths of B keyframes.

    Attributes:
        nodes: (B, M, width).
        place: (B, M, 2) on the normalised plane.
        relative: (B, M) logarithm of depth less that of the median; sigma: (B, M) its error.
        there: (B, M) bool.
    """

    nodes: Tensor
    place: Tensor
    relative: Tensor
    sigma: Tensor
    there: Tensor

    def distances(self, place: Tensor) -> Distances:
        """To them from places (B, N, 2)."""
        apart = torch.cdist(place, self.place, compute_mode='donot_use_mm_for_euclid_dist')
        apart = apart.masked_fill(~self.there[:, None], NOWHERE)
        return Distances(apart, self.there.sum(1).clamp_min(1).to(apart).sqrt())


@dataclass(frozen=True)
class Distances:
    """How far N keypoints are from M known ones.

    Attributes:
        apart: (B, N, M) on the normalised plane, `NOWHERE` for what is not there.
        density: (B,) one over how far apart the known ones would lie on one unit of the plane.
    """

    apart: Tensor
    density: Tensor

    def loss(self, falling: Tensor) -> Tensor:
        """(B, H, N, M) what the logits of heads lose, by (H, 2) weights of the distance on the
        plane and in units of how far apart known points lie."""
        weight = functional.softplus(falling.float())
        rate = weight[:, 0] + weight[:, 1] * self.density[:, None]
        return rate[..., None, None] * self.apart[:, None]


class PointLayer(nn.Module):
    """Keypoints hear known ones; those that are near are heard more."""

    def __init__(self, profile: PointProfile) -> None:
        super().__init__()
        width, size = profile.width, profile.attention_size
        if size % profile.heads:
            raise ModelError(f'{profile.heads} heads do not divide the attention size {size}')
        self.heads = profile.heads
        self.query, self.key, self.value = (nn.Linear(width, size) for _ in range(3))
        self.merge = nn.Linear(size, width)
        self.before = nn.LayerNorm(width)
        self.before_known = nn.LayerNorm(width)
        self.update = perceptron((2 * width, width, width), normalised=True)
        # From far to near: what a head loses by either distance (softplus of it).
        start = torch.linspace(-3.0, 1.0, profile.heads)
        self.falling = nn.Parameter(torch.stack([start, start - 1.0], dim=1))
        for parameter in self.update[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, nodes: Tensor, known: Tensor, apart: Distances) -> Tensor:
        """(B, N, width) nodes after hearing known ones (B, M, width)."""
        x, y = self.before(nodes), self.before_known(known)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(y), self.value(y))
        )
        logit = (query * query.shape[-1] ** -0.5) @ key.mT - apart.loss(self.falling).to(query)
        # Somebody who says nothing: there is always one to listen to.
        share = functional.pad(logit, (0, 1)).softmax(dim=-1)[..., :-1]
        message = self.merge((share @ value).transpose(1, 2).flatten(2))
        updated: Tensor = nodes + self.update(torch.cat([x, message], dim=-1))
        return updated


@dataclass(frozen=True)
class MadeDepths:
    """(B, N): logarithm of depth less that of the median, its deviation, logit of confidence."""

    log_depth: Tensor
    sigma: Tensor
    logit: Tensor


class SurfaceHead(nn.Module):
    """Planes through the neighbours that a keypoint believes, one a hypothesis; then a choice
    among them, a correction, and how sure that is. In float32."""

    def __init__(self, profile: PointProfile) -> None:
        super().__init__()
        width, size, count = profile.width, profile.attention_size, profile.hypotheses
        self.count = count
        self.before, self.before_known = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, size), nn.Linear(width, size)
        self.trust = nn.Linear(width, count)
        self.falling = nn.Parameter(torch.stack([
            torch.linspace(-2.0, 2.0, count), torch.linspace(-2.0, 1.0, count)
        ], dim=1))  # fmt: skip
        # How much a plane resists a slope, on the normalised plane (squared).
        self.stiffness = nn.Parameter(torch.full((count,), 1e-3).log())
        self.judge = perceptron((width + FEATURES * count, width, width), True, ends_active=True)
        self.choice = nn.Linear(width, count)
        self.correction, self.spread = nn.Linear(width, 1), nn.Linear(width, 1)
        self.confidence = nn.Linear(width, 1)
        for last in (self.trust, self.choice, self.correction, self.spread, self.confidence):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.spread.bias, -3.0)

    def forward(
        self, nodes: Tensor, points: KnownPoints, place: Tensor, apart: Distances
    ) -> MadeDepths:
        """Of (B, N, width) nodes at (B, N, 2) places."""
        surface = self.fitted(nodes, points, place, apart)
        hidden = self.judge(torch.cat([nodes, surface.features], dim=-1))
        share = self.choice(hidden).softmax(dim=-1)
        raw = self.correction(hidden)[..., 0]
        correction = LARGEST_CORRECTION * torch.tanh(raw / LARGEST_CORRECTION)
        log_depth = (share * surface.log_depth).sum(-1) + correction
        spread = self.spread(hidden)[..., 0]
        sigma = spread.exp().clamp(LEAST_SIGMA, LARGEST_SIGMA)
        return MadeDepths(log_depth, sigma, self.confidence(hidden)[..., 0])

    def fitted(
        self, nodes: Tensor, points: KnownPoints, place: Tensor, apart: Distances
    ) -> Surface:
        """The hypotheses of each keypoint."""
        known = self.before_known(points.nodes)
        query, key = (
            part.unflatten(-1, (self.count, -1)).transpose(1, 2)
            for part in (self.query(self.before(nodes)), self.key(known))
        )
        # A known depth counts by its error, as in least squares.
        trust = self.trust(known).mT - points.sigma.log()[:, None]
        logit = (query * query.shape[-1] ** -0.5) @ key.mT + trust[:, :, None]
        weight = (logit - apart.loss(self.falling)).softmax(dim=-1)
        return fitted_surfaces(
            weight, points.place, points.relative, points.sigma, place, self.stiffness.exp()
        )


def rows(of_nodes: Tensor, index: Tensor) -> Tensor:
    """(B, M, C) rows of (B, N, C) that (B, M) names."""
    return of_nodes.gather(1, index[..., None].expand(*index.shape, of_nodes.shape[-1]))
