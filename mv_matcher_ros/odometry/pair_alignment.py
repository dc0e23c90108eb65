# SPDX-License-Identifier: Apache-2.0
"""Depth of points that are known roughly, measured in the images of a stereo pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Frame, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import (
    camera_normalise,
    camera_pixel_jacobian,
    camera_project,
)
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.models.classical import working_size
from mv_matcher_ros.odometry.disparity_error import DisparityField
from mv_matcher_ros.odometry.landmarks import inverse_depth_from_pair
from mv_matcher_ros.odometry.observation import Observation, Observer, with_depth
from mv_matcher_ros.odometry.patch_alignment import PatchWarp, align_patches
from mv_matcher_ros.odometry.seeing import SeeingCameras, moved, of_each
from mv_matcher_ros.odometry.window import Landmarks

# A patch that is found farther from where it should be, in pixels of the working image, is
# another one.
REACH_PX = 3.0
# In every frame so many landmarks are measured; twice as many say hardly more.
MOST_MEASURED = 200

Images = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class PairAlignment:
    """Finds what the first camera of a pair sees in the image of the second.

    The rig need not be rectified, nor the cameras alike.
    """

    def __init__(self, settings: Settings, pair: Rig) -> None:
        first, second = (torch.from_numpy(c.body_from_camera.copy()) for c in pair.cameras[:2])
        self._second_from_first = se3.inverse(second) @ first
        pixels = settings.detector.working_pixels
        self._first, self._second = (
            camera.resized(*working_size((camera.width, camera.height), pixels))
            for camera in pair.cameras[:2]
        )

    def inverse_depth(
        self, images: Images, first_xy: Tensor, sigma: Tensor, expected: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inverse depths that the images show near those that are expected.

        Args:
            images: grey working images (H, W) of both cameras.
            first_xy, sigma: (N, 2) on the normalised plane of the first camera, and (N,) how well
                that is known: on a slanted surface the depth changes with the place.
            expected: (N,) inverse depths along its optical axis, 1/m.

        Returns:
            (N,) inverse depths, NaN where the images do not show the same, and (N,) their
            standard deviations.
        """
        warp, ahead = self._warp(first_xy, expected)
        found = align_patches(*images, warp, REACH_PX)
        plane, valid = camera_normalise(self._second, found.other_xy.double())
        measured, turned = inverse_depth_from_pair(first_xy, plane, self._second_from_first)
        translation = self._second_from_first[:3, 3]
        distance = turned[:, 2] + measured * translation[2]
        slope = translation[:2] - plane * translation[2]
        by_depth = camera_pixel_jacobian(self._second, plane) @ slope[:, :, None]
        noise = found.sigma_px.double().hypot(found.slant * sigma * self._first.focal_px)
        good = found.good & valid & ahead & (distance > 0)
        return (
            torch.where(good, measured, torch.nan),
            noise * distance / by_depth[..., 0].norm(dim=1).clamp_min(1e-12),
        )

    def _warp(self, first_xy: Tensor, inverse_depth: Tensor) -> tuple[PatchWarp, Tensor]:
        """What the rig says of patches around points, and (N,) which are before both cameras."""
        rotation, translation = self._second_from_first[:3, :3], self._second_from_first[:3, 3]
        point = homogeneous(first_xy) @ rotation.T + inverse_depth[:, None] * translation
        ahead = point[:, 2] > 0
        point = torch.where(ahead[:, None], point, point.new_tensor([0.0, 0.0, 1.0]))
        plane = point[:, :2] / point[:, 2:]
        # d plane / d first_xy and d plane / d inverse depth, both times the depth of `point`.
        by_place = rotation[:2, :2] - plane[:, :, None] * rotation[2, :2]
        by_depth = translation[:2] - plane * translation[2]
        to_second = camera_pixel_jacobian(self._second, plane)
        to_first = camera_pixel_jacobian(self._first, first_xy)
        jacobian = to_second @ by_place @ torch.linalg.inv(to_first) / point[:, 2:, None]
        along = torch.linalg.solve(jacobian, (to_second @ by_depth[:, :, None])[..., 0])
        warp = PatchWarp(
            camera_project(self._first, homogeneous(first_xy))[0].float(),
            camera_project(self._second, homogeneous(plane))[0].float(),
            jacobian.float(),
            functional.normalize(along, dim=1).float(),
        )
        return warp, ahead


class FollowedDepth:
    """Depth of landmarks in every frame, not only where features are matched.

    A second view of what is followed says how far it is; otherwise only the landmark knows, and
    the pose errs along the view by what the landmark errs by.

    Attributes:
        fields: of each pair the error of its inverse depths, taken out; none before it is given.
    """

    def __init__(
        self, settings: Settings, rig: Rig, cameras: SeeingCameras, observer: Observer
    ) -> None:
        self._cameras = cameras
        self._observer = observer
        pairs = len(cameras) if settings.sensor == 'stereo' else 0
        self._pairs = [PairAlignment(settings, rig.pair(number)) for number in range(pairs)]
        self.fields: Sequence[DisparityField] = ()

    def added(
        self,
        frame: Frame,
        observation: Observation,
        landmarks: Landmarks,
        feature: Tensor,
        landmark: Tensor,
        pose: Tensor,
    ) -> Observation:
        """The observation with the inverse depths that its images show of landmarks.

        Without a second camera it stays as it is.

        Args:
            frame: its images.
            landmarks: of the window.
            feature, landmark: (K,) matches of `observation` with them, of which up to
                MOST_MEASURED, evenly spread, are measured.
            pose: (4, 4) world_from_body, roughly.
        """
        if not self._pairs:
            return observation
        chosen = torch.linspace(0, len(feature) - 1, min(len(feature), MOST_MEASURED)).long()
        feature, landmark = feature[chosen], landmark[chosen]
        camera = observation.camera[feature]
        camera_from_world = of_each(self._cameras.camera_from_world(pose), camera)
        expected = 1.0 / moved(camera_from_world, landmarks.position[landmark])[:, 2]
        inverse = torch.full_like(observation.inverse_depth, torch.nan)
        spread = torch.ones_like(inverse)
        for number, pair in enumerate(self._pairs):
            its = (camera == number) & (expected > 0)
            rows = feature[its]
            plane_xy = observation.plane_xy[rows]
            error = self.fields[number].at(plane_xy) if self.fields else 0.0
            found, spread[rows] = pair.inverse_depth(
                self._observer.images_of_pair(frame, number),
                plane_xy,
                observation.sigma[rows],
                expected[its] + error,
            )
            inverse[rows] = found - error
        return with_depth(observation, inverse, spread)
