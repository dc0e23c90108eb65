# SPDX-License-Identifier: Apache-2.0
"""The training of the detector, as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mv_matcher_ros.config import Section
from mv_matcher_ros.evaluation.keypoint_error import KeypointFigures
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.profiles import DETECTORS
from mv_matcher_ros.models.weights import save_detector
from mv_matcher_ros.training.data.augmentation import Augmentation
from mv_matcher_ros.training.data.tuple_sources import TupleSources
from mv_matcher_ros.training.data.view_pairs import PhotoPairs, TuplePairs, ViewPair
from mv_matcher_ros.training.detector.batch_norm import folded, with_norms
from mv_matcher_ros.training.detector.batches import (
    DetectorBatch,
    TargetSettings,
    joined,
    pair_batch,
)
from mv_matcher_ros.training.detector.losses import DetectorLossSettings, detector_losses
from mv_matcher_ros.training.detector.teacher import ORIGIN, TaughtOnce
from mv_matcher_ros.training.detector.validation import DetectorValidation, network_finder
from mv_matcher_ros.training.settings import StageSettings, TrainerSettings


class DetectorValidationSettings(Section):
    """On what and how the detector is validated."""

    width: int = Field(640, ge=64, description='Of the views, pixels.')
    pairs: int = Field(36, ge=1, description='Pairs of each set.')
    keypoints: int = Field(512, ge=1, description='Keypoints of a view.')


class DetectorTraining(Section):
    """A file under `config/train/` that trains a detector."""

    profile: Literal['light', 'full'] = Field('light', description='The network.')
    width: int = Field(320, ge=64, description='Of the views, pixels; they are 4 : 3.')
    pairs: int = Field(4, ge=1, description='Pairs of views in a step, of one process.')
    photo_share: float = Field(0.5, ge=0.0, le=1.0, description='Share of the pairs from photos.')
    photo_variants: int = Field(16, ge=1, description='Pairs made of a photo.')
    tuple_variants: int = Field(2, ge=1, description='Pairs made of a rendered tuple.')
    keypoints: int = Field(256, ge=1, description="The teacher's strongest, of a view.")
    clean: bool = Field(False, description='Views are not augmented.')
    targets: TargetSettings = TargetSettings()
    losses: DetectorLossSettings = DetectorLossSettings()
    validation: DetectorValidationSettings = DetectorValidationSettings()
    trainer: TrainerSettings = TrainerSettings()
    stages: tuple[StageSettings, ...] = (StageSettings(),)


Pairs = PhotoPairs | TuplePairs


class DetectorTask:
    """See `training.task.Task`.

    Args:
        settings: of the training.
        sources: pairs of photos, pairs of tuples; either may be None.
        teacher: whom the student imitates.
        validation: what it is measured on.
        network: to go on from; None begins with random weights.
    """

    def __init__(
        self,
        settings: DetectorTraining,
        sources: tuple[PhotoPairs | None, TuplePairs | None],
        teacher: TaughtOnce,
        validation: DetectorValidation,
        network: DetectorNetwork | None = None,
    ) -> None:
        self._settings, self._teacher, self._validation = settings, teacher, validation
        self._sources = sources
        if network is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.trainer.seed)
                network = with_norms(DetectorNetwork(DETECTORS[settings.profile]))
        self._student = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = self._student
        self._unrelated = network.profile.unrelated_similarity

    def batch(self, step: int, rank: int, world: int) -> DetectorBatch:
        """See `Task`."""
        number = step * world + rank
        settings = self._settings
        augmentation = None if settings.clean else Augmentation()
        parts = []
        for row in range(settings.pairs):
            draw = number * settings.pairs + row
            rng = np.random.default_rng((settings.trainer.seed, 31, draw))
            pair = self._pair(draw)
            parts.append(
                pair_batch(
                    pair, self._teacher, settings.keypoints, rng, augmentation, settings.targets
                )
            )
        return joined(parts)

    def _pair(self, draw: int) -> ViewPair:
        """Pair number `draw` of the training: each source in an order that is shuffled anew every
        time it has been gone through."""
        share = self._settings.photo_share
        photos, tuples = self._sources
        of_photos = int(np.floor((draw + 1) * share)) - int(np.floor(draw * share))
        if tuples is None or (photos is not None and of_photos):
            source: Pairs | None = photos
            position = int(np.floor(draw * share)) if tuples is not None else draw
        else:
            source = tuples
            position = draw - int(np.floor(draw * share)) if photos is not None else draw
        assert source is not None
        epoch, place = divmod(position, len(source))
        order = np.random.default_rng((self._settings.trainer.seed, 37, epoch))
        return source.pair(int(order.permutation(len(source))[place]))

    def losses(self, network: nn.Module, batch: Any) -> dict[str, Tensor]:
        """See `detector_losses`."""
        assert isinstance(network, DetectorNetwork)
        device = next(network.parameters()).device
        return detector_losses(network, batch.to(device), self._settings.losses)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures of each set; `score` is the mean matching score at 1 and 3 px."""
        assert isinstance(network, DetectorNetwork)
        find = network_finder(folded(network), self._settings.validation.keypoints)
        found = self._validation.figures(find)
        self._unrelated = self._validation.unrelated_similarity(find, next(iter(found)))
        named: dict[str, float] = {'score': score(found), 'unrelated': self._unrelated}
        for name, figures in found.items():
            named.update(figures.named(f'{name}_'))
        return named

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        """Weights with what was measured of their descriptors, and where they come from."""
        assert isinstance(network, DetectorNetwork)
        plain = folded(network.float())
        plain.profile = plain.profile.model_copy(
            update={'unrelated_similarity': round(self._unrelated, 3)}
        )
        origin = {
            'teacher': ORIGIN,
            'teacher_sha256': self._teacher.teacher.sha256,
            'training': 'distilled from the teacher on clean views; correspondence from geometry',
        }
        save_detector(path, plain.half(), {**origin, **notes})


def score(found: Mapping[str, KeypointFigures]) -> float:
    """By which detectors are ranked: mean matching score at 1 and 3 px over the sets, percent."""
    return float(np.mean([np.mean(figures.matching_score[:2]) for figures in found.values()]))


def training_pairs(
    settings: DetectorTraining, photos: Path | None, tuples: Path | None
) -> tuple[PhotoPairs | None, TuplePairs | None]:
    """The pairs to train on of a folder of photos and one of rendered tuples.

    Raises:
        SourceError: a folder without what it should hold.
    """
    size, seed = _size(settings.width), settings.trainer.seed
    of_photos = of_tuples = None
    if photos is not None:
        files = TupleSources.find(None, photos).photos_of('train')
        of_photos = PhotoPairs(files, size, settings.photo_variants, seed)
    if tuples is not None:
        of_tuples = TuplePairs(tuples / 'train', settings.width, settings.tuple_variants, seed)
    return of_photos, of_tuples


def validation_pairs(
    settings: DetectorValidationSettings, photos: Path | None, tuples: Path | None
) -> DetectorValidation:
    """The pairs to validate on: held-out photos, held-out world.

    Raises:
        SourceError: a folder without what it should hold.
    """
    sets: dict[str, Sequence[ViewPair]] = {}
    if photos is not None and (files := TupleSources.find(None, photos).photos_of('val')):
        held = PhotoPairs(files, _size(settings.width), settings.pairs, seed=1)
        sets['photos'] = [held.pair(index) for index in range(settings.pairs)]
    if tuples is not None:
        rendered = TuplePairs(tuples / 'val', settings.width, seed=1)
        chosen = np.linspace(0, len(rendered) - 1, min(settings.pairs, len(rendered)))
        sets['world'] = [rendered.pair(int(index)) for index in chosen]
    return DetectorValidation.of(sets, settings.keypoints)


def _size(width: int) -> tuple[int, int]:
    return width, width * 3 // 4
