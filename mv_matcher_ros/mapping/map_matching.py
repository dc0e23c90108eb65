# SPDX-License-Identifier: Apache-2.0
"""A view and keyframes of a map as one graph: which of its keypoints are which landmarks.

All views see each other in the graph network, and it is told how the keyframes lie to each other;
the new view finds in several of them what one alone would not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.datatypes import Array, Camera, Features, Matches
from mv_matcher_ros.mapping.map import Map, moved
from mv_matcher_ros.models.classical import Matcher
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.learned_matcher import LearnedMatcher

# How far a true partner may lie from its epipolar line between keyframes of a map, pixels.
SOLVED_PX = 2.0


@dataclass(frozen=True)
class PointMatches:
    """Keypoints of a view with the landmarks that they show.

    Attributes:
        feature: (K,) int64 keypoints, each once.
        landmark: (K,) int64 numbers in the map.
        points: (K, 3) float64 in the body frame and units of the keyframe that was asked first.
        spread: (K, 3, 3) their covariances.
        confidence: (K,) float64.
        asked: how many matches with keypoints there were, also of those without a landmark.
    """

    feature: Tensor
    landmark: Tensor
    points: Tensor
    spread: Tensor
    confidence: Tensor
    asked: int

    def __len__(self) -> int:
        return len(self.feature)


class MapMatcher:
    """Matches views with keyframes of a map; keeps no state.

    Args:
        matcher: the graph network, or nearest neighbours.
        camera: the first of the rig.
    """

    def __init__(self, matcher: Matcher, camera: Camera) -> None:
        self._matcher, self._camera = matcher, camera
        self._size = (camera.width, camera.height)

    def match(self, world: Map, features: Features, keys: Sequence[int]) -> PointMatches:
        """Landmarks that a view shows, by keyframes that may see the same.

        Args:
            features: of the view.
            keys: keyframes of one neighbourhood; the first gives frame and units of the points.
        """
        views = [features, *(world.keyframes[key].features(self._size) for key in keys)]
        pairs = [(0, 1 + number) for number in range(len(keys))]
        if isinstance(self._matcher, LearnedMatcher):
            matches = self._matcher.match(views, pairs, self._known(world, features, keys))
        else:
            matches = self._matcher.match(views, pairs)
        return self._points(world, keys, matches)

    def _known(self, world: Map, features: Features, keys: Sequence[int]) -> KnownPoses:
        """How the keyframes lie to each other; of the new view nothing is known."""
        planes = [torch.zeros(len(features), 2, dtype=torch.float64)]
        planes += [world.keyframes[key].plane_xy(self._camera)[0] for key in keys]
        room = max(len(plane) for plane in planes)
        padded = torch.stack([functional.pad(p, (0, 0, 0, room - len(p))) for p in planes])
        first_from_map = np.linalg.inv(world.pose[keys[0]])
        poses = [np.eye(4)]
        poses += [rigid(first_from_map @ world.pose[key])[0] for key in keys]
        mount = torch.from_numpy(self._camera.body_from_camera.copy())
        cameras = torch.from_numpy(np.stack(poses)) @ mount
        sigma = torch.full((len(planes), len(planes)), SOLVED_PX / self._camera.focal_px)
        sigma[0], sigma[:, 0] = torch.inf, torch.inf
        return KnownPoses.of(padded[None].float(), cameras[None], sigma[None])

    def _points(self, world: Map, keys: Sequence[int], matches: Matches) -> PointMatches:
        """The surest landmark of each keypoint."""
        found: list[tuple[Tensor, ...]] = []
        first_from_map = np.linalg.inv(world.pose[keys[0]])
        for number, key in enumerate(keys):
            pairs, confidence = matches.pair(0, 1 + number)
            feature, other = pairs.T
            points, spread = world.points_seen_by(key)
            step = first_from_map @ world.pose[key]
            linear = step[:3, :3]
            there = np.isfinite(points[other]).all(1)
            rows = other.numpy()[there]
            found.append((
                feature[there],
                torch.from_numpy(world.keyframes[key].landmark[rows].astype(np.int64)),
                torch.from_numpy(moved(step, points[rows])),
                torch.from_numpy(linear @ spread[rows] @ linear.T),
                confidence[there].double(),
            ))  # fmt: skip
        feature, landmark, places, spreads, sure = (
            torch.cat(part) for part in zip(*found, strict=True)
        )
        order = sure.argsort(descending=True, stable=True)
        _, first = np.unique(feature[order].numpy(), return_index=True)
        best = order[torch.from_numpy(first)]
        return PointMatches(
            feature[best], landmark[best], places[best], spreads[best], sure[best], len(matches)
        )


def rigid(similarity: Array) -> tuple[Array, float]:
    """A similarity (4, 4) without its scale, and the scale: x → s R x + t becomes R x + t."""
    scale = float(np.cbrt(np.linalg.det(similarity[:3, :3])))
    pose = similarity.copy()
    pose[:3, :3] /= scale
    return pose, scale
