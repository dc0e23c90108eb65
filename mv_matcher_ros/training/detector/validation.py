# SPDX-License-Identifier: Apache-2.0
"""How good a detector is on views it was not trained on: held-out photos under homographies, and
the held-out rendered world. The student, a classical detector and the teacher are measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.config import DetectorSettings
from mv_matcher_ros.evaluation.keypoint_error import (
    KeypointFigures,
    ViewKeypoints,
    keypoint_figures,
    mutual_nearest,
)
from mv_matcher_ros.models.classical import ClassicalDetector
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.training.data.augmentation import Augmentation, photograph
from mv_matcher_ros.training.data.correspondence import Map
from mv_matcher_ros.training.data.view_pairs import ViewPair
from mv_matcher_ros.training.detector.teacher import TaughtOnce

Found = tuple[torch.Tensor, torch.Tensor]
# (N, 2) pixels and (N, D) unit descriptors of a (H, W) image, the strongest keypoint first.
Finder = Callable[[NDArray[np.uint8]], Found]
# Nothing nearer to the border than the odometry takes by default.
BORDER_PX = DetectorSettings().border_px


@dataclass(frozen=True)
class DetectorValidation:
    """Pairs of views by the name of their set, as another camera took each view.

    Attributes:
        sets: pairs whose images are what detectors see.
        keypoints: of a view, the strongest ones.
    """

    sets: Mapping[str, Sequence[ViewPair]]
    keypoints: int

    @classmethod
    def of(
        cls, sets: Mapping[str, Sequence[ViewPair]], keypoints: int, seed: int = 0
    ) -> DetectorValidation:
        """Clean pairs in the light, noise, blur and compression of different cameras."""
        return cls(
            {
                name: [_photographed(pair, (seed, n)) for n, pair in enumerate(pairs)]
                for name, pairs in sets.items()
            },
            keypoints,
        )

    def figures(self, find: Finder) -> dict[str, KeypointFigures]:
        """Means over the pairs of each set."""
        return {
            name: KeypointFigures.mean([self._pair(find, pair) for pair in pairs])
            for name, pairs in self.sets.items()
        }

    def _pair(self, find: Finder, pair: ViewPair) -> KeypointFigures:
        (xy_a, said_a), (xy_b, said_b) = (
            tuple(part[: self.keypoints] for part in find(image)) for image in pair.images
        )
        matches = mutual_nearest((said_a @ said_b.T).numpy())
        return keypoint_figures(_view(xy_a, pair.forth), _view(xy_b, pair.back), matches)

    def unrelated_similarity(self, find: Finder, name: str) -> float:
        """Median similarity of a keypoint to the most similar one of another picture of a set."""
        said = [find(pair.images[0])[1][: self.keypoints] for pair in self.sets[name]]
        best = [
            (a @ b.T).amax(1)
            for a, b in zip(said, said[1:] + said[:1], strict=True)
            if len(a) and len(b)
        ]
        return float(torch.cat(best).median()) if best else 0.5


def _photographed(pair: ViewPair, seed: tuple[int, ...]) -> ViewPair:
    rng = np.random.default_rng((*seed, 29))
    images = np.stack([photograph(image, rng, Augmentation()) for image in pair.images])
    return replace(pair, images=images)


def _view(xy: torch.Tensor, there: Map) -> ViewKeypoints:
    place, seen = there(xy.double())
    return ViewKeypoints(xy.double().numpy(), place.numpy(), seen.numpy())


def network_finder(network: DetectorNetwork, keypoints: int) -> Finder:
    """The student, on the device where it is."""

    @torch.inference_mode()
    def find(image: NDArray[np.uint8]) -> Found:
        device = next(network.parameters()).device
        shown = torch.tensor(image, device=device)[None, None].float() / 255.0
        said = network(shown, keypoints, BORDER_PX)
        valid = said.valid[0]
        return said.xy[0][valid].cpu(), said.descriptors[0][valid].cpu()

    return find


def sift_finder(keypoints: int) -> Finder:
    """RootSIFT, as the odometry uses it."""
    detector = ClassicalDetector(DetectorSettings(name='sift', max_keypoints=keypoints))

    def find(image: NDArray[np.uint8]) -> Found:
        features = detector.detect(image)
        return features.keypoints_xy, features.descriptors

    return find


def teacher_finder(teacher: TaughtOnce) -> Finder:
    """The teacher, as far from the border as the others."""

    def find(image: NDArray[np.uint8]) -> Found:
        said = teacher.teach(image)
        height, width = image.shape
        low, high = said.xy >= BORDER_PX, said.xy < said.xy.new_tensor([width, height]) - BORDER_PX
        inside = (low & high).all(1)
        return said.xy[inside], said.descriptors[inside]

    return find
