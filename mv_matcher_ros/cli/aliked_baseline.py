# SPDX-License-Identifier: Apache-2.0
"""ALIKED-n16 in place of our detector: something to compare with, in benchmarks only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Features

SIGMA_PX = 0.7  # it says nothing of its errors


class AlikedDetector:
    """The teacher of our detector behind the interface of a detector.

    Raises:
        MissingDependencyError: kornia is not installed.
        ModelError: no such file, or not its weights.
    """

    def __init__(self, path: Path, max_keypoints: int) -> None:
        from mv_matcher_ros.training.detector.teacher import DESCRIPTOR_SIZE, Teacher

        self._size = DESCRIPTOR_SIZE
        self._network = Teacher(path, max_keypoints, threshold=0.0)

    @property
    def descriptor_size(self) -> int:
        """Width of the descriptors."""
        return self._size

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        """Features of a (H, W) grey or (H, W, 3) BGR image, taken as grey; masks are not used."""
        import cv2

        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        found = self._network.teach(np.asarray(grey, np.uint8))
        height, width = grey.shape
        sigma = torch.full((len(found.xy),), SIGMA_PX)
        return Features(found.xy, found.descriptors, found.scores, sigma, (width, height))
