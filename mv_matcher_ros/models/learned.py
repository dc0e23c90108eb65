# SPDX-License-Identifier: Apache-2.0
"""The networks behind the interface of the classical detector and matcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import DetectorSettings, MatchingSettings, RuntimeSettings
from mv_matcher_ros.datatypes import Features, Matches
from mv_matcher_ros.models.classical import working_image
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.matcher import Assignment, MatcherNetwork
from mv_matcher_ros.models.place import Place, placed
from mv_matcher_ros.models.view_batch import ViewBatch

# Keypoints of all views of a graph together: attention, scores and epipolar distances grow with
# their square (400 MB for a table of this many in single precision).
MOST_NODES = 10_240


class LearnedDetector:
    """The detector network behind the interface of the classical ones."""

    def __init__(
        self,
        network: DetectorNetwork,
        settings: DetectorSettings,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._settings = settings
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network, self.place = placed(
            network.eval(), runtime or RuntimeSettings(), self._trial
        )

    @property
    def descriptor_size(self) -> int:
        """Width of the descriptors."""
        return self._network.profile.descriptor_size

    def _trial(self, network: DetectorNetwork, place: Place) -> object:
        return network.dense(torch.zeros(1, 1, 240, 320, device=place.device))

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        """Features of a (H, W) grey or (H, W, 3) BGR image; none where `mask` is False."""
        return self.detect_all([image], [mask])[0]

    def detect_all(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> list[Features]:
        """Features of several images; those of one size go through the network together."""
        masks = [None] * len(images) if masks is None else masks
        working = [working_image(image, self._settings.working_width) for image in images]
        found: list[Features | None] = [None] * len(images)
        for shape in sorted({image.shape for image in working}):
            chosen = [k for k, image in enumerate(working) if image.shape == shape]
            grey = torch.from_numpy(np.stack([working[k] for k in chosen]))
            allowed = torch.stack([_allowed(masks[k], shape) for k in chosen])
            device = self.place.device
            with torch.inference_mode():
                keypoints = self._network(
                    grey.to(device)[:, None].float() / 255.0,
                    self._settings.max_keypoints,
                    self._settings.border_px,
                    allowed.to(device),
                )
            for row, k in enumerate(chosen):
                valid = keypoints.valid[row]
                xy, scores, descriptors, sigma = (
                    part[row][valid].cpu()
                    for part in (
                        keypoints.xy, keypoints.scores, keypoints.descriptors, keypoints.sigma_px
                    )
                )  # fmt: skip
                height, width = images[k].shape[:2]
                per = torch.tensor([width / shape[1], height / shape[0]])
                found[k] = Features(
                    (xy + 0.5) * per - 0.5,
                    descriptors,
                    scores,
                    sigma * per.mean(),
                    (width, height),
                )
        return [features for features in found if features is not None]


def _allowed(mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> Tensor:
    if mask is None:
        return torch.ones(shape[:2], dtype=torch.bool)
    rows = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    return torch.from_numpy(mask[rows.astype(int)[:, None], columns.astype(int)])


class LearnedMatcher:
    """The matcher network behind the interface of the classical one.

    One thread at a time: the engine waits for its keyframe before it asks itself.
    """

    def __init__(
        self,
        network: MatcherNetwork,
        settings: MatchingSettings,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._settings = settings
        self._network, self.place = placed(
            network.eval(), runtime or RuntimeSettings(), self._trial
        )

    @property
    def network(self) -> MatcherNetwork:
        """For the streaming matcher, which shares it."""
        return self._network

    def _trial(self, network: MatcherNetwork, place: Place) -> object:
        profile = network.profile
        generator = torch.Generator().manual_seed(0)
        features = [
            Features(
                600.0 * torch.rand(256, 2, generator=generator),
                torch.randn(256, profile.descriptor_size, generator=generator),
                torch.rand(256, generator=generator),
                torch.ones(256),
                (640, 480),
            )
            for _ in range(3)
        ]
        return network(ViewBatch.of(features).to(place.device, place.dtype))

    def match(
        self,
        features: Sequence[Features],
        pairs: Sequence[tuple[int, int]] | None = None,
        known: KnownPoses | None = None,
    ) -> Matches:
        """Matches of the named pairs (a < b) of V views, all pairs when None.

        Args:
            features: of each view.
            pairs: views to be matched; all of them see each other either way.
            known: relative poses, where known, of all keypoints (also of those that are cut).
        """
        kept = self.kept(features)
        if len(features) < 2:
            return confident(_nothing(), 0.0)
        batch = ViewBatch.of([f.chosen(k) for f, k in zip(features, kept, strict=True)])
        if known is not None:
            plane = chosen_plane(known.plane_xy[0], kept, batch.capacity)
            known = replace(known, plane_xy=plane).to(self.place.device)
        with torch.inference_mode():
            assignment = self._network(
                batch.to(self.place.device, self.place.dtype), known=known, pairs=pairs
            )
        return matches_of(assignment, kept, self.least_confidence)

    def kept(self, features: Sequence[Features]) -> list[Tensor]:
        """(K,) int64 of each view: the keypoints that enter the graph, the strongest."""
        most = min(self._settings.graph_keypoints, MOST_NODES // max(len(features), 1))
        return [strongest(f, most) for f in features]

    def left_out(self, features: Sequence[Features]) -> int:
        """How many keypoints of these views do not enter the graph."""
        return sum(len(f) - len(k) for f, k in zip(features, self.kept(features), strict=True))

    @property
    def least_confidence(self) -> float:
        """Of a match; a network without confidence head has a threshold of its own instead."""
        return 0.0 if self._network.confidence is None else self._settings.min_confidence


def matches_of(assignment: Assignment, kept: Sequence[Tensor], min_confidence: float) -> Matches:
    """Confident matches, keypoints numbered as before the weakest were left out."""
    matches = assignment.matches()
    views, local = matches.views.cpu(), matches.keypoints.cpu()
    place = torch.zeros(len(kept), max((len(k) for k in kept), default=0), dtype=torch.int64)
    for row, index in zip(place, kept, strict=True):
        row[: len(index)] = index
    keypoints = place[views, local] if len(views) else local
    return confident(Matches(views, keypoints, matches.confidence.cpu().float()), min_confidence)


def strongest(features: Features, most: int) -> Tensor:
    """(K,) int64 the features with the highest scores, in order of their number."""
    if len(features) <= most:
        return torch.arange(len(features))
    return features.scores.argsort(descending=True, stable=True)[:most].sort().values


def chosen_plane(plane_xy: Tensor, kept: Sequence[Tensor], capacity: int) -> Tensor:
    """(1, V, N, 2) of the chosen keypoints of (V, M, 2)."""
    rows = plane_xy.new_zeros(1, len(kept), capacity, 2)
    for row, plane, index in zip(rows[0], plane_xy, kept, strict=True):
        row[: len(index)] = plane[index]
    return rows


def confident(matches: Matches, least: float) -> Matches:
    """The matches with at least this confidence."""
    good = matches.confidence >= least
    return Matches(matches.views[good], matches.keypoints[good], matches.confidence[good])


def _nothing() -> Matches:
    none = torch.zeros(0, 2, dtype=torch.int64)
    return Matches(none, none, torch.zeros(0))
