# SPDX-License-Identifier: Apache-2.0
"""A keyframe of a map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.datatypes import Array, Camera, Features
from mv_matcher_ros.geometry.camera import camera_normalise

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


@dataclass(frozen=True)
class MapKeyframe:
    """What a map keeps of a frame; arrays may lie in a file.

    Attributes:
        key: number in the map.
        stamp_ns: of the frame.
        segment: of the odometry; keyframes of one segment hang together by its steps.
        keypoints_xy: (N, 2) float32 pixels of the first camera.
        descriptors: (N, D) float16 unit length.
        scores: (N,) float16.
        sigma_px: (N,) float16 expected error of the keypoints, pixels.
        inverse_depth: (N,) float32 1/m as the sensor measured it, NaN where it did not.
        inverse_depth_sigma: (N,) float32 its standard deviation.
        landmark: (N,) int32 number of the landmark each one sees, −1 for none.
        odom_from_body: (4, 4) as the odometry published it.
        place: (P,) float32 place descriptor.
    """

    key: int
    stamp_ns: int
    segment: int
    keypoints_xy: Floats
    descriptors: Halves
    scores: Halves
    sigma_px: Halves
    inverse_depth: Floats
    inverse_depth_sigma: Floats
    landmark: NDArray[np.int32]
    odom_from_body: Array
    place: Floats

    def __len__(self) -> int:
        return len(self.landmark)

    def features(self, image_size: tuple[int, int]) -> Features:
        """As the matcher takes them; copies."""
        return Features(
            torch.tensor(self.keypoints_xy),
            torch.tensor(self.descriptors).float(),
            torch.tensor(self.scores).float(),
            torch.tensor(self.sigma_px).float(),
            image_size,
        )

    def plane_xy(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """(N, 2) float64 keypoints on the normalised plane, and (N,) which of them lie on it."""
        return camera_normalise(camera, torch.tensor(self.keypoints_xy).double())

    def seeing(self, landmark: NDArray[np.int32]) -> MapKeyframe:
        """The same with other landmarks (N,)."""
        return replace(self, landmark=landmark)
