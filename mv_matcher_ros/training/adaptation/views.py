# SPDX-License-Identifier: Apache-2.0
"""The views of a clip as the lower level takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Camera, Features, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.models.view_batch import padded
from mv_matcher_ros.odometry.view_tree import ViewSetup
from mv_matcher_ros.training.adaptation.clips import Clip


@dataclass(frozen=True)
class ClipViews:
    """What the lower level knows of the V views of a clip.

    Attributes:
        plane_xy: (V, N, 2) float64 keypoints on the normalised planes.
        valid: (V, N) bool, the others are padding.
        descriptors: (V, N, D) unit length.
        cameras: of each view, for images of the size that pixels are counted in.
        setup: how the views hang together.
    """

    plane_xy: Tensor
    valid: Tensor
    descriptors: Tensor
    cameras: tuple[Camera, ...]
    setup: ViewSetup

    @property
    def pixel(self) -> Tensor:
        """(V,) float64 size of a pixel on the normalised plane."""
        return torch.tensor([1.0 / c.focal_px for c in self.cameras], dtype=torch.float64)

    @property
    def places_px(self) -> Tensor:
        """(V, N, 2) float64 keypoints, pixels from the principal point, without distortion."""
        return self.plane_xy / self.pixel[:, None, None]

    def as_they_are(self, table: Tensor) -> Tensor:
        """A `Measure`: the keypoints themselves."""
        return self.plane_xy[torch.arange(table.shape[1]), table.clamp_min(0)]


def projected(camera_from_world: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """(T, V, 2) points (T, 3) on the normalised planes of cameras (V, 4, 4), and (T, V) bool where
    they are ahead; any place where they are not."""
    there = se3.transform(camera_from_world, points).transpose(0, 1)
    ahead = there[..., 2] > 1e-6
    return there[..., :2] / torch.where(ahead, there[..., 2], 1.0)[..., None], ahead


def clip_views(clip: Clip, features: Sequence[Features], rig: Rig) -> tuple[ClipViews, Tensor]:
    """What the lower level knows, and (V, N, 2) places with the gradients that they have."""
    room = max(len(one) for one in features)
    plane, valid = [], []
    for one, camera in zip(features, clip.cameras, strict=True):
        xy, good = camera_normalise(camera, one.keypoints_xy.double())
        plane.append(padded(torch.where(good[:, None], xy, 0.0), room))
        valid.append(padded(good, room))
    together = torch.stack(plane)
    cameras = len(clip.images) // len(clip.frames)
    views = ClipViews(
        together.detach(),
        torch.stack(valid),
        torch.stack([padded(one.descriptors.detach().float(), room) for one in features]),
        clip.cameras,
        _setup(rig, len(clip.frames), cameras),
    )
    return views, together


def _setup(rig: Rig, times: int, cameras: int) -> ViewSetup:
    """Bodies are the first camera at each time."""
    first = torch.from_numpy(rig.cameras[0].body_from_camera.copy())
    from_first = torch.stack([
        se3.inverse(torch.from_numpy(camera.body_from_camera.copy())) @ first
        for camera in rig.cameras[:cameras]
    ])  # fmt: skip
    return ViewSetup(
        torch.arange(times).repeat_interleave(cameras),
        torch.arange(cameras).repeat(times),
        from_first,
        torch.eye(4, dtype=torch.float64).repeat(times, 1, 1),
        torch.zeros(times, dtype=torch.bool),
    )
