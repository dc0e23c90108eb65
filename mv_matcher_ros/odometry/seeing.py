# SPDX-License-Identifier: Apache-2.0
"""The cameras whose features are observations: the only one, or the first of each stereo pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.observation import Observation, seeing

# Settings in pixels are stated for this image width and scale with the image.
REFERENCE_WIDTH = 640.0


class SeeingCameras:
    """Where K seeing cameras are mounted, and whose feature is whose.

    Attributes:
        cameras: K of them.
        body_from_camera, camera_from_body: (K, 4, 4) float64.
    """

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self.cameras = tuple(cameras)
        poses = [torch.from_numpy(camera.body_from_camera.copy()) for camera in cameras]
        self.body_from_camera = torch.stack(poses)
        self.camera_from_body = torch.stack([se3.inverse(pose) for pose in poses])

    @classmethod
    def of(cls, settings: Settings, rig: Rig) -> SeeingCameras:
        """Those of a rig.

        Raises:
            SettingsError: the rig has fewer cameras than the sensor needs.
        """
        pairs, there = settings.stereo.pairs, len(rig.cameras)
        if settings.sensor == 'stereo' and there < 2:
            raise SettingsError('sensor is stereo, but the rig has only one camera')
        if settings.sensor == 'stereo' and there < 2 * pairs:
            raise SettingsError(
                f'stereo.pairs is {pairs}, but the rig has {there} cameras: {2 * pairs} are needed'
            )
        return cls([rig.cameras[number] for number in seeing(settings)])

    def __len__(self) -> int:
        return len(self.cameras)

    def world_from_camera(self, world_from_body: Tensor) -> Tensor:
        """(K, 4, 4) poses of the cameras of a body at (4, 4)."""
        return torch.stack([world_from_body @ pose for pose in self.body_from_camera])

    def camera_from_world(self, world_from_body: Tensor) -> Tensor:
        """(K, 4, 4), the other way."""
        body_from_world = se3.inverse(world_from_body)
        return torch.stack([pose @ body_from_world for pose in self.camera_from_body])

    def on_plane(self, px: float) -> list[float]:
        """Pixels of an image that is 640 wide, on the normalised plane of each camera."""
        return [px * (c.width / REFERENCE_WIDTH) / c.focal_px for c in self.cameras]

    def part(self, observation: Observation, number: int) -> Observation:
        """What one of the cameras saw of an observation; features in the same order."""
        if len(self) == 1:
            return observation
        camera = self.cameras[number]
        part = observation.chosen(observation.rows_of(number))
        size = (camera.width, camera.height)
        return replace(part, features=replace(part.features, image_size=size))


def of_each(stack: Tensor, camera: Tensor) -> Tensor:
    """The matrices (N, …) that belong to N features, of one each camera (K, …).

    Of one camera the only matrix, without leading dimension: what is alike for all is computed
    once.
    """
    return stack[0] if len(stack) == 1 else stack[camera]


def moved(target_from_source: Tensor, points: Tensor) -> Tensor:
    """(N, 3) points, each by its own (N, 4, 4) transform, or all by one (4, 4)."""
    if target_from_source.ndim == 2:
        return se3.transform(target_from_source, points)
    return se3.transform(target_from_source, points[:, None])[:, 0]
