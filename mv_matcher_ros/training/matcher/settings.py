# SPDX-License-Identifier: Apache-2.0
"""Settings of the matcher's training; files under `config/train/` are read into this tree."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from mv_matcher_ros.config import DetectorSettings, PoseEstimatorSettings, Section
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.profiles import MATCHERS, MatcherProfile
from mv_matcher_ros.training.settings import StageSettings, TrainerSettings


class BatchSettings(Section):
    """One kind of batch: tuples of as many views."""

    views: int = Field(2, ge=2, le=10, description='Views of each tuple.')
    tuples: int = Field(4, ge=1, description='Tuples in a batch, in each process.')
    share: float = Field(1.0, gt=0.0, description='How often, beside the other kinds.')
    keypoints: int = Field(0, ge=0, description="Keypoints of a view, if others than the stage's.")


class MatcherStage(StageSettings):
    """A part of the matcher's training."""

    places: Literal['all', 'photos', 'solid'] = Field(
        'all',
        description='photos: homographies and piecewise ones; solid: all but single planes, '
        'whose views have no essential matrix.',
    )
    batches: tuple[BatchSettings, ...] = Field(
        (BatchSettings(),), min_length=1, description='Kinds of batches, mixed by their shares.'
    )
    keypoints: int = Field(320, ge=8, description='Keypoints of a view.')
    random_keypoints: float = Field(
        0.7, ge=0.0, le=1.0, description='Share of tuples with a random part, not the strongest.'
    )
    causal: float = Field(
        0.3, ge=0.0, le=1.0, description='Share of steps in which views hear earlier ones only.'
    )
    known_poses: float = Field(
        0.6, ge=0.0, le=1.0, description='Share of tuples of which some poses are told.'
    )
    confidence_weight: float = Field(0.5, ge=0.0, description='Of the loss of confidences.')
    pose_share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description='Share that poses have beside matches at the end of the ramp; 0: none.',
    )
    pose_ramp: int = Field(1, ge=1, description='Steps in which that share grows.')
    rotation_weight: float = Field(4.0, ge=0.0, description='Of the angle of rotations, 1/rad.')
    translation_weight: float = Field(
        1.0, ge=0.0, description='Of the angle of translations, 1/rad.'
    )
    adjusted: bool = Field(
        False, description='Poses after bundle adjustment count too, half of the loss of poses.'
    )

    def kind_of(self, rng: np.random.Generator) -> tuple[BatchSettings, bool]:
        """A kind of batch, and whether its views hear earlier ones only."""
        share = np.array([kind.share for kind in self.batches])
        kind = self.batches[int(rng.choice(len(share), p=share / share.sum()))]
        return kind, bool(rng.random() < self.causal)

    def pose_share_at(self, step: int) -> float:
        """Share of the poses in step 0, 1, … of this stage."""
        return self.pose_share * min(1.0, (step + 1) / self.pose_ramp)


class ValidationSettings(Section):
    """How a matcher is validated, always with the same tuples."""

    tuples: int = Field(100, ge=1, description='Most tuples; all their views are matched jointly.')
    keypoints: int = Field(512, ge=8, description='Strongest keypoints of a view.')
    min_confidence: float = Field(
        0.5, ge=0.0, le=1.0, description='Matches from this confidence on count as made.'
    )
    min_overlap: float = Field(
        0.1, ge=0.0, le=1.0, description='Pairs of views with less are left out.'
    )
    pose_estimator: PoseEstimatorSettings = PoseEstimatorSettings()


class MatcherTraining(Section):
    """One training of a matcher."""

    network: Literal['matcher'] = Field('matcher', description='What is trained.')
    profile: Literal['light', 'full'] = Field('light', description='Shape of the network.')
    profile_changes: dict[str, Any] = Field(
        default_factory=dict, description='Fields of the profile that differ.'
    )
    detector: DetectorSettings = DetectorSettings(max_keypoints=768)
    augmentations: int = Field(
        2, ge=0, le=100, description='How differently each tuple is seen; 0: as rendered.'
    )
    feature_seed: int = Field(
        0, ge=0, description='Of those; trainings of several seeds share their features.'
    )
    growing: bool = Field(
        False,
        description='Tuples that appear later are taken in by the next slice; then slices are '
        'not the same as one run without a break.',
    )
    pairwise: bool = Field(
        False, description='For comparison: the views of a tuple are matched two at a time.'
    )
    trainer: TrainerSettings = TrainerSettings()
    stages: tuple[MatcherStage, ...] = Field((MatcherStage(),), min_length=1)
    validation: ValidationSettings = ValidationSettings()

    def matcher_profile(self) -> MatcherProfile:
        """The network's profile.

        Raises:
            SettingsError: a change is of no field, or out of range.
        """
        values = {**MATCHERS[self.profile].model_dump(), **self.profile_changes}
        try:
            return MatcherProfile.model_validate(values)
        except ValidationError as error:
            fault = error.errors()[0]
            name = '.'.join(str(part) for part in fault['loc'])
            raise SettingsError(f'profile_changes.{name}: {fault["msg"]}') from None
