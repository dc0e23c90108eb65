# SPDX-License-Identifier: Apache-2.0
"""Settings of the training of place descriptors; see `config/train/place_light.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mv_matcher_ros.config import DetectorSettings, Section
from mv_matcher_ros.models.profiles import PlaceProfile


class VocabularySettings(Section):
    """Words: k-means over local descriptors."""

    descriptors: int = Field(100_000, ge=10, description='Local descriptors that are clustered.')
    iterations: int = Field(12, ge=1, description='Of k-means.')
    comparison: int = Field(
        1000, ge=0, description='Words of the bag of words to compare with; 0: none is made.'
    )


class PlaceTraining(Section):
    """One training of a place descriptor."""

    network: Literal['place'] = Field('place', description='What is trained.')
    profile: PlaceProfile = PlaceProfile()
    detector: DetectorSettings = DetectorSettings(max_keypoints=768)
    augmentations: int = Field(
        1, ge=0, le=100, description='How differently each tuple is seen; 0: as rendered.'
    )
    feature_seed: int = Field(0, ge=0, description='Of those.')
    seed: int = Field(0, ge=0, description='Of the choice of descriptors and of k-means.')
    validation: int = Field(100, ge=1, description='Most tuples that judge.')
    vocabulary: VocabularySettings = VocabularySettings()
    evenness: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description='Of whitening; 0: principal directions count by their spread, 1: all alike.',
    )
    min_overlap: float = Field(
        0.3, ge=0.0, le=1.0, description='Views with so much in common are of one place.'
    )
