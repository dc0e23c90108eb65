# SPDX-License-Identifier: Apache-2.0
"""The detector network behind the interface of the classical detectors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import DetectorSettings, RuntimeSettings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.models.classical import working_image
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.engine_files import EngineFiles
from mv_matcher_ros.models.place import Place, moved, placed
from mv_matcher_ros.models.runtime import Runner
from mv_matcher_ros.models.static import StaticDetector

# Height and width of the image of a first run.
WARM_UP_SHAPE = (480, 640)


class LearnedDetector:
    """The detector network behind the interface of the classical ones."""

    def __init__(
        self,
        network: DetectorNetwork,
        settings: DetectorSettings,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._settings = settings
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._runtime = RuntimeSettings() if runtime is None else runtime
        self._network, self.place = placed(network.eval(), self._runtime, self._trial)
        self._run = self._runner()

    def _runner(self) -> Runner:
        settings = self._settings
        module = StaticDetector(self._network, settings.max_keypoints, settings.border_px)
        return Runner(module, self.place, EngineFiles(self._runtime.engines))

    def move_to(self, place: Place) -> None:
        """Run there from now on, also in a precision that the settings refuse as slow."""
        self._network, self.place = moved(self._network, place), place
        self._run = self._runner()

    @property
    def descriptor_size(self) -> int:
        """Width of the descriptors."""
        return self._network.profile.descriptor_size

    def _trial(self, network: DetectorNetwork, place: Place) -> object:
        return network.dense(torch.zeros(1, 1, 240, 320, device=place.device))

    def prepare(self, width: int, height: int) -> None:
        """Capture or load what runs for images of this size; nothing when eager."""
        if self._run.fixed:
            self.detect(np.zeros((height, width), np.uint8))

    def warm_up(self) -> None:
        """Run once when eager: the first run takes far longer than those after it. What runs in
        fixed shapes waits for `prepare`: it would be captured or built for a size nobody has."""
        if not self._run.fixed:
            self.detect(np.zeros(WARM_UP_SHAPE, np.uint8))

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        """Features of a (H, W) grey or (H, W, 3) BGR image; none where `mask` is False."""
        # One image a call: on a CPU two together take longer (docs/results.md).
        working = working_image(image, self._settings.working_pixels)
        allowed = allowed_at(mask, working.shape)
        xy, scores, descriptors, sigma, valid = (
            part[0] for part in self._run(torch.tensor(working)[None, None], allowed[None])
        )
        height, width = image.shape[:2]
        per = torch.tensor([width / working.shape[1], height / working.shape[0]])
        return Features(
            (xy[valid] + 0.5) * per - 0.5,
            descriptors[valid],
            scores[valid],
            sigma[valid] * per.mean(),
            (width, height),
        )


def allowed_at(mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> Tensor:
    """(h, w) bool, where keypoints may lie in an image of this shape; a mask of any size."""
    if mask is None:
        return torch.ones(shape[:2], dtype=torch.bool)
    rows = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    return torch.from_numpy(mask[rows.astype(int)[:, None], columns.astype(int)])
