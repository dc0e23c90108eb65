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
        descriptors: (N, D) int8 as `packed` makes them: most of what a map takes.
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
    descriptors: NDArray[np.int8]
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
            torch.from_numpy(unpacked(self.descriptors)),
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


def packed(descriptors: NDArray[np.floating]) -> NDArray[np.int8]:
    """(N, D) int8 of descriptors of unit length: each row as large as the type allows.

    Rounding takes about half a percent of a length; two views of a point differ by far more.
    """
    largest = np.abs(descriptors).max(1, keepdims=True, initial=0.0)
    return np.asarray(np.rint(127.0 * descriptors / np.maximum(largest, 1e-12)), np.int8)


def unpacked(descriptors: NDArray[np.int8]) -> Floats:
    """(N, D) float32 unit length (zeros stay zeros) of what `packed` made."""
    whole = descriptors.astype(np.float32)
    length = np.linalg.norm(whole, axis=1, keepdims=True)
    return np.asarray(whole / np.maximum(length, 1.0), np.float32)
