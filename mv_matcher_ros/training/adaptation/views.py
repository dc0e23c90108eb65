# SPDX-License-Identifier: Apache-2.0
"""The views of a clip as the lower level takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Features, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.models.view_batch import padded
from mv_matcher_ros.odometry.view_tree import ViewSetup
from mv_matcher_ros.training.adaptation.clips import Clip
from mv_matcher_ros.training.adaptation.structure import ClipViews


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
