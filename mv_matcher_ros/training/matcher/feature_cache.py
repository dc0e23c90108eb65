# SPDX-License-Identifier: Apache-2.0
"""Features of rendered tuples, found once: a step of the matcher's training detects nothing.

A shard of tuples becomes a file of features for each augmentation it is seen with.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mv_matcher_ros.config import DetectorSettings, RuntimeSettings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.classical import ClassicalDetector, Detector
from mv_matcher_ros.models.learned import LearnedDetector
from mv_matcher_ros.models.shipped import detector_file
from mv_matcher_ros.models.weights import load_detector, tensors_hash
from mv_matcher_ros.training.data.augmentation import Augmentation
from mv_matcher_ros.training.data.datasets import TrainingTuple, TupleDataset
from mv_matcher_ros.training.data.labels import LabelLimits, match_labels
from mv_matcher_ros.training.matcher.feature_shards import TupleFeatures, write_features
from mv_matcher_ros.training.workers import make_missing, remember

RECIPE_FILE = 'features.json'
PLAIN = 'plain'


@dataclass(frozen=True)
class FeatureRecipe:
    """How features are made of tuples.

    Attributes:
        detector: its settings; `max_keypoints` is what is kept of a view.
        augmentation: how far views depart from what was rendered.
        limits: of the labels.
        seed: of the augmentations.
    """

    detector: DetectorSettings
    augmentation: Augmentation = field(default_factory=Augmentation)
    limits: LabelLimits = field(default_factory=LabelLimits)
    seed: int = 0

    def make_detector(self, device: str = 'cpu') -> Detector:
        """The detector of the settings.

        Raises:
            ModelError: its weights cannot be read.
        """
        if self.detector.name != 'learned':
            return ClassicalDetector(self.detector)
        runtime = RuntimeSettings.model_validate({'device': device, 'precision': 'fp32'})
        return LearnedDetector(load_detector(detector_file(self.detector)), self.detector, runtime)

    def content(self) -> dict[str, Any]:
        """What features depend on, as plain data."""
        detector = self.detector.model_dump()
        if self.detector.name == 'learned':
            network = load_detector(detector_file(self.detector))
            detector['weights'] = tensors_hash(network.state_dict())
        content = {
            'detector': detector,
            'augmentation': asdict(self.augmentation),
            'limits': asdict(self.limits),
            'seed': self.seed,
        }
        return dict(json.loads(json.dumps(content)))


@dataclass(frozen=True)
class FeatureJob:
    """One file of features to be made: of a shard, with one augmentation (`PLAIN`: none)."""

    shard: Path
    variant: str

    def path(self, out: Path) -> Path:
        """Its file."""
        return out / f'{self.shard.stem}.{self.variant}.npz'


def variants(augmentations: int) -> list[str]:
    """Names of so many augmentations; of none: as rendered."""
    return [f'a{number}' for number in range(augmentations)] or [PLAIN]


def feature_jobs(tuples: Path, names: Sequence[str]) -> list[FeatureJob]:
    """All files of features of a folder of shards; every shard once before any twice.

    Raises:
        SourceError: no shards.
    """
    shards = sorted(tuples.glob('*.zip'))
    if not shards:
        raise SourceError(f'{tuples}: no shards of tuples; "mv-matcher train tuples" renders them')
    return [FeatureJob(shard, name) for name in names for shard in shards]


def make_features(
    recipe: FeatureRecipe,
    todo: Sequence[FeatureJob],
    out: Path,
    workers: int = 1,
    device: str = 'cpu',
) -> Iterator[FeatureJob]:
    """Make what is missing in `out`; yields each file once it is there, old ones first.

    Raises:
        SourceError: `out` holds features of another recipe, or something cannot be read.
    """
    remember_recipe(recipe, out)
    yield from make_missing(partial(_make, recipe, out, device), todo, out, workers)


def _make(recipe: FeatureRecipe, out: Path, device: str, job: FeatureJob) -> FeatureJob:
    detector = recipe.make_detector(device)
    write_features(job.path(out), [
        features_of(views, detector, recipe.limits) for views in job_tuples(recipe, job)
    ])  # fmt: skip
    return job


def job_tuples(recipe: FeatureRecipe, job: FeatureJob) -> Iterator[TrainingTuple]:
    """The tuples of a job. They depend on the shard's name, not on which others there are."""
    plain = job.variant == PLAIN
    seed = zlib.crc32(f'{recipe.seed} {job.shard.stem}'.encode())
    data = TupleDataset(job.shard, augmentation=None if plain else recipe.augmentation, seed=seed)
    epoch = 0 if plain else int(job.variant[1:])
    return (data.tuple_at(index, epoch) for index in range(len(data)))


def features_of(views: TrainingTuple, detector: Detector, limits: LabelLimits) -> TupleFeatures:
    """Features of all views and labels of all pairs."""
    images = (views.images[:, 0] * 255.0).round().to(torch.uint8).numpy()
    found = [detector.detect(np.ascontiguousarray(image)) for image in images]
    return with_labels(views, found, limits)


def with_labels(
    views: TrainingTuple, found: Sequence[Features], limits: LabelLimits
) -> TupleFeatures:
    """What was found in each view, and labels of all pairs; features keep their gradients."""
    sides = [views.label_view(v, f.keypoints_xy.detach()) for v, f in enumerate(found)]
    return TupleFeatures(
        tuple(found),
        tuple(match_labels(a, b, limits) for a, b in combinations(sides, 2)),
        views.intrinsics,
        views.world_from_camera,
        views.overlap,
        views.world,
        views.baseline,
    )


def remember_recipe(recipe: FeatureRecipe, out: Path) -> None:
    """Write down how features are made, or see that it is as before; see `workers.remember`."""
    remember(recipe.content(), out / RECIPE_FILE, 'features with other')
