# SPDX-License-Identifier: Apache-2.0
"""Detector and matcher learn together: the last stage of both.

Right assignments and poses reach the descriptors, and through the poses the places of keypoints
between pixels. Where keypoints are is a choice without gradient; the detector as it was keeps its
scores in place. Named as future work by Sarlin et al., SuperGlue, section 6, and by Roessle and
Niessner, End2End.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.config import RuntimeSettings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.detector import DenseFeatures, DetectorNetwork, Keypoints
from mv_matcher_ros.models.learned import LearnedDetector
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.weights import DESCRIBES_AS, save_detector, save_matcher, tensors_hash
from mv_matcher_ros.training.data.datasets import TrainingTuple, TupleDataset
from mv_matcher_ros.training.detector.losses import score_loss
from mv_matcher_ros.training.matcher.batches import draw, joined, strongest
from mv_matcher_ros.training.matcher.feature_cache import FeatureRecipe, features_of, with_labels
from mv_matcher_ros.training.matcher.settings import MatcherTraining
from mv_matcher_ros.training.matcher.task import accepted, batch_device, matcher_losses
from mv_matcher_ros.training.matcher.validation import validate_matcher
from mv_matcher_ros.training.settings import stage_at

DETECTOR_FILE = 'detector.safetensors'


class JointTraining(MatcherTraining):
    """One joint training; what a matcher's training has, and how far the detector may go."""

    network: Literal['joint'] = Field('joint', description='What is trained.')  # type: ignore[assignment]
    detector_learns: Literal['heads', 'all'] = Field(
        'all', description='heads: descriptors and places only; the encoder stays as it is.'
    )
    keep: float = Field(
        1.0, ge=0.0, description='Weight of staying with the scores and places there were.'
    )


@dataclass(frozen=True)
class JointBatch:
    """Tuples of as many views each, as images.

    Attributes:
        tuples: with depth and pose.
        causal, stage, pose_share: see `MatcherBatch`.
        keypoints: of a view.
        seed: of what is drawn of them.
    """

    tuples: tuple[TrainingTuple, ...]
    causal: bool
    stage: int
    pose_share: float
    keypoints: int
    seed: tuple[int, ...]


class JointNetwork(nn.Module):
    """A detector and a matcher."""

    def __init__(self, detector: DetectorNetwork, matcher: MatcherNetwork) -> None:
        super().__init__()
        self.detector, self.matcher = detector, matcher


class JointTask:
    """See `training.task.Task`.

    Args:
        settings: of the training.
        tuples: folder of `train tuples`, with train/ and val/.
        detector, matcher: to go on from.

    Raises:
        SourceError: no tuples, or none of a kind that a stage wants.
    """

    network: nn.Module

    def __init__(
        self,
        settings: JointTraining,
        tuples: Path,
        detector: DetectorNetwork,
        matcher: MatcherNetwork,
    ) -> None:
        self._settings = settings
        # Without norms, training mode changes nothing but the precision: it is the student's.
        self._before = copy.deepcopy(detector).train().requires_grad_(False)
        if settings.detector_learns == 'heads':
            for part in (detector.encoder, detector.detail, detector.score_hidden, detector.score):
                part.requires_grad_(False)
        self.network = JointNetwork(detector, matcher)
        views = {kind.views for stage in settings.stages for kind in stage.batches}
        seed = settings.trainer.seed
        self._data = {
            count: TupleDataset(tuples / 'train', count, seed=seed) for count in sorted(views)
        }
        self._members = {stage.places: self._of(stage.places) for stage in settings.stages}
        recipe = FeatureRecipe(settings.detector, seed=settings.feature_seed)
        self._limits = recipe.limits
        self._judge = TupleDataset(
            tuples / 'val', augmentation=recipe.augmentation, seed=recipe.seed
        )

    def _of(self, places: str) -> list[int]:
        """Numbers of the tuples that a stage wants."""
        data, wanted = next(iter(self._data.values())), accepted(places)
        found = [n for n in range(len(data)) if wanted is None or wanted(data.entry(n).world)]
        if not found:
            raise SourceError(f'{data.folder}: no tuple of the kind {places}')
        return found

    def worlds(self) -> dict[str, int]:
        """How many tuples there are of each place."""
        data = next(iter(self._data.values()))
        names = [data.entry(number).world for number in range(len(data))]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def batch(self, step: int, rank: int, world: int) -> JointBatch:
        """See `Task`. All processes have batches of the same kind in a step."""
        number, inside = stage_at(self._settings.stages, step)
        stage, seed = self._settings.stages[number], self._settings.trainer.seed
        kind, causal = stage.kind_of(np.random.default_rng((seed, step)))
        members = self._members[stage.places]
        place = (step * world + rank) * max(batch.tuples for batch in stage.batches)
        found = []
        for position in range(place, place + kind.tuples):
            epoch, inner = divmod(position, len(members))
            order = np.random.default_rng((seed, 41, epoch)).permutation(len(members))
            found.append(self._data[kind.views].tuple_at(members[int(order[inner])], epoch))
        share = stage.pose_share_at(inside)
        keypoints = kind.keypoints or stage.keypoints
        return JointBatch(tuple(found), causal, number, share, keypoints, (seed, step, rank))

    def losses(self, network: nn.Module, batch: JointBatch) -> dict[str, Tensor]:
        """See `matcher_losses`; `keep` is how far the detector has gone from where it was."""
        assert isinstance(network, JointNetwork)
        settings = self._settings
        images = torch.cat([one.images for one in batch.tuples]).to(batch_device(network))
        dense = network.detector.dense(images)
        room, border = settings.detector.max_keypoints, settings.detector.border_px
        said = network.detector.select(dense, room, border)
        rng, stage = np.random.default_rng(batch.seed), settings.stages[batch.stage]
        parts, first = [], 0
        for one in batch.tuples:
            views = len(one.images)
            features = [seen(said, first + view, images.shape) for view in range(views)]
            labelled = with_labels(one, features, self._limits)
            parts.append(draw(labelled, stage, views, batch.keypoints, rng))
            first += views
        joint = joined(parts, batch.causal, batch.stage, batch.pose_share)
        if settings.pairwise:
            joint = joint.in_pairs()
        losses = matcher_losses(network.matcher, joint, stage)
        if settings.keep:
            losses['keep'] = self._kept(network.detector, images, dense, said)
            losses['loss'] = losses['loss'] + settings.keep * losses['keep']
        return losses

    def _kept(
        self, detector: DetectorNetwork, images: Tensor, dense: DenseFeatures, said: Keypoints
    ) -> Tensor:
        """() divergence from the scores, and distance from the places between pixels, before."""
        before = self._before.to(images.device)
        with torch.no_grad():
            were = before.dense(images)
        total = scores_moved(were, dense)
        if detector.subpixel is None or before.subpixel is None:
            return total
        return total + places_moved(detector, before, dense.fine, were.fine, said)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The figures of `validate_matcher`, on what the detector now finds."""
        assert isinstance(network, JointNetwork)
        settings = self._settings.validation
        runtime = RuntimeSettings.model_validate({
            'device': str(batch_device(network)), 'precision': 'fp32'
        })  # fmt: skip
        finder = LearnedDetector(copy.deepcopy(network.detector), self._settings.detector, runtime)
        numbers = range(min(settings.tuples, len(self._judge)))
        found = (
            features_of(self._judge.tuple_at(number, 0), finder, self._limits)
            for number in numbers
        )
        batches = (strongest(one, settings.keypoints) for one in found)
        return validate_matcher(network.matcher, batches, settings, self._settings.pairwise)

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        """The matcher as `path`, the detector that it belongs to beside it."""
        assert isinstance(network, JointNetwork)
        save_both(network, path, notes)


def places_moved(
    detector: DetectorNetwork,
    before: DetectorNetwork,
    fine: Tensor,
    fine_before: Tensor,
    said: Keypoints,
) -> Tensor:
    """() how far the places between pixels are from where the detector before has them.

    Args:
        fine, fine_before: (B, C, H, W) as in `DenseFeatures`, of the one and the other.
        said: keypoints.
    """
    x, y = said.xy.detach().round().long().unbind(-1)
    with torch.no_grad():
        there, _ = before.refined(fine_before, x, y)
    here, _ = detector.refined(fine, x, y)
    total = functional.smooth_l1_loss(here[said.valid], there[said.valid], reduction='sum')
    return total / (2 * said.valid.sum().clamp_min(1))  # an image may have no keypoint


def scores_moved(were: DenseFeatures, dense: DenseFeatures) -> Tensor:
    """() divergence of the scores of cells from those that the detector before gave them."""
    target = were.log_probability.exp()
    everywhere = torch.ones_like(target[:, 0], dtype=torch.bool)
    presence, position = score_loss(dense.log_probability, target, everywhere)
    return presence + position


def save_both(
    network: JointNetwork,
    path: Path,
    notes: Mapping[str, str],
    detector: bool = True,
    describes_as: str = '',
) -> None:
    """The matcher as `path`, the detector that it belongs to beside it if wanted.

    Args:
        describes_as: hash of the detector whose descriptors it still gives, if so.
    """
    if detector:
        said = {**notes, DESCRIBES_AS: describes_as} if describes_as else notes
        save_detector(path.with_name(DETECTOR_FILE), network.detector, said)
    single = copy.deepcopy(network.detector).float()
    belongs = {'detector': 'learned', 'detector_sha256': tensors_hash(single.state_dict())}
    save_matcher(path, network.matcher, {**notes, **belongs})


def seen(said: Keypoints, view: int, shape: Sequence[int]) -> Features:
    """What was found in image `view` of a batch (B, 1, H, W), with gradients but for scores."""
    valid = said.valid[view]
    return Features(
        said.xy[view][valid].cpu(),
        said.descriptors[view][valid].cpu(),
        said.scores[view][valid].detach().cpu(),
        said.sigma_px[view][valid].detach().cpu(),
        (int(shape[-1]), int(shape[-2])),
    )
