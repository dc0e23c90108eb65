# SPDX-License-Identifier: Apache-2.0
"""The detector and the matchers that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mv_matcher_ros.config import MatchingSettings, Settings
from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.classical import (
    ClassicalDetector,
    Detector,
    Matcher,
    NearestNeighbourMatcher,
)
from mv_matcher_ros.models.learned import LearnedDetector
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.models.learned_points import PointInference
from mv_matcher_ros.models.place import Place
from mv_matcher_ros.models.place_descriptor import PlaceDescriber
from mv_matcher_ros.models.shipped import detector_file, matcher_file, points_file, weights_file
from mv_matcher_ros.models.weights import (
    DESCRIBES_AS,
    load_detector,
    load_matcher,
    load_place,
    load_points,
    read_notes,
    tensors_hash,
)


@dataclass(frozen=True)
class NetworkUse:
    """Which network runs, and how.

    Attributes:
        place: device and precision, e.g. `cpu fp32`.
        weights: name of the file.
        sha256: of the tensors as they were loaded; the one that a file of ours names.
        describes: of a detector the hash of the one whose descriptors it gives: itself, or the one
            that it was adapted from and that differs in other parts alone. Of others their own.
    """

    place: str
    weights: str
    sha256: str
    describes: str


@dataclass(frozen=True)
class Models:
    """What finds and matches features.

    Attributes:
        detector: of keypoints.
        nearest: matcher around predicted positions, and everywhere without a network.
        graph: the multi-view network, None where nearest neighbours match.
        networks: what runs of 'detector' and 'matcher' that is a network.
    """

    detector: Detector
    nearest: NearestNeighbourMatcher
    graph: LearnedMatcher | None = None
    networks: Mapping[str, NetworkUse] = field(default_factory=dict)

    @property
    def matcher(self) -> Matcher:
        """For views of which nothing is known."""
        return self.nearest if self.graph is None else self.graph

    def graph_of_keyframes(self, settings: MatchingSettings) -> LearnedMatcher | None:
        """The network, if it is to match every keyframe; around predicted positions nearest
        neighbours do as well, and `matching.matcher: auto` leaves it to them on a CPU."""
        if self.graph is None or settings.matcher != 'auto':
            return self.graph
        return self.graph if self.graph.place.device.type == 'cuda' else None

    @classmethod
    def of(cls, settings: Settings) -> Models:
        """Made as the settings say; weights are read from their files.

        Raises:
            SettingsError: weights are neither a file nor shipped, or the device is not there.
            ModelError: a file of weights is missing, or does not fit the detector.
        """
        detector, unrelated, networks = _detector(settings)
        nearest = NearestNeighbourMatcher(settings.matching, unrelated)
        path = matcher_file(settings)
        if path is None:
            return cls(detector, nearest, networks=networks)
        network = load_matcher(path)
        taken, given = network.profile.descriptor_size, detector.descriptor_size
        if taken != given:
            raise ModelError(
                f'{path}: takes descriptors of width {taken}, detector.name '
                f'{settings.detector.name} gives {given}: its weights belong to another detector'
            )
        check_detector(path, settings.detector.name, networks.get('detector'))
        sha256 = tensors_hash(network.state_dict())  # before it is rounded to half precision
        graph = LearnedMatcher(network, settings.matching, settings.runtime)
        used = NetworkUse(graph.place.name, path.name, sha256, sha256)
        return cls(detector, nearest, graph, {**networks, 'matcher': used})

    def point_inference(self, settings: Settings) -> PointInference | None:
        """The network that infers points of a map, for this detector; None where the settings or
        the lack of weights for it say so.

        Raises:
            SettingsError: weights are neither a file nor shipped.
            ModelError: a file of weights is missing, damaged, or belongs to another detector.
        """
        path = points_file(settings)
        if path is None:
            return None
        check_detector(path, settings.detector.name, self.networks.get('detector'))
        return PointInference(load_points(path), settings.runtime)

    def prepare(self, rig: Rig) -> None:
        """Capture or load what runs in fixed shapes, before the first image comes."""
        if isinstance(self.detector, LearnedDetector):
            for width, height in {(camera.width, camera.height) for camera in rig.cameras}:
                self.detector.prepare(width, height)
        if self.graph is not None:
            self.graph.prepare()

    def warm_up(self) -> None:
        """Run the detector once, before the cameras are known; nothing where shapes are fixed."""
        if isinstance(self.detector, LearnedDetector):
            self.detector.warm_up()

    def moved(self, place: Place) -> Models:
        """The same with networks at a place, also at one that the settings refuse as slow.

        Networks are changed in place.
        """
        for model in (self.detector, self.graph):
            if isinstance(model, LearnedDetector | LearnedMatcher):
                model.move_to(place)
        networks = {name: replace(use, place=place.name) for name, use in self.networks.items()}
        return replace(self, networks=networks)


def _detector(settings: Settings) -> tuple[Detector, float | str, dict[str, NetworkUse]]:
    """The detector, what its unrelated descriptors are like, and the network that it is."""
    if settings.detector.name != 'learned':
        return ClassicalDetector(settings.detector), settings.detector.name, {}
    path = detector_file(settings.detector)
    network = load_detector(path)
    unrelated = network.profile.unrelated_similarity
    sha256 = tensors_hash(network.state_dict())
    learned = LearnedDetector(network, settings.detector, settings.runtime)
    describes = read_notes(path).get(DESCRIBES_AS, sha256)
    used = NetworkUse(learned.place.name, path.name, sha256, describes)
    return learned, unrelated, {'detector': used}


def check_detector(path: Path, name: str, network: NetworkUse | None) -> None:
    """Refuse a network that was trained on the features of another detector; their descriptors
    may have the same width.

    Raises:
        ModelError: says which it was trained on.
    """
    notes = read_notes(path)
    wanted = notes.get('detector', name)
    if wanted != name:
        raise ModelError(f'{path}: was trained on features of {wanted}, detector.name is {name}')
    wanted = notes.get('detector_sha256', '')
    if network is not None and wanted not in ('', network.sha256, network.describes):
        raise ModelError(
            f'{path}: was trained on features of a detector with the hash {wanted[:12]}, '
            f'{network.weights} has {network.sha256[:12]}: use the two that belong together'
        )


def place_describer(settings: Settings, models: Models) -> PlaceDescriber:
    """What describes places by the features of the detector among `models`.

    Raises:
        SettingsError: `mapping.places.weights` is neither a file nor shipped.
        ModelError: it cannot be read, or was trained on the features of another detector.
    """
    named = settings.mapping.places.weights or 'light'
    path = weights_file('place', named, 'mapping.places.weights')
    network = load_place(path)
    check_detector(path, settings.detector.name, models.networks.get('detector'))
    return PlaceDescriber(network, settings.mapping.places.min_keypoints)
