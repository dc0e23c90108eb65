# SPDX-License-Identifier: Apache-2.0
"""Whether a keyframe shows a place of the map, and where it was then.

The keyframe, those that may have seen the same place and their neighbours are one graph to the
matcher; its landmarks give the pose, bundle adjustment's information the covariance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import LoopSettings
from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_matching import MapMatcher, PointMatches
from mv_matcher_ros.mapping.view_pose import ViewPose, agreed_pose

# Points whose depth both keyframes know, to say how their units relate.
SCALE_POINTS = 12
# Least standard deviation of the logarithm of a scale that images can say.
SCALE_SIGMA = 0.003
# Two metric keyframes disagree on their scale by more than this: no loop (log).
METRIC_DISAGREEMENT = 0.15


@dataclass(frozen=True)
class Revisit:
    """A keyframe that shows a place of the map.

    Attributes:
        a, b: keys of the keyframe of the map and the one that is new.
        a_from_b: (4, 4) rigid, in the units of a.
        scale: units of b in units of a; 1 for metric sensors.
        covariance: (7, 7) of the right perturbation, x y z rx ry rz log scale.
        inliers: landmarks that agree.
        same: (K, 2) numbers of landmarks of b and of the map that are one point.
    """

    a: int
    b: int
    a_from_b: Array
    scale: float
    covariance: Array
    inliers: int
    same: NDArray[np.int64]


@dataclass(frozen=True)
class Refusal:
    """Why it does not."""

    reason: str


class LoopVerifier:
    """Looks at candidates; keeps no state.

    Args:
        settings: of loops.
        matcher: of views with the map.
        camera: the first of the rig.
    """

    def __init__(self, settings: LoopSettings, matcher: MapMatcher, camera: Camera) -> None:
        self._settings, self._matcher, self._camera = settings, matcher, camera

    def verify(self, world: Map, key: int, candidates: Sequence[int]) -> Revisit | Refusal:
        """Where keyframe `key` was, seen from the first of the candidates.

        Args:
            world: holds all of them.
            candidates: keyframes of one place, the likeliest first; filled up with its neighbours.
        """
        settings, keyframe = self._settings, world.keyframes[key]
        group = self._group(world, candidates)
        features = keyframe.features((self._camera.width, self._camera.height))
        matches = self._matcher.match(world, features, group)
        plane, valid = keyframe.plane_xy(self._camera)
        plane = torch.where(valid[:, None], plane, torch.nan)
        sigma = torch.tensor(keyframe.sigma_px).double() / self._camera.focal_px
        found = agreed_pose(matches, plane, sigma, self._camera, settings)
        if isinstance(found, str):
            return Refusal(found)
        return self._measured(world, key, group[0], matches, found)

    def _group(self, world: Map, candidates: Sequence[int]) -> list[int]:
        room = self._settings.views - 1
        group = list(dict.fromkeys(candidates))[:room]
        for other in world.neighbours(group[0], room):
            if len(group) < room and other not in group:
                group.append(other)
        return group

    def _measured(
        self, world: Map, key: int, other: int, matches: PointMatches, found: ViewPose
    ) -> Revisit | Refusal:
        scale, sigma = 1.0, SCALE_SIGMA
        said = self._scale(world, key, matches, found)
        if world.metric:
            if said is not None and abs(math.log(said[0])) > METRIC_DISAGREEMENT:
                return Refusal(f'depths disagree by a factor of {said[0]:.2f}')
        elif said is None:
            return Refusal('too few depths to say how units relate')
        else:
            scale, sigma = said
        covariance = np.zeros((7, 7))
        covariance[:6, :6] = found.covariance.numpy()
        # The perturbation moves the body in its own units.
        covariance[:3] /= scale
        covariance[:, :3] /= scale
        covariance[6, 6] = sigma**2
        mine = world.keyframes[key].landmark[matches.feature].astype(np.int64)
        same = np.stack([mine, matches.landmark.numpy()], axis=1)
        same = same[found.inlier.numpy() & (same >= 0).all(1)]
        return Revisit(
            other, key, found.world_from_body.numpy(), scale, covariance, found.inliers, same
        )

    def _scale(
        self, world: Map, key: int, matches: PointMatches, found: ViewPose
    ) -> tuple[float, float] | None:
        """Units of the new keyframe in those of the map, from depths that both know, and the
        standard deviation of its logarithm."""
        points, _ = world.points_seen_by(key)
        camera_from_body = np.linalg.inv(self._camera.body_from_camera)
        depth = points @ camera_from_body[2, :3] + camera_from_body[2, 3]
        own = torch.from_numpy(depth)[matches.feature]
        good = found.inlier & own.isfinite() & (own > 0) & (found.depth > 0)
        if int(good.sum()) < SCALE_POINTS:
            return None
        ratio = (found.depth[good] / own[good]).log()
        middle = ratio.median()
        deviation = 1.4826 * float((ratio - middle).abs().median())
        return float(middle.exp()), max(deviation / math.sqrt(int(good.sum())), SCALE_SIGMA)


def similarity(rigid: Array | Tensor, scale: float) -> Array:
    """(4, 4) [[s R, t], [0, 1]] of a rigid transform and a scale."""
    made = np.array(rigid, dtype=np.float64)
    made[:3, :3] *= scale
    return made
