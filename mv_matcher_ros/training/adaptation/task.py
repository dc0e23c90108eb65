# SPDX-License-Identifier: Apache-2.0
"""Adaptation as a task of the trainer: a clip is matched, solved, and taught by its solution."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Features, Matches, Rig
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.learned import LearnedDetector, allowed_at
from mv_matcher_ros.models.matcher import Assignment, MatcherNetwork
from mv_matcher_ros.models.view_batch import ViewBatch
from mv_matcher_ros.models.weights import tensors_hash
from mv_matcher_ros.training.adaptation.clips import Clip
from mv_matcher_ros.training.adaptation.objective import ExpectedPlaces, objective_at_optimum
from mv_matcher_ros.training.adaptation.settings import AdaptationSettings
from mv_matcher_ros.training.adaptation.structure import Fault, Structure, StructureSolver
from mv_matcher_ros.training.adaptation.verdicts import Verdicts, verdicts
from mv_matcher_ros.training.adaptation.views import clip_views
from mv_matcher_ros.training.adaptation.worth import density_moved, ranking_loss, worth
from mv_matcher_ros.training.joint_task import (
    JointNetwork,
    places_moved,
    save_both,
    scores_moved,
    seen,
)
from mv_matcher_ros.training.matcher.losses import believed_loss, matching_loss
from mv_matcher_ros.training.matcher.pose_loss import sure
from mv_matcher_ros.training.matcher.task import batch_device

# Clips that the end of a training is measured on; the judgement that counts is the guard's.
VALIDATED = 4
# Probability beyond which a wrong match weighs no more.
SUREST = 0.99


@dataclass(frozen=True)
class ClipBatch:
    """Clips of a step, by number, and the seed of what is drawn of them."""

    clips: tuple[int, ...]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class _Found:
    """Keypoints of the views of a clip; logarithms of their scores where those learn; and how far
    places and scores are from where they were."""

    features: list[Features]
    log_scores: list[Tensor] = field(default_factory=list)
    kept: Tensor = field(default_factory=lambda: torch.zeros(()))


class AdaptationTask:
    """See `training.task.Task`.

    Args:
        settings: of the adaptation.
        running: of the engine; how its networks run.
        rig: cameras of the clips; the first, or the first two.
        clips: that teach.
        detector, matcher: to go on from.
        describes_as: hash of the detector whose descriptors that one gives; empty: its own.
    """

    network: nn.Module

    def __init__(
        self,
        settings: AdaptationSettings,
        running: Settings,
        rig: Rig,
        clips: Sequence[Clip],
        detector: DetectorNetwork,
        matcher: MatcherNetwork,
        describes_as: str = '',
    ) -> None:
        self._settings, self._running = settings, running
        self._clips, self._rig = clips, rig
        self._solver = StructureSolver(settings.structure)
        self._before = copy.deepcopy(detector).eval().requires_grad_(False)
        self._describes_as = describes_as or tensors_hash(detector.state_dict())
        self._similarity = detector.profile.unrelated_similarity
        self.network = JointNetwork(detector, matcher)
        _let_learn(self.network, settings)
        self._finder: LearnedDetector | None = None
        self._found: dict[int, _Found] = {}

    @property
    def detector_learns(self) -> bool:
        """Whether anything of the detector changes."""
        return bool({'descriptors', 'places', 'keypoints'} & set(self._settings.learns))

    @property
    def _assignments_learn(self) -> bool:
        return bool({'matcher', 'confidence', 'descriptors'} & set(self._settings.learns))

    def batch(self, step: int, rank: int, world: int) -> ClipBatch:
        """See `Task`."""
        settings, seed = self._settings, self._settings.trainer.seed
        place = (step * world + rank) * settings.clips_per_step
        chosen = []
        for position in range(place, place + settings.clips_per_step):
            epoch, inner = divmod(position, len(self._clips))
            order = np.random.default_rng((seed, 53, epoch)).permutation(len(self._clips))
            chosen.append(int(order[inner]))
        return ClipBatch(tuple(chosen), (seed, step, rank))

    def losses(self, network: nn.Module, batch: ClipBatch) -> dict[str, Tensor]:
        """Means over the clips that could be solved; `solved` is the share of those."""
        assert isinstance(network, JointNetwork)
        rng = np.random.default_rng(batch.seed)
        parts = []
        for number in batch.clips:
            part = self._of_clip(network, number, rng)
            if part is not None:
                parts.append(part)
        solved = torch.tensor(len(parts) / len(batch.clips))
        if not parts:
            return {'loss': torch.zeros(()), 'solved': solved}
        found = {name: torch.stack([p[name] for p in parts]).mean() for name in parts[0]}
        # A clip without a solution says nothing: the others do not count for more.
        return {**found, 'loss': found['loss'] * solved.to(found['loss']), 'solved': solved}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Objective and tracks on a few of the clips that teach."""
        assert isinstance(network, JointNetwork)
        rng = np.random.default_rng(0)
        found = [
            part
            for number in range(min(VALIDATED, len(self._clips)))
            if (part := self._of_clip(network, number, rng)) is not None
        ]
        if not found:
            return {'score': 0.0}
        means = {n: float(np.mean([float(part[n]) for part in found])) for n in found[0]}
        return {'score': means['tracks'], **means}

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        """The matcher as `path`; where the detector learned, too, that one beside it."""
        assert isinstance(network, JointNetwork)
        same = 'descriptors' not in self._settings.learns
        save_both(network, path, notes, self.detector_learns, self._describes_as if same else '')

    # -------------------------------------------------------------- one clip

    def _of_clip(
        self, network: JointNetwork, number: int, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        """Losses of a clip, None where it has no structure."""
        settings, clip = self._settings, self._clips[number]
        device = batch_device(network)
        found = self._found_in(network.detector, number)
        drawn = [self._drawn(len(one), rng) for one in found.features]
        features = [one.chosen(index) for one, index in zip(found.features, drawn, strict=True)]
        room = max(len(one) for one in features)
        if room == 0:
            return None
        batch = ViewBatch.of(features, room).to(device)
        # Where assignments do not learn they are constants, and spared their way back.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._assignments_learn):
            made: Assignment = network.matcher(batch)
        views, plane = clip_views(clip, features, self._rig)
        places = ExpectedPlaces.of(
            plane, views.valid, views.pixel, made.pairs.cpu(),
            made.log_probability[0].cpu(), settings.reach_px, settings.reach_keypoints,
        )  # fmt: skip
        matches = sure(made.matches(), settings.min_confidence)
        if settings.control == 'shuffled':
            matches = shuffled(matches, rng)
        structure = self._solver.solve(views, matches, places.detached(), self._similarity)
        if isinstance(structure, Fault):
            return None
        said = verdicts(
            views, structure, made.pairs.cpu(), made.partner[0].cpu(), settings.verdict_px
        )
        objective = objective_at_optimum(structure, places(structure.table)).float()
        choice = torch.zeros(())
        if found.log_scores:
            believed = torch.where(
                made.confidence[0] >= settings.min_confidence, made.partner[0], -1
            )
            value = worth(
                views, structure, made.pairs.cpu(), believed.cpu(), said.wrong, settings.verdict_px
            )
            choice = torch.stack([
                ranking_loss(scores[index], value[view, : len(index)])
                for view, (scores, index) in enumerate(zip(found.log_scores, drawn, strict=True))
            ]).mean()  # fmt: skip
        return self._weighed(made, structure, said, objective, choice, found.kept)

    def _weighed(
        self,
        made: Assignment,
        structure: Structure,
        said: Verdicts,
        objective: Tensor,
        choice: Tensor,
        kept: Tensor,
    ) -> dict[str, Tensor]:
        settings = self._settings
        device = made.log_probability.device
        a, b, wrong = (x[None].to(device) for x in (said.partner_a, said.partner_b, said.wrong))
        looks = made.looks
        match = torch.stack([
            (2.0 * matching_loss(look, a, b) + refuted_loss(look, made.partner, wrong)) / 3.0
            for look in looks
        ]).mean()  # fmt: skip
        confidence = torch.zeros(())
        if made.confidence_logit is not None:
            parts = []
            for look in looks:
                right = (look.partner >= 0) & (look.partner == a)
                # What was said of the last look's matches holds for others only if they are those.
                same = look.partner == made.partner
                elsewhere = (look.partner >= 0) & (a >= 0) & ~right
                parts.append(believed_loss(look, right, right | elsewhere | (wrong & same)))
            confidence = torch.stack(parts).mean()
        loss = (
            settings.objective_weight * objective.to(match)
            + settings.match_weight * match
            + settings.confidence_weight * confidence
            + settings.choice_weight * choice
            + settings.keep * kept
        )
        judged = ((made.partner >= 0) & ((a >= 0) | wrong)).sum().clamp_min(1)
        return {
            'loss': loss,
            'objective': objective.detach(),
            'match': match.detach(),
            'confidence': confidence.detach(),
            'choice': choice.detach(),
            'kept': kept.detach(),
            'tracks': torch.tensor(float(len(structure))),
            'length': (structure.table >= 0).sum(1).double().mean(),
            'wrong': wrong.sum() / judged,
        }

    def _found_in(self, detector: DetectorNetwork, number: int) -> _Found:
        """Of the images of a clip, with gradients where the detector learns."""
        clip = self._clips[number]
        if not self.detector_learns:
            if number not in self._found:
                self._found[number] = _Found([
                    self._finder_of(detector).detect(image, mask)
                    for image, mask in zip(clip.images, clip.masks, strict=True)
                ])  # fmt: skip
            return self._found[number]
        device = batch_device(detector)
        before = self._before.to(device)
        learns = set(self._settings.learns)
        found = _Found([])
        kept = []
        for image, mask in zip(clip.images, clip.masks, strict=True):
            grey = (torch.tensor(image)[None, None].float() / 255.0).to(device)
            allowed = allowed_at(mask, image.shape)[None].to(device)
            dense = detector.dense(grey)
            said = detector.select(dense, self._room, self._running.detector.border_px, allowed)
            found.features.append(seen(said, 0, image.shape))
            if 'places' in learns and detector.subpixel is not None:
                kept.append(places_moved(detector, before, dense.fine, dense.fine, said))
            if 'keypoints' in learns:
                found.log_scores.append(said.scores[0][said.valid[0]].log())
                with torch.no_grad():
                    were = before.dense(grey)
                kept.append(scores_moved(were, dense) + density_moved(were, dense))
        return replace(found, kept=torch.stack(kept).sum() / len(clip.images)) if kept else found

    @property
    def _room(self) -> int:
        return round(self._settings.keypoints * self._settings.spare_keypoints)

    def _finder_of(self, detector: DetectorNetwork) -> LearnedDetector:
        if self._finder is None:
            settings = self._running.detector.model_copy(update={'max_keypoints': self._room})
            network = copy.deepcopy(detector).float()
            self._finder = LearnedDetector(network, settings, self._running.runtime)
        return self._finder

    def _drawn(self, count: int, rng: np.random.Generator) -> Tensor:
        """Index of the keypoints that take part: half of the time the strongest."""
        wanted = self._settings.keypoints
        if count <= wanted or rng.random() < 0.5:
            return torch.arange(min(count, wanted))
        return torch.from_numpy(rng.permutation(count)[:wanted]).sort().values


def refuted_loss(assignment: Assignment, partner: Tensor, wrong: Tensor) -> Tensor:
    """() mean of −log(1 − P) over matches that are wrong, whatever the right partner may be.

    Keypoints that nobody finds again are on no track, and would learn nothing from tracks alone.

    Args:
        partner: (B, P, N) that were matched; wrong: (B, P, N) bool.
    """
    inner = assignment.log_probability[..., :-1, :-1]
    logarithm = inner.gather(-1, partner.clamp_min(0)[..., None])[..., 0]
    refused = -torch.log1p(-logarithm.exp().clamp_max(SUREST))
    return torch.where(wrong, refused, 0.0).sum() / wrong.sum().clamp_min(1)


def shuffled(matches: Matches, rng: np.random.Generator) -> Matches:
    """For comparison: in each pair of views, partners dealt out anew."""
    keypoints = matches.keypoints.clone()
    for pair in torch.unique(matches.views, dim=0):
        rows = (matches.views == pair).all(1).nonzero()[:, 0]
        keypoints[rows, 1] = keypoints[rows[torch.from_numpy(rng.permutation(len(rows)))], 1]
    return Matches(matches.views, keypoints, matches.confidence)


def _let_learn(network: JointNetwork, settings: AdaptationSettings) -> None:
    """Only the parts that the settings name."""
    network.requires_grad_(False)
    learns = set(settings.learns)
    detector, matcher = network.detector, network.matcher
    if 'matcher' in learns:
        matcher.requires_grad_(True)
        if matcher.confidence is not None:
            matcher.confidence.requires_grad_(False)
    parts: dict[str, list[nn.Module | None]] = {
        'confidence': [matcher.confidence],
        'descriptors': [detector.descriptor_hidden, detector.descriptor],
        'places': [detector.subpixel],
        'keypoints': [detector.score_hidden, detector.detail, detector.score],
    }
    for name, modules in parts.items():
        for module in modules:
            if name in learns and module is not None:
                module.requires_grad_(True)
