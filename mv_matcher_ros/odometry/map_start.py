# SPDX-License-Identifier: Apache-2.0
"""What a map without metric scale begins with: views, their poses, and points they see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.motion import seconds
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.pair_poses import PairMethod
from mv_matcher_ros.odometry.pose_estimator import PoseEstimator, WindowPoses


@dataclass(frozen=True)
class MapStart:
    """V views with relative poses and K points, the median depth of the points being one.

    Attributes:
        views: the older ones first.
        camera_from_first: (V, 4, 4) from the camera of the first view.
        feature: (K, V) int64 feature that sees each point, −1 where none does.
        confidence: (K, V) float64 of the matches behind it, 0 where unseen.
        points: (K, 3) in the first camera.
        parallax_rad: (K,) widest angle between two rays to each point.
        method: what the poses come from, for people.
    """

    views: tuple[Observation, ...]
    camera_from_first: Tensor
    feature: Tensor
    confidence: Tensor
    points: Tensor
    parallax_rad: Tensor
    method: str

    def scaled(self, factor: float) -> MapStart:
        """The same start with all lengths multiplied."""
        poses = self.camera_from_first.clone()
        poses[:, :3, 3] *= factor
        return replace(self, camera_from_first=poses, points=self.points * factor)

    def at_speed(self, speed: float) -> tuple[MapStart, str]:
        """The start whose camera moved at this speed (a length a second), and what to say of it.

        After a loss this takes over the scale of the old map, supposing the speed of before.
        """
        elapsed = seconds(self.views[-1].stamp_ns - self.views[0].stamp_ns)
        length = float(self.camera_from_first[-1, :3, 3].norm())
        if speed * elapsed <= 0.0 or length <= 0.0:
            return self, 'new map with a new scale: lengths before and after do not compare'
        return self.scaled(speed * elapsed / length), (
            'new map: its scale is that of the speed before the loss, lengths before and after '
            'compare only roughly'
        )

    def wide_points(self, parallax_deg: float) -> int:
        """How many points are seen under a wider angle than this."""
        return int((self.parallax_rad > math.radians(parallax_deg)).sum())

    def seen_by_each(self) -> list[int]:
        """How many of the points each view sees."""
        return [int(count) for count in (self.feature >= 0).sum(0)]

    @classmethod
    def of(cls, views: Sequence[Observation], found: WindowPoses, parallax_rad: float) -> MapStart:
        """From the poses of all views; points with at least this parallax."""
        world_from_camera = found.world_from_body
        camera_from_first = se3.inverse(world_from_camera) @ world_from_camera[0]
        points = se3.transform(se3.inverse(world_from_camera[0]), found.points)
        parallax = _parallax(points, camera_from_first, found.inlier)
        good = found.inlier.any(1) & (points[:, 2] > 0) & (parallax > parallax_rad)
        seen = found.inlier[good]
        start = cls(
            tuple(views),
            camera_from_first,
            torch.where(seen, found.tracks.keypoint[good], -1),
            torch.where(seen, found.tracks.confidence[good].double(), 0.0),
            points[good],
            parallax[good],
            _in_words(found, len(views)),
        )
        median = float(start.points[:, 2].median()) if len(start.points) else 1.0
        return start.scaled(1.0 / median)


def poses_of(
    views: Sequence[Observation], matches: Matches, estimator: PoseEstimator
) -> WindowPoses:
    """Poses of views of one camera from the matches between them."""
    room = max(len(view) for view in views)
    plane = [functional.pad(v.plane_xy, (0, 0, 0, room - len(v))) for v in views]
    sigma = [functional.pad(v.sigma, (0, room - len(v)), value=1.0) for v in views]
    return estimator.estimate(torch.stack(plane), torch.stack(sigma), matches)


def _parallax(points: Tensor, camera_from_first: Tensor, seen: Tensor) -> Tensor:
    """(T,) widest angle at which two of the views (T, V) that see a point see it, rad."""
    centres = se3.inverse(camera_from_first)[:, :3, 3]
    rays = functional.normalize(points[:, None] - centres, dim=-1)  # (T, V, 3)
    both = seen[:, :, None] & seen[:, None, :]
    cosine = torch.where(both, rays @ rays.mT, 1.0)
    return torch.arccos(cosine.clamp(-1.0, 1.0)).amax((1, 2))


def _in_words(found: WindowPoses, views: int) -> str:
    """For example 'robust (5 pairs) and eight-point (1 pair) of 4 views'."""
    used = [
        f'{name.replace("_", "-")} ({count} pair{"s" * (count > 1)})'
        for name, count in sorted(found.methods.items(), key=lambda item: -item[1])
        if PairMethod[name.upper()] not in (PairMethod.NONE, PairMethod.ROTATION)
    ]
    return f'{" and ".join(used)} of {views} views'
