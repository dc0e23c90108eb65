# SPDX-License-Identifier: Apache-2.0
"""Follows the landmarks of the newest keyframe from image to image: no detection in between.

Pyramidal Lucas-Kanade (Bouguet, Intel 2001) as OpenCV implements it, started where the motion model
expects each landmark, and checked by following it back (Kalal et al., ICPR 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Features, Frame
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_project
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.odometry.observation import Observation, Observer, select_features
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

Pyramid = Sequence[NDArray[np.uint8]]

WINDOW = (21, 21)
LEVELS = 3
STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.02)
# Followed there and back, a track must come out where it began, in pixels of the working image.
ROUND_TRIP_PX = 0.5
ASSOCIATION_PX = 3.0


@dataclass(frozen=True)
class _Tracks:
    """Features (K,) of a keyframe and where they are (K, 2), working pixels, in `pyramid`."""

    keyframe: Keyframe
    feature: Tensor
    pixels: NDArray[np.float32]
    pyramid: Pyramid


class FlowTracker:
    """Pose of a frame from the landmarks followed since the newest keyframe."""

    def __init__(
        self, settings: Settings, camera: Camera, observer: Observer, tracker: Tracker
    ) -> None:
        self._settings = settings
        self._camera = camera
        self._observer = observer
        self._tracker = tracker
        self._camera_from_body = se3.inverse(torch.from_numpy(camera.body_from_camera.copy()))
        self.reset()

    def reset(self) -> None:
        """Follow nothing."""
        self._tracks: _Tracks | None = None

    def start(self, keyframe: Keyframe, image: NDArray[np.uint8]) -> None:
        """Follow the features of a keyframe from its own image on."""
        pixels = self._working(keyframe.observation.features.keypoints_xy.numpy())
        every = torch.arange(len(pixels))
        self._tracks = _Tracks(keyframe, every, pixels, self.pyramid(image))

    def pyramid(self, image: NDArray[np.uint8]) -> Pyramid:
        return self._observer.working_image(image)

    def track(
        self, window: Window, frame: Frame, last: Tensor, guess: Tensor
    ) -> tuple[Observation, Tracked] | None:
        if self._tracks is None:
            return None
        tracks = self._tracks
        keyframe, feature, pixels = tracks.keyframe, tracks.feature, tracks.pixels
        row = keyframe.landmark[feature]
        pyramid = self.pyramid(frame.views[0].image)
        if int((row >= 0).sum()) < self._settings.keyframes.min_tracked // 2:
            return None
        world = self._points(window, keyframe, feature, row)
        shift = self._pixels(world, guess) - self._pixels(world, last)
        expected = (pixels + shift).astype(np.float32)
        found, good = there_and_back(tracks.pyramid, pyramid, pixels, expected)
        chosen = torch.from_numpy(good)
        feature, row, found = feature[chosen], row[chosen], found[good]
        source = tracks.keyframe.observation.features
        features = Features(
            torch.from_numpy(self._full(found)),
            source.descriptors[feature],
            source.scores[feature],
            source.sigma_px[feature],
            source.image_size,
        )
        observation, kept = self._observer.complete(frame, features)
        feature, row, found = feature[kept], row[kept], found[kept.numpy()]
        which = (row >= 0).nonzero()[:, 0]
        tracked = self._tracker.solve_pose(window, observation, which, row[which], guess, 'flow')
        if tracked is None or not self._tracker.believable(tracked):
            self._tracks = None
            return None
        keep = torch.ones(len(row), dtype=torch.bool)
        keep[which] = tracked.inlier
        self._tracks = _Tracks(keyframe, feature[keep], found[keep.numpy()], pyramid)
        self._last = select_features(features, kept) if len(kept) != len(row) else features
        self._plane = observation.plane_xy[keep]
        return observation, tracked

    def associate(self, detected: Observation, matcher) -> Tensor:
        """(K, 2) features of the keyframe and of a detection in the last image."""
        assert self._tracks is not None
        tracks = self._tracks
        pairs, _ = matcher.match_near(
            (self._plane, tracks.keyframe.observation.features.descriptors[tracks.feature]),
            (detected.plane_xy, detected.features.descriptors),
            ASSOCIATION_PX * self._camera.width / 640 / self._camera.focal_px,
        )
        return torch.stack([tracks.feature[pairs[:, 0]], pairs[:, 1]], 1)

    def _points(self, window: Window, keyframe: Keyframe, feature: Tensor, row: Tensor) -> Tensor:
        """(K, 3) landmarks in the world; features without one at the median depth."""
        camera_from_world = self._camera_from_body @ se3.inverse(keyframe.world_from_body)
        world = window.landmarks.position[row.clamp_min(0)]
        depth = se3.transform(camera_from_world, world[row >= 0])[:, 2].median()
        rays = homogeneous(keyframe.observation.plane_xy[feature]) * depth
        guessed = se3.transform(se3.inverse(camera_from_world), rays)
        return torch.where((row >= 0)[:, None], world, guessed)

    def _pixels(self, world: Tensor, world_from_body: Tensor) -> NDArray[np.float32]:
        local = se3.transform(self._camera_from_body @ se3.inverse(world_from_body), world)
        pixels, _ = camera_project(self._camera, local)
        return self._working(pixels.float().numpy())

    def _working(self, xy: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((xy + 0.5) * self._observer.working_scale - 0.5).astype(np.float32)

    def _full(self, xy: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((xy + 0.5) / self._observer.working_scale - 0.5).astype(np.float32)


def there_and_back(source, target, pixels, expected, levels=LEVELS):
    options = dict(
        winSize=WINDOW, maxLevel=levels, criteria=STEPS, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
    )
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        source, target, pixels, expected.copy(), **options
    )
    back, returned, _ = cv2.calcOpticalFlowPyrLK(target, source, found, pixels.copy(), **options)
    good = (
        (status[:, 0] > 0)
        & (returned[:, 0] > 0)
        & (np.abs(back - pixels).max(1) < ROUND_TRIP_PX)
    )
    h, w = target.shape[:2]
    good &= (found >= 1).all(1) & (found[:, 0] < w - 2) & (found[:, 1] < h - 2)
    return found, good
