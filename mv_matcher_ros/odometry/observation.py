# SPDX-License-Identifier: Apache-2.0
"""From a frame to what the estimator uses: features on the normalised plane, some with depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Features, Frame, Rig, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.models.classical import Detector, working_image, working_size


@dataclass(frozen=True)
class Observation:
    """One frame as the estimator sees it.

    Attributes:
        stamp_ns, index: of the frame.
        features: of the first view.
        plane_xy: (N, 2) float64, undistorted, on the normalised plane of the first camera.
        sigma: (N,) float64, standard deviation of `plane_xy`.
        inverse_depth: (N,) float64 1/m along the optical axis, NaN where unknown.
        inverse_depth_sigma: (N,) float64.
    """

    stamp_ns: int
    index: int
    features: Features
    plane_xy: Tensor
    sigma: Tensor
    inverse_depth: Tensor
    inverse_depth_sigma: Tensor

    def __len__(self) -> int:
        return len(self.features)


class Observer:
    """Detects, undistorts and looks depth up; knows the rig, keeps no state between frames."""

    def __init__(self, settings: Settings, rig: Rig, detector: Detector) -> None:
        self._settings = settings
        self._rig = rig
        self._detector = detector

    def observe(self, frame: Frame) -> Observation:
        """Features of the first view, undistorted, with depth where there is a depth image."""
        view = frame.views[0]
        return self.complete(frame, self._detector.detect(view.image, view.mask))[0]

    def complete(self, frame: Frame, features: Features) -> tuple[Observation, Tensor]:
        """Features of the first view undistorted and with depth, and the (N,) mask of those kept.

        Features beyond the fold-over of the distortion model are left out.
        """
        view, camera = frame.views[0], self._rig.cameras[0]
        features, plane, sigma, valid = self._normalised(features, camera)
        inverse, inverse_sigma = self._depth(view, features)
        observation = Observation(
            frame.stamp_ns, frame.index, features, plane, sigma, inverse, inverse_sigma
        )
        return observation, valid

    def second_view(self, frame: Frame) -> tuple[Features, Tensor, Tensor]:
        """Features (M), plane coordinates (M, 2) and sigma (M,) of the second camera of a rig."""
        view = frame.views[1]
        features = self._detector.detect(view.image, view.mask)
        return self._normalised(features, self._rig.cameras[1])[:3]

    @property
    def working_scale(self) -> NDArray[np.float32]:
        """(2,) pixels of the working image per pixel of the first camera, in x and y."""
        camera = self._rig.cameras[0]
        width, height = working_size(
            (camera.width, camera.height), self._settings.detector.working_pixels
        )
        return np.array([width / camera.width, height / camera.height], np.float32)

    def sharpness(self, image: NDArray[np.uint8]) -> float:
        """Contrast between neighbouring pixels of the working image: motion blur lowers it."""
        return float(np.abs(cv2.Laplacian(image, cv2.CV_16S)).mean())

    def working_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The grey image (h, w) that detection and flow work on."""
        return working_image(image, self._settings.detector.working_pixels)

    def image_fault(self, view: View) -> str:
        """Why nothing can be seen in an image: one line, empty when it is fine."""
        grey = view.image if view.image.ndim == 2 else cv2.cvtColor(view.image, cv2.COLOR_BGR2GRAY)
        contrast = float(grey[::4, ::4].std())
        if contrast < self._settings.image_quality.min_contrast:
            return (
                f'image without contrast (standard deviation {contrast:.1f}): '
                'covered lens or darkness'
            )
        return ''

    def check(self, frame: Frame) -> None:
        """Refuse a frame that does not belong to the rig.

        Raises:
            SourceError: fewer views, or images of another size.
        """
        wanted = 2 if self._settings.sensor == 'stereo' else 1
        if len(frame.views) < wanted:
            raise SourceError(
                f'frame {frame.index} has {len(frame.views)} images, '
                f'{self._settings.sensor} needs {wanted}'
            )
        for view, camera in zip(frame.views, self._rig.cameras, strict=False):
            height, width = view.image.shape[:2]
            if (width, height) != (camera.width, camera.height):
                raise SourceError(
                    f'frame {frame.index}: image of {camera.name} is {width}x{height}, '
                    f'its calibration is for {camera.width}x{camera.height}'
                )

    def _normalised(
        self, features: Features, camera: Camera
    ) -> tuple[Features, Tensor, Tensor, Tensor]:
        plane, valid = camera_normalise(camera, features.keypoints_xy.to(torch.float64))
        if not bool(valid.all()):  # beyond the fold-over of the distortion model
            features, plane = features.chosen(valid), plane[valid]
        return features, plane, features.sigma_px.to(torch.float64) / camera.focal_px, valid

    def _depth(self, view: View, features: Features) -> tuple[Tensor, Tensor]:
        unknown = torch.full((len(features),), torch.nan, dtype=torch.float64)
        if view.depth is None or len(features) == 0 or self._settings.sensor != 'rgbd':
            return unknown, torch.ones_like(unknown)
        depth = depth_at(view.depth, features.keypoints_xy.numpy())
        limits = self._settings.depth
        known = np.isfinite(depth) & (depth > limits.min_m) & (depth < limits.max_m)
        inverse = torch.from_numpy(np.where(known, 1.0 / np.where(known, depth, 1.0), np.nan))
        # σ_z = k·z² makes the standard deviation of 1/z the constant k.
        return inverse, torch.full_like(inverse, limits.sigma_at_1m_m)


# Depth is taken only where the surface is smooth: neighbours within this share of the depth.
DEPTH_STEP_RATIO = 0.05


def depth_at(depth: np.ndarray, keypoints_xy: np.ndarray) -> np.ndarray:
    """(N,) depth between pixels: bilinear in inverse depth, NaN at holes and depth steps."""
    height, width = depth.shape
    x0 = np.clip(np.floor(keypoints_xy[:, 0]).astype(int), 0, width - 2)
    y0 = np.clip(np.floor(keypoints_xy[:, 1]).astype(int), 0, height - 2)
    corners = np.stack([depth[y0 + j, x0 + i] for j in (0, 1) for i in (0, 1)], axis=1).astype(
        np.float64
    )
    good = np.isfinite(corners) & (corners > 0)
    whole = good.all(1)
    safe = np.where(good, corners, 1.0)
    whole &= (safe.max(1) - safe.min(1)) < DEPTH_STEP_RATIO * safe.min(1)
    fx, fy = keypoints_xy[:, 0] - x0, keypoints_xy[:, 1] - y0
    weights = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)
    return np.where(whole, 1.0 / (weights / safe).sum(1), np.nan)


def with_depth(observation: Observation, inverse_depth: Tensor, sigma: Tensor) -> Observation:
    """The observation with inverse depths from another place (stereo matching)."""
    return replace(observation, inverse_depth=inverse_depth, inverse_depth_sigma=sigma)
