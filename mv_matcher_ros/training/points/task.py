# SPDX-License-Identifier: Apache-2.0
"""Point inference as a task of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.point_inference import PointInferenceNetwork
from mv_matcher_ros.models.weights import load_points, save_points
from mv_matcher_ros.training.matcher.feature_set import FeatureSet
from mv_matcher_ros.training.points.depths import DepthShard
from mv_matcher_ros.training.points.settings import (
    RIGHT_SHARE,
    PointStage,
    PointTraining,
)
from mv_matcher_ros.training.points.simulated_maps import (
    PointBatch,
    TrueView,
    draw_map,
    joined,
    true_view,
)
from mv_matcher_ros.training.points.validation import validate_points
from mv_matcher_ros.training.settings import stage_at

_PHOTOS = 'photos_'
# Views that one tuple gives a batch, files of depths in memory.
_VIEWS, _OPEN = 2, 40
# Beyond this an error of the logarithm of a depth is as bad as it gets.
_LARGEST_ERROR = 1.0


class PointTask:
    """The network, views to learn from, and others to be judged by.

    Args:
        settings: of the training.
        train: for each shard its files of features; validation: the same of what is held out.
        depths: folders of the files of depths, of the same names, of both.
        start: file of weights to start from; None: untrained.
        overfit: learn the first so many tuples by heart, and be judged by them; None: all.

    Raises:
        SourceError: no tuples, or files that cannot be read.
        SettingsError: the start is a network of another profile.
        ModelError: the start cannot be read.
    """

    network: nn.Module

    def __init__(
        self,
        settings: PointTraining,
        train: Sequence[Sequence[Path]],
        validation: Sequence[Sequence[Path]],
        depths: tuple[Path, Path],
        start: Path | None = None,
        overfit: int | None = None,
    ) -> None:
        self._settings = settings
        torch.manual_seed(settings.trainer.seed)
        network = PointInferenceNetwork(settings.point_profile())
        if start is not None:
            network = load_points(start)
            if network.profile != settings.point_profile():
                raise SettingsError(
                    f'{start}: is a network of another profile than the settings ask for'
                )
        self.network = network
        seed = settings.trainer.seed
        if overfit:
            self.data = {'all': PointSet(FeatureSet(train, None, overfit, seed), depths[0])}
            self._judge = self.data['all']
            return
        there = FeatureSet(train).worlds()
        self.data = {
            kind: PointSet(FeatureSet(train, accepts, None, seed), depths[0])
            for kind, accepts in (('solid', _is_solid), ('photos', _is_photos))
            if any(map(accepts, there))
        }
        most = settings.validation.tuples
        self._judge = PointSet(FeatureSet(validation, None, most), depths[1])

    def batch(self, step: int, rank: int, world: int) -> PointBatch:
        """See `Task`."""
        number, _ = stage_at(self._settings.stages, step)
        stage = self._settings.stages[number]
        rng = np.random.default_rng((self._settings.trainer.seed, step, rank))
        tuples = -(-stage.keyframes // _VIEWS)
        parts: list[PointBatch] = []
        for place in range(tuples):
            kind = 'photos' if rng.random() < stage.photo_share else 'solid'
            # Where there is one kind only, it is that one.
            data = self.data.get(kind) or next(iter(self.data.values()))
            views = data.shuffled((step * world + rank) * tuples + place)
            for which in rng.permutation(len(views))[:_VIEWS].tolist():
                view = _some(views[which], stage.keypoints, rng)
                view = view.mirrored() if rng.random() < 0.5 else view
                parts.append(draw_map(view, stage.maps, rng))
        return joined(parts[: stage.keyframes], stage.keypoints, number)

    def losses(self, network: nn.Module, batch: PointBatch) -> dict[str, Tensor]:
        """See `Task` and `point_losses`."""
        return point_losses(network, batch, self._settings.stages[batch.stage])

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task` and `validate_points`."""
        assert isinstance(network, PointInferenceNetwork)
        views = (
            view
            for number in range(len(self._judge))
            for view in self._judge.in_order(number)[:_VIEWS]
        )
        return validate_points(network, views, self._settings.validation)

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        """See `Task`."""
        assert isinstance(network, PointInferenceNetwork)
        save_points(path, network, notes)


class PointSet:
    """Views with true depths, in the order of a set of features.

    Args:
        features: of tuples.
        depths: folder of files of depths, named as those of the features.
    """

    def __init__(self, features: FeatureSet, depths: Path) -> None:
        self.features, self._depths = features, depths
        self._open: dict[Path, DepthShard] = {}

    def __len__(self) -> int:
        return len(self.features)

    def shuffled(self, position: int) -> list[TrueView]:
        """All views of the tuple at a position of an endless order."""
        depths = self._of(*self.features.place_of(position))
        found = self.features.shuffled(position)
        return [true_view(found, depths, view) for view in range(len(depths))]

    def in_order(self, number: int) -> list[TrueView]:
        """All views of a tuple."""
        depths = self._of(*self.features.place_in_order(number))
        found = self.features.in_order(number)
        return [true_view(found, depths, view) for view in range(len(depths))]

    def _of(self, path: Path, index: int) -> tuple[Tensor, ...]:
        if path not in self._open:
            if len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[path] = DepthShard(self._depths / path.name)
        return self._open[path][index]


def _is_photos(world: str) -> bool:
    return world.startswith(_PHOTOS)


def _is_solid(world: str) -> bool:
    return not _is_photos(world)


def _some(view: TrueView, wanted: int, rng: np.random.Generator) -> TrueView:
    """The strongest keypoints, or some of the stronger ones."""
    count = len(view.depth)
    if count <= wanted:
        return view
    among = int(rng.integers(wanted, count + 1))
    return view.chosen(torch.from_numpy(rng.permutation(among)[:wanted]))


def point_losses(network: nn.Module, batch: PointBatch, stage: PointStage) -> dict[str, Tensor]:
    """Error of the logarithm of depth (the point's error along its ray, by the depth), its Laplace
    likelihood under the deviation that is said, and cross entropy of the confidences."""
    device = next(network.parameters()).device
    given, true = batch.given.to(device), batch.depth.to(device)
    made = network(given)
    known = given.known & given.valid
    judged = given.valid & (true > 0) & (known.sum(1) >= 3)[:, None]
    weight = judged * torch.where(known, stage.known_weight, 1.0)
    weight = weight / weight.sum().clamp_min(1.0)
    truth = torch.where(judged, true, 1.0).log()
    error = torch.where(judged, made.depth, 1.0).log() - truth
    off = error.abs().clamp_max(_LARGEST_ERROR)
    scale = torch.where(judged, made.sigma, 1.0) / 2.0**0.5  # of a Laplace distribution
    likelihood = off / scale + scale.log()
    right = (error.detach().abs() <= RIGHT_SHARE).to(made.logit)
    entropy = functional.binary_cross_entropy_with_logits(made.logit, right, reduction='none')
    depth, spread, confidence = ((weight * part).sum() for part in (off, likelihood, entropy))
    return {
        'loss': depth + 0.5 * spread + stage.confidence_weight * confidence,
        'depth': depth,
        'likelihood': spread,
        'confidence': confidence,
        'right': (weight * right).sum(),
    }
