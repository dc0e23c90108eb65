# SPDX-License-Identifier: Apache-2.0
"""When a frame becomes a keyframe: overlap lost, parallax gained, or too little tracked."""

from __future__ import annotations

import torch

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import REFERENCE_WIDTH, Tracked
from mv_matcher_ros.odometry.window import Keyframe, Window


class KeyframePolicy:
    """Compares a tracked frame with the newest keyframe."""

    def __init__(self, settings: Settings, camera: Camera) -> None:
        self._settings = settings.keyframes
        self._scale = camera.width / REFERENCE_WIDTH
        self._focal = camera.focal_px
        self._newest: Keyframe | None = None
        self._tracked_at_first: int | None = None

    def restart(self, newest: Keyframe) -> None:
        """`newest` has become the newest keyframe."""
        self._newest, self._tracked_at_first = newest, None

    def wants(self, window: Window, observation: Observation, tracked: Tracked) -> bool:
        """Whether the frame should become a keyframe."""
        assert self._newest is not None
        if self._tracked_at_first is None:
            self._tracked_at_first = max(tracked.inliers, 1)
        if tracked.inliers < self._settings.min_tracked:
            return True
        if tracked.inliers < self._settings.min_overlap * self._tracked_at_first:
            return True
        return self._moved_px(window, observation, tracked) > self._settings.parallax_px * self._scale

    def _moved_px(self, window: Window, observation: Observation, tracked: Tracked) -> float:
        """Median motion of the tracks common with the newest keyframe, in pixels; infinite when there are none."""
        assert self._newest is not None
        place = torch.full((len(window.landmarks),), -1, dtype=torch.int64)
        seen = (self._newest.landmark >= 0).nonzero()[:, 0]
        place[self._newest.landmark[seen]] = seen
        good = tracked.inlier & (place[tracked.landmark] >= 0)
        if not bool(good.any()):
            return float('inf')
        there = self._newest.observation.plane_xy[place[tracked.landmark[good]]]
        here = observation.plane_xy[tracked.feature[good]]
        return float((here - there).norm(dim=1).median()) * self._focal
