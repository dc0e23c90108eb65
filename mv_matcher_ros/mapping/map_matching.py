# SPDX-License-Identifier: Apache-2.0
"""A view and keyframes of a map as one graph: which of its keypoints are which landmarks.

All views see each other in the graph network, and it is told how the keyframes lie to each other;
the new view finds in several of them what one alone would not decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.datatypes import Camera, Features, Matches
from mv_matcher_ros.mapping.inferred_points import (
    KeyframePoints,
    inferred_points,
    seen_points,
)
from mv_matcher_ros.mapping.map import Map, moved, rigid
from mv_matcher_ros.mapping.point_aggregation import (
    Candidates,
    PointAggregation,
    PointMatches,
    surest,
)
from mv_matcher_ros.models.classical import Matcher
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.models.learned_points import PointInference

# How far a true partner may lie from its epipolar line between keyframes of a map, pixels.
SOLVED_PX = 2.0


class MapMatcher:
    """Matches views with keyframes of a map; keeps no state.

    Args:
        matcher: the graph network, or nearest neighbours.
        camera: the first of the rig.
        inference: gives points to keypoints of keyframes that see no landmark; None: such
            keypoints are not used.
        aggregation: merges what the keyframes say of a keypoint; None: the surest is believed.
    """

    def __init__(
        self,
        matcher: Matcher,
        camera: Camera,
        inference: PointInference | None = None,
        aggregation: PointAggregation | None = None,
    ) -> None:
        self._matcher, self._camera = matcher, camera
        self._inference, self._aggregation = inference, aggregation
        self._size = (camera.width, camera.height)

    def match(self, world: Map, features: Features, keys: Sequence[int]) -> PointMatches:
        """Landmarks that a view shows, by keyframes that may see the same.

        Args:
            features: of the view.
            keys: keyframes of one neighbourhood; the first gives frame and units of the points.
        """
        return self.points(world, features, keys, self.matches(world, features, keys))

    def matches(self, world: Map, features: Features, keys: Sequence[int]) -> Matches:
        """Which keypoints are the same: the view is number 0, keyframes follow in their order."""
        views = [features, *(world.keyframes[key].features(self._size) for key in keys)]
        pairs = [(0, 1 + number) for number in range(len(keys))]
        if isinstance(self._matcher, LearnedMatcher):
            return self._matcher.match(views, pairs, self._known(world, features, keys))
        return self._matcher.match(views, pairs)

    def points(
        self, world: Map, features: Features, keys: Sequence[int], matches: Matches
    ) -> PointMatches:
        """The points that these matches lead to."""
        found = self.candidates(world, keys, matches)
        if self._aggregation is None:
            return surest(found, len(matches))
        return self._aggregation.merged(found, features.keypoints_xy, len(matches))

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

    def candidates(self, world: Map, keys: Sequence[int], matches: Matches) -> Candidates:
        """The points of all matches, in the frame and units of the first keyframe."""
        found: list[tuple[Tensor, ...]] = []
        first_from_map = np.linalg.inv(world.pose[keys[0]])
        pairs = [matches.pair(0, number) for number in range(1, 1 + len(keys))]
        shown = self._points_of(world, keys, [pair[:, 1].numpy() for pair, _ in pairs])
        for key, known, (pair, sure) in zip(keys, shown, pairs, strict=True):
            feature, other = pair.T
            there = np.isfinite(known.points[other]).all(1)
            rows = other.numpy()[there]
            step = first_from_map @ world.pose[key]
            linear = step[:3, :3]
            points = moved(step, known.points[rows])
            origin = moved(step, self._camera.body_from_camera[None, :3, 3])
            found.append((
                feature[there],
                torch.from_numpy(known.landmark[rows].astype(np.int64)),
                torch.from_numpy(points),
                torch.from_numpy(linear @ known.spread[rows] @ linear.T),
                torch.from_numpy(np.linalg.norm(points - origin, axis=1)),
                sure[there].double(),
                torch.from_numpy(known.confidence[rows]),
            ))  # fmt: skip
        return Candidates(*(torch.cat(part) for part in zip(*found, strict=True)))

    def _points_of(
        self, world: Map, keys: Sequence[int], wanted: Sequence[NDArray[np.int64]]
    ) -> list[KeyframePoints]:
        if self._inference is None:
            return [seen_points(world, key) for key in keys]
        return inferred_points(world, keys, self._camera, self._inference, wanted)
