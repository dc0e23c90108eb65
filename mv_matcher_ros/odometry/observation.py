# SPDX-License-Identifier: Apache-2.0
"""From a frame to what the estimator uses: features on the normalised plane, some with depth."""

from __future__ import annotations

from collections.abc import Sequence
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
from mv_matcher_ros.models.classical import (
    Detector,
    empty_features,
    working_image,
    working_size,
)
from mv_matcher_ros.odometry.blur import detected_noise, edge_width_px


@dataclass(frozen=True)
class Observation:
    """One frame as the estimator sees it.

    A rig of several stereo pairs sees with the first camera of each: all features are here, those
    of one camera after those of the one before.

    Attributes:
        stamp_ns, index: of the frame.
        features: of the seeing cameras; `image_size` is that of the first.
        plane_xy: (N, 2) float64, undistorted, on the normalised plane of their camera.
        sigma: (N,) float64, standard deviation of `plane_xy`.
        inverse_depth: (N,) float64 1/m along the optical axis of their camera, NaN where unknown.
        inverse_depth_sigma: (N,) float64.
        camera: (N,) int64, increasing: which of the seeing cameras saw them.
    """

    stamp_ns: int
    index: int
    features: Features
    plane_xy: Tensor
    sigma: Tensor
    inverse_depth: Tensor
    inverse_depth_sigma: Tensor
    camera: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def rows_of(self, camera: int) -> Tensor:
        """(K,) int64, the features that one of the seeing cameras saw."""
        return (self.camera == camera).nonzero()[:, 0]

    def chosen(self, rows: Tensor) -> Observation:
        """Of (K,) features only."""
        return replace(
            self,
            features=self.features.chosen(rows),
            plane_xy=self.plane_xy[rows],
            sigma=self.sigma[rows],
            inverse_depth=self.inverse_depth[rows],
            inverse_depth_sigma=self.inverse_depth_sigma[rows],
            camera=self.camera[rows],
        )

    def of_first_camera(self) -> Observation:
        """What the first camera of the rig saw of it; features in the same order."""
        return self.chosen(self.rows_of(0)) if bool(self.camera.any()) else self


def seeing(settings: Settings) -> range:
    """Numbers of the views whose features are observed: the only one, or the first of a pair."""
    return range(0, 2 * settings.stereo.pairs, 2) if settings.sensor == 'stereo' else range(1)


class Observer:
    """Detects, undistorts and looks depth up; knows the rig, keeps no state between frames."""

    def __init__(self, settings: Settings, rig: Rig, detector: Detector) -> None:
        self._settings = settings
        self._rig = rig
        self._detector = detector
        self._seeing = seeing(settings)

    def observe(self, frame: Frame) -> Observation:
        """Features of the seeing cameras, undistorted, with depth where there is a depth image.

        Of several cameras those that are covered show nothing.
        """
        blind = self.blind(frame)
        of_each = [
            empty_features(self.image_size(camera), self._detector.descriptor_size)
            if camera in blind
            else self._detected(view)
            for camera, view in enumerate(self.views(frame))
        ]
        return self.complete(frame, of_each)[0]

    def complete(self, frame: Frame, of_each: Sequence[Features]) -> tuple[Observation, Tensor]:
        """Features of each seeing camera undistorted and with depth, and (N,) which are kept.

        Features beyond the fold-over of the distortion model are left out.
        """
        parts, kept = [], []
        for number, (features, view) in enumerate(zip(of_each, self.views(frame), strict=True)):
            camera = self._rig.cameras[self._seeing[number]]
            features, plane, sigma, valid = self._normalised(features, camera)
            inverse, inverse_sigma = self._depth(view, features)
            whose = torch.full((len(features),), number, dtype=torch.int64)
            parts.append((features, plane, sigma, inverse, inverse_sigma, whose))
            kept.append(valid)
        all_features, *rest = zip(*parts, strict=True)
        rows = [torch.cat(column) for column in rest]
        observation = Observation(frame.stamp_ns, frame.index, joined(all_features), *rows)
        return observation, torch.cat(kept)

    def second_view(self, frame: Frame, pair: int = 0) -> tuple[Features, Tensor, Tensor]:
        """Features (M), plane coordinates (M, 2) and sigma (M,) of the other camera of a pair."""
        number = 2 * pair + 1
        view = frame.views[number]
        features = self._detected(view)
        return self._normalised(features, self._rig.cameras[number])[:3]

    def images_of_pair(
        self, frame: Frame, pair: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The working images of both cameras of a pair."""
        first, second = frame.views[2 * pair : 2 * pair + 2]
        return self.working_image(first.image), self.working_image(second.image)

    def views(self, frame: Frame) -> list[View]:
        """What the seeing cameras deliver."""
        return [frame.views[number] for number in self._seeing]

    def image_size(self, camera: int) -> tuple[int, int]:
        """(width, height) of the images of a seeing camera."""
        seen_by = self._rig.cameras[self._seeing[camera]]
        return seen_by.width, seen_by.height

    def working_scale(self, camera: int = 0) -> NDArray[np.float32]:
        """(2,) pixels of the working image per pixel of a seeing camera, in x and y."""
        size = self.image_size(camera)
        width, height = working_size(size, self._settings.detector.working_pixels)
        return np.array([width / size[0], height / size[1]], np.float32)

    def sharpness(self, frame: Frame) -> float:
        """Contrast between neighbouring pixels of the images: motion blur lowers it."""
        return float(np.mean([sharpness(view.image) for view in self.views(frame)]))

    def edges_px(self, frame: Frame) -> list[float]:
        """Of each seeing camera how wide the edges of its working image are: blur widens them."""
        return [self._edges_px(view) for view in self.views(frame)]

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

    def faults(self, frame: Frame) -> list[str]:
        """Of each seeing camera why it sees nothing, empty when it is fine."""
        return [self.image_fault(view) for view in self.views(frame)]

    def blind(self, frame: Frame) -> set[int]:
        """The seeing cameras that show nothing while others do."""
        if len(self._seeing) == 1:
            return set()
        faults = self.faults(frame)
        return set() if all(faults) else {number for number, fault in enumerate(faults) if fault}

    def check(self, frame: Frame) -> None:
        """Refuse a frame that does not belong to the rig.

        Raises:
            SourceError: fewer views, or images of another size.
        """
        wanted = 2 * len(self._seeing) if self._settings.sensor == 'stereo' else 1
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

    def _detected(self, view: View) -> Features:
        """What is detected in one image, with the noise that its blur makes."""
        features = self._detector.detect(view.image, view.mask)
        return features.noisier(detected_noise(self._edges_px(view)))

    def _edges_px(self, view: View) -> float:
        return edge_width_px(self.working_image(view.image))

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


def sharpness(image: NDArray[np.uint8]) -> float:
    """Mean contrast between neighbouring pixels of an image (H, W[, 3])."""
    return float(np.abs(cv2.Laplacian(image, cv2.CV_16S)).mean())


def joined(of_each: Sequence[Features]) -> Features:
    """Features of several images in one list; the size is that of the first image."""
    if len(of_each) == 1:
        return of_each[0]
    return Features(
        torch.cat([features.keypoints_xy for features in of_each]),
        torch.cat([features.descriptors for features in of_each]),
        torch.cat([features.scores for features in of_each]),
        torch.cat([features.sigma_px for features in of_each]),
        of_each[0].image_size,
    )


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
