# SPDX-License-Identifier: Apache-2.0
"""Settings of the training of point inference; files under `config/train/` are read into them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from mv_matcher_ros.config import DetectorSettings, Section
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.profiles import POINTS, PointProfile
from mv_matcher_ros.training.settings import StageSettings, TrainerSettings

# A depth is right within this share of it: at a baseline of 0.3 of the depth and a focal length of
# 500 px it moves a keypoint by 8 px, where the paper draws the line.
RIGHT_SHARE = 0.05


class SimulatedMapSettings(Section):
    """Which keypoints of a rendered view have landmarks, and how wrong those are."""

    least_share: float = Field(
        0.05, gt=0.0, le=1.0, description='Smallest share kept of what would be triangulated.'
    )
    clustered: float = Field(
        0.5, ge=0.0, le=1.0, description='Share of maps whose landmarks lie in a few places.'
    )
    largest_error_m: float = Field(
        0.1, ge=0.0, description='Largest standard deviation of maps with an error in metres.'
    )
    largest_parallax_error: float = Field(
        0.08,
        ge=0.0,
        description='Of maps whose error grows with depth squared: at the median depth, a share.',
    )
    outliers: float = Field(0.05, ge=0.0, le=0.5, description='Mean share that is plain wrong.')


class PointStage(StageSettings):
    """A part of the training."""

    keyframes: int = Field(8, ge=1, description='Views in a batch, two of each tuple.')
    keypoints: int = Field(384, ge=8, description='Keypoints of a view.')
    photo_share: float = Field(
        0.12,
        ge=0.0,
        le=1.0,
        description='Share of tuples of photographs on planes, which are easy.',
    )
    confidence_weight: float = Field(0.5, ge=0.0, description='Of the loss of confidences.')
    known_weight: float = Field(
        0.5, ge=0.0, description='Of keypoints with a known depth, which is judged anew.'
    )
    maps: SimulatedMapSettings = SimulatedMapSettings()


class PointValidation(Section):
    """How the network is validated, always with the same views and landmarks."""

    tuples: int = Field(100, ge=1, description='Most tuples; two views of each.')
    keypoints: int = Field(512, ge=8, description='Strongest keypoints of a view.')
    shares: tuple[float, ...] = Field(
        (0.1, 0.3), min_length=1, description='Of the landmarks that are kept.'
    )
    error_m: float = Field(0.02, ge=0.0, description='Standard deviation of the landmarks.')


class PointTraining(Section):
    """One training of a point inference network."""

    network: Literal['points'] = Field('points', description='What is trained.')
    profile: Literal['light'] = Field('light', description='Shape of the network.')
    profile_changes: dict[str, Any] = Field(
        default_factory=dict, description='Fields of the profile that differ.'
    )
    detector: DetectorSettings = DetectorSettings(max_keypoints=768)
    augmentations: int = Field(
        1, ge=0, le=100, description='How differently each tuple is seen; 0: as rendered.'
    )
    feature_seed: int = Field(
        0, ge=0, description='Of those; trainings of several seeds share their features.'
    )
    growing: bool = Field(
        False, description='Features that appear later are taken in by the next slice.'
    )
    trainer: TrainerSettings = TrainerSettings(validate_every=500)
    stages: tuple[PointStage, ...] = Field((PointStage(),), min_length=1)
    validation: PointValidation = PointValidation()

    def point_profile(self) -> PointProfile:
        """The network's profile.

        Raises:
            SettingsError: a change is of no field, or out of range.
        """
        values = {**POINTS[self.profile].model_dump(), **self.profile_changes}
        try:
            return PointProfile.model_validate(values)
        except ValidationError as error:
            fault = error.errors()[0]
            name = '.'.join(str(part) for part in fault['loc'])
            raise SettingsError(f'profile_changes.{name}: {fault["msg"]}') from None
