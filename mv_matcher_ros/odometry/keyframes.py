# SPDX-License-Identifier: Apache-2.0
"""When a frame becomes a keyframe: overlap lost, parallax gained, or too little tracked."""

from __future__ import annotations

import statistics
from collections import deque

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.odometry.flow import Followed
from mv_matcher_ros.odometry.seeing import REFERENCE_WIDTH

# A keyframe waits for a sharper image at most this many frames.
LONGEST_WAIT = 2
# Share of the usual sharpness below which a frame counts as blurred, and how many frames make the
# usual.
BLURRED_SHARE = 0.85
SHARPNESS_MEMORY = 15


class KeyframePolicy:
    """Compares a followed frame with the keyframe it is followed from."""

    def __init__(self, settings: Settings, camera: Camera) -> None:
        self._settings = settings.keyframes
        self._parallax = self._settings.parallax_px * camera.width / REFERENCE_WIDTH
        self._focal = camera.focal_px
        self._sharpness: deque[float] = deque(maxlen=SHARPNESS_MEMORY)
        self.restart()

    def note(self, sharpness: float) -> None:
        """Take the sharpness of a frame into account when judging how sharp images are."""
        self._sharpness.append(sharpness)

    def restart(self) -> None:
        """There is a new keyframe to compare with."""
        self._followed_at_first: int | None = None
        self._waited = 0

    def wants(self, followed: Followed) -> bool:
        """Whether the frame should become a keyframe."""
        inliers = followed.tracked.inliers
        if self._followed_at_first is None:
            self._followed_at_first = max(inliers, 1)
        wanted = (
            inliers < self._settings.min_tracked
            or inliers < self._settings.min_overlap * self._followed_at_first
            or followed.moved() * self._focal > self._parallax
        )
        if wanted and inliers >= self._settings.min_tracked // 2 and self._blurred():
            self._waited += 1
            return False
        return wanted

    def _blurred(self) -> bool:
        """Whether to wait for a sharper frame than the last noted."""
        if self._waited >= LONGEST_WAIT or not self._sharpness:
            return False
        return self._sharpness[-1] < BLURRED_SHARE * statistics.median(self._sharpness)
