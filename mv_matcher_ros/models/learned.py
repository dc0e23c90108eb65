# SPDX-License-Identifier: Apache-2.0
"""The detector network behind the interface of the classical detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import DetectorSettings, RuntimeSettings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.models.classical import working_image
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.engine_files import EngineFiles
from mv_matcher_ros.models.place import Place, placed
from mv_matcher_ros.models.runtime import Runner
from mv_matcher_ros.models.static import StaticDetector


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
        runtime = RuntimeSettings() if runtime is None else runtime
        self._network, self.place = placed(network.eval(), runtime, self._trial)
        module = StaticDetector(self._network, settings.max_keypoints, settings.border_px)
        self._run = Runner(module, self.place, EngineFiles(runtime.engines))

    @property
    def descriptor_size(self) -> int:
        """Width of the descriptors."""
        return self._network.profile.descriptor_size

    def _trial(self, network: DetectorNetwork, place: Place) -> object:
        return network.dense(torch.zeros(1, 1, 240, 320, device=place.device))

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        """Features of a (H, W) grey or (H, W, 3) BGR image; none where `mask` is False."""
        return self.detect_all([image], [mask])[0]

    def detect_all(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> list[Features]:
        """Features of several images; those of one size go through the network together."""
        masks = [None] * len(images) if masks is None else masks
        working = [working_image(image, self._settings.working_width) for image in images]
        found: list[Features | None] = [None] * len(images)
        for shape in sorted({image.shape for image in working}):
            chosen = [k for k, image in enumerate(working) if image.shape == shape]
            grey = torch.from_numpy(np.stack([working[k] for k in chosen]))
            allowed = torch.stack([_allowed(masks[k], shape) for k in chosen])
            xy, scores, descriptors, sigma, valid = self._run(grey[:, None], allowed)
            for row, k in enumerate(chosen):
                used = valid[row]
                height, width = images[k].shape[:2]
                per = torch.tensor([width / shape[1], height / shape[0]])
                found[k] = Features(
                    (xy[row, used] + 0.5) * per - 0.5,
                    descriptors[row, used],
                    scores[row, used],
                    sigma[row, used] * per.mean(),
                    (width, height),
                )
        return [features for features in found if features is not None]


def _allowed(mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> Tensor:
    if mask is None:
        return torch.ones(shape[:2], dtype=torch.bool)
    rows = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    return torch.from_numpy(mask[rows.astype(int)[:, None], columns.astype(int)])
