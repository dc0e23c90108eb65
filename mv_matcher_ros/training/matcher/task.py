# SPDX-License-Identifier: Apache-2.0
"""The matcher as a task of the trainer: right assignments first, then poses as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mv_matcher_ros.config import DetectorSettings
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.matcher import Assignment, MatcherNetwork
from mv_matcher_ros.models.weights import load_matcher, save_matcher
from mv_matcher_ros.training.matcher.batches import (
    MatcherBatch,
    draw,
    is_labelled,
    joined,
    strongest,
)
from mv_matcher_ros.training.matcher.feature_set import FeatureSet
from mv_matcher_ros.training.matcher.losses import confidence_loss, matching_loss
from mv_matcher_ros.training.matcher.pose_loss import adjusted_loss, eight_point_loss
from mv_matcher_ros.training.matcher.settings import MatcherStage, MatcherTraining
from mv_matcher_ros.training.matcher.validation import validate_matcher
from mv_matcher_ros.training.settings import stage_at

# Names of the places that photos make end in how many planes there are.
_PHOTOS, _ONE_PLANE = 'photos_', 'photos_1'


class MatcherTask:
    """A matcher, features of tuples to learn from, and of others to be judged by.

    Args:
        settings: of the training.
        train: for each shard its files of features.
        validation: the same of what is held out.
        start: file of weights to start from; None: untrained.
        overfit: learn the first so many tuples by heart, and be judged by them; None: all.

    Raises:
        SettingsError: the network does not take the detector's descriptors.
        SourceError: no tuples of a kind that a stage wants.
        ModelError: the start cannot be read, or is another network.
    """

    network: nn.Module

    def __init__(
        self,
        settings: MatcherTraining,
        train: Sequence[Sequence[Path]],
        validation: Sequence[Sequence[Path]],
        start: Path | None = None,
        overfit: int | None = None,
    ) -> None:
        self._settings = settings
        torch.manual_seed(settings.trainer.seed)
        profile = settings.matcher_profile()
        network = MatcherNetwork(profile)
        if start is not None:
            network = load_matcher(start)
            if network.profile != profile:
                raise SettingsError(
                    f'{start}: is a network of another profile than the settings ask for'
                )
        self.network = network
        seed = settings.trainer.seed
        self.data = {
            places: FeatureSet(train, None if overfit else accepted(places), overfit, seed)
            for places in dict.fromkeys(stage.places for stage in settings.stages)
        }
        most = settings.validation.tuples
        self._judge = (
            FeatureSet(train, None, overfit) if overfit else FeatureSet(validation, None, most)
        )

    def batch(self, step: int, rank: int, world: int) -> MatcherBatch:
        """See `Task`. All processes have batches of the same kind in a step."""
        number, inside = stage_at(self._settings.stages, step)
        stage = self._settings.stages[number]
        kind, causal = stage.kind_of(np.random.default_rng((self._settings.trainer.seed, step)))
        rng = np.random.default_rng((self._settings.trainer.seed, step, rank))
        # Each process and step has places of its own in the order, as many as its largest batch.
        room = max(batch.tuples for batch in stage.batches)
        data, place = self.data[stage.places], (step * world + rank) * room
        found = [data.shuffled(place + i) for i in range(kind.tuples)]
        views = min(kind.views, *(len(views.features) for views in found))
        keypoints = kind.keypoints or stage.keypoints
        parts = [draw(one, stage, views, keypoints, rng) for one in found]
        batch = joined(parts, causal, number, stage.pose_share_at(inside))
        return batch.in_pairs() if self._settings.pairwise else batch

    def losses(self, network: nn.Module, batch: MatcherBatch) -> dict[str, Tensor]:
        """See `Task` and `matcher_losses`."""
        return matcher_losses(network, batch, self._settings.stages[batch.stage])

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task` and `validate_matcher`."""
        assert isinstance(network, MatcherNetwork)
        settings = self._settings.validation
        batches = (
            strongest(self._judge.in_order(i), settings.keypoints) for i in range(len(self._judge))
        )
        return validate_matcher(network, batches, settings, self._settings.pairwise)

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        """See `Task`."""
        assert isinstance(network, MatcherNetwork)
        save_matcher(path, network, notes)


def matcher_losses(
    network: nn.Module, batch: MatcherBatch, stage: MatcherStage
) -> dict[str, Tensor]:
    """Losses of matches, confidences and, where the stage says so, poses."""
    device = batch_device(network)
    made: Assignment = network(
        batch.views.to(device),
        None if batch.sees is None else batch.sees.to(device),
        None if batch.known is None else batch.known.to(device),
    )
    partner_a, partner_b = batch.partner_a.to(device), batch.partner_b.to(device)
    looks = made.looks
    match = torch.stack([matching_loss(look, partner_a, partner_b) for look in looks]).mean()
    found = {'match': match, **shares(made, replace(batch, partner_a=partner_a))}
    loss = (1.0 - batch.pose_share) * match
    if made.confidence_logit is not None and stage.confidence_weight:
        found['confidence'] = torch.stack([confidence_loss(x, partner_a) for x in looks]).mean()
        loss = loss + stage.confidence_weight * found['confidence']
    if batch.pose_share:
        poses = _pose_losses(made, batch, stage)
        loss = loss + batch.pose_share * poses.pop('pose').to(loss)
        found.update(poses)
    return {'loss': loss, **found}


def _pose_losses(made: Assignment, batch: MatcherBatch, stage: MatcherStage) -> dict[str, Tensor]:
    parts = {'eight_point': eight_point_loss(made, batch)}
    if stage.adjusted:
        parts['adjusted'] = adjusted_loss(made, batch)
    found: dict[str, Tensor] = {}
    total = torch.zeros(())
    for name, part in parts.items():
        found[f'{name}_rotation_rad'] = part.rotation
        found[f'{name}_translation_rad'] = part.translation
        found[f'{name}_pairs'] = torch.tensor(float(part.found))
        angles = stage.rotation_weight * part.rotation
        total = total + (angles + stage.translation_weight * part.translation) / len(parts)
    return {'pose': total, **found}


def accepted(places: str) -> Callable[[str], bool] | None:
    """Which tuples a stage wants, by the names of their places."""
    if places == 'photos':
        return lambda world: world.startswith(_PHOTOS)
    return (lambda world: world != _ONE_PLANE) if places == 'solid' else None


def batch_device(network: nn.Module) -> torch.device:
    """Where a network is."""
    return next(network.parameters()).device


@torch.no_grad()
def shares(made: Assignment, batch: MatcherBatch) -> dict[str, Tensor]:
    """() precision and recall of the sure matches."""
    sure = (made.partner >= 0) & (made.confidence > 0.5)
    right = (sure & (made.partner == batch.partner_a)).sum()
    judged = (sure & is_labelled(batch)).sum().clamp_min(1)
    return {
        'precision': right / judged,
        'recall': right / (batch.partner_a >= 0).sum().clamp_min(1),
    }


def check_descriptors(settings: MatcherTraining, width: int) -> None:
    """Refuse a detector whose descriptors the network does not take.

    Raises:
        SettingsError: says both widths.
    """
    wanted = settings.matcher_profile().descriptor_size
    if width != wanted:
        detector: DetectorSettings = settings.detector
        raise SettingsError(
            f'the matcher of profile {settings.profile} takes descriptors of width {wanted}, the '
            f'detector {detector.name} gives {width}: set profile_changes.descriptor_size'
        )
