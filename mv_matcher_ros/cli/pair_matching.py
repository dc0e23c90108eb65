# SPDX-License-Identifier: Apache-2.0
"""Features and matches of listed image pairs, as the commands that measure them need them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mv_matcher_ros.datatypes import Array, Features
    from mv_matcher_ros.evaluation.pairs_file import ImagePair
    from mv_matcher_ros.models.classical import Detector, Matcher

IMAGES_CACHED = 64  # features of images that come in several pairs


class PairFeatures:
    """Finds the features of images that lists name, each image once."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._kept = lru_cache(IMAGES_CACHED)(self._look_at)

    def of(self, pair: ImagePair) -> tuple[ImagePair, tuple[Features, Features]]:
        """The pair turned upright, and the features of its two upright images.

        Raises:
            SourceError: an image cannot be read.
        """
        seen = [self._kept(p, q) for p, q in zip(pair.paths, pair.quarter_turns, strict=True)]
        return pair.upright((seen[0][0], seen[1][0])), (seen[0][1], seen[1][1])

    def _look_at(self, path: Path, quarter_turns: int) -> tuple[tuple[int, int], Features]:
        from mv_matcher_ros.files.images import read_image

        image = read_image(path)
        height, width = image.shape[:2]
        upright = np.ascontiguousarray(np.rot90(image, quarter_turns))
        return (width, height), self._detector.detect(upright)


@dataclass(frozen=True)
class MatchedPair:
    """The K matches of two views.

    Attributes:
        keypoints: (K, 2) int64 in each view; confidence: (K,).
        points: (K, 2) of each view on its normalised plane.
        focal_px: mean focal length of both.
    """

    keypoints: Tensor
    confidence: Array
    points: tuple[Array, Array]
    focal_px: float

    @classmethod
    def of(
        cls, upright: ImagePair, features: tuple[Features, Features], matcher: Matcher
    ) -> MatchedPair:
        """Match the features of an upright pair."""
        keypoints, confidence = matcher.match(features).pair(0, 1)
        first, second = (
            normalised(features[i].keypoints_xy[keypoints[:, i]].numpy(), upright.matrices[i])
            for i in (0, 1)
        )
        focal_px = float(np.mean([matrix[[0, 1], [0, 1]] for matrix in upright.matrices]))
        return cls(keypoints, confidence.numpy(), (first, second), focal_px)

    def in_order(self, order: NDArray[np.integer]) -> MatchedPair:
        """The same matches in another order, (K,)."""
        first, second = (points[order] for points in self.points)
        return replace(
            self,
            keypoints=self.keypoints[order],
            confidence=self.confidence[order],
            points=(first, second),
        )


def normalised(pixels: Any, matrix: Array) -> Array:
    """(N, 2) pixels through the inverse of the (3, 3) pinhole matrix."""
    homogeneous = np.column_stack([pixels, np.ones(len(pixels))]).astype(np.float64)
    return (homogeneous @ np.linalg.inv(matrix).T)[:, :2]
