# SPDX-License-Identifier: Apache-2.0
"""The detector and the matchers that the settings name."""

from __future__ import annotations

from dataclasses import dataclass

from mv_matcher_ros.config import Settings
from mv_matcher_ros.errors import ModelError, SettingsError
from mv_matcher_ros.models.classical import (
    ClassicalDetector,
    Detector,
    Matcher,
    NearestNeighbourMatcher,
)
from mv_matcher_ros.models.learned import LearnedDetector
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.models.weights import load_detector, load_matcher


@dataclass(frozen=True)
class Models:
    """What finds and matches features.

    Attributes:
        detector: of keypoints.
        nearest: matcher around predicted positions, and everywhere without a network.
        graph: the multi-view network, None for `matching.matcher: nearest`.
    """

    detector: Detector
    nearest: NearestNeighbourMatcher
    graph: LearnedMatcher | None = None

    @property
    def matcher(self) -> Matcher:
        """For views of which nothing is known."""
        return self.nearest if self.graph is None else self.graph

    @classmethod
    def of(cls, settings: Settings) -> Models:
        """Made as the settings say; weights are read from their files.

        Raises:
            SettingsError: weights are needed and not named, or the device is not there.
            ModelError: a file of weights is missing, or does not fit the detector.
        """
        detector, unrelated = _detector(settings)
        nearest = NearestNeighbourMatcher(settings.matching, unrelated)
        if settings.matching.matcher == 'nearest':
            return cls(detector, nearest)
        path = _named(settings.matching.weights, 'matching.weights', settings.matching.matcher)
        network = load_matcher(path)
        taken, given = network.profile.descriptor_size, detector.descriptor_size
        if taken != given:
            raise ModelError(
                f'{path}: takes descriptors of width {taken}, detector.name '
                f'{settings.detector.name} gives {given}: its weights belong to another detector'
            )
        return cls(detector, nearest, LearnedMatcher(network, settings.matching, settings.runtime))


def _detector(settings: Settings) -> tuple[Detector, float | str]:
    if settings.detector.name != 'learned':
        return ClassicalDetector(settings.detector), settings.detector.name
    path = _named(settings.detector.weights, 'detector.weights', 'learned')
    network = load_detector(path)
    unrelated = network.profile.unrelated_similarity
    return LearnedDetector(network, settings.detector, settings.runtime), unrelated


def _named(path: str, setting: str, wanted_by: str) -> str:
    if not path:
        raise SettingsError(f'{setting} is empty: {wanted_by} needs a file of weights')
    return path
