# SPDX-License-Identifier: Apache-2.0
"""When a frame becomes a keyframe: overlap lost, parallax gained, or too little tracked."""

from __future__ import annotations

import statistics
from collections import deque

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import REFERENCE_WIDTH, Tracked
from mv_matcher_ros.odometry.window import Keyframe, Window

# A keyframe waits for a sharper image at most this many frames.
LONGEST_WAIT = 2
# Share of the usual sharpness below which a frame counts as blurred, and how many frames make the
# usual.
BLURRED_SHARE = 0.85
SHARPNESS_MEMORY = 15
STRONGEST = 300


def sharpness(observation: Observation) -> float:
    """Median detection score of the strongest keypoints: motion blur lowers it."""
    scores = observation.features.scores
    return float(scores.topk(min(STRONGEST, len(scores))).values.median()) if len(scores) else 0.0


class KeyframePolicy:
    """Compares a tracked frame with the newest keyframe."""

    def __init__(self, settings: Settings, camera: Camera) -> None:
        self._settings = settings.keyframes
        self._scale = camera.width / REFERENCE_WIDTH
        self._focal = camera.focal_px
        self._newest: Keyframe | None = None
        self._tracked_at_first: int | None = None
        self._sharpness: deque[float] = deque(maxlen=SHARPNESS_MEMORY)
        self._waited = 0

    def note(self, observation: Observation) -> None:
        """Take a frame into account when judging how sharp images are."""
        self._sharpness.append(sharpness(observation))

    def _blurred(self, observation: Observation, tracked: Tracked) -> bool:
        """Whether to wait for a sharper frame: this one is below the usual, the track holds."""
        if self._waited >= LONGEST_WAIT or tracked.inliers < self._settings.min_tracked // 2:
            return False
        usual = statistics.median(self._sharpness) if self._sharpness else 0.0
        return sharpness(observation) < BLURRED_SHARE * usual

    def restart(self, newest: Keyframe) -> None:
        """`newest` has become the newest keyframe."""
        self._newest, self._tracked_at_first, self._waited = newest, None, 0

    def wants(self, window: Window, observation: Observation, tracked: Tracked) -> bool:
        """Whether the frame should become a keyframe."""
        assert self._newest is not None
        if self._tracked_at_first is None:
            self._tracked_at_first = max(tracked.inliers, 1)
        wanted = (
            tracked.inliers < self._settings.min_tracked
            or tracked.inliers < self._settings.min_overlap * self._tracked_at_first
            or self._moved_px(window, observation, tracked)
            > self._settings.parallax_px * self._scale
        )
        if wanted and self._blurred(observation, tracked):
            self._waited += 1
            return False
        return wanted

    def _moved_px(self, window: Window, observation: Observation, tracked: Tracked) -> float:
        """Median motion in pixels of the tracks common with the newest keyframe.

        Infinite when there are none.
        """
        assert self._newest is not None
        place = self._newest.feature_of_landmark(len(window.landmarks))
        good = tracked.inlier & (place[tracked.landmark] >= 0)
        if not bool(good.any()):
            return float('inf')
        there = self._newest.observation.plane_xy[place[tracked.landmark[good]]]
        here = observation.plane_xy[tracked.feature[good]]
        return float((here - there).norm(dim=1).median()) * self._focal
