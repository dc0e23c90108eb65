# SPDX-License-Identifier: Apache-2.0
"""Zero-motion gate: hold the pose while nothing moves, without swallowing slow motion."""

from __future__ import annotations

import torch
from torch import Tensor

from mv_matcher_ros.config import ZeroMotionSettings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked

# 95 % quantile of χ² with six degrees of freedom: a pose change below it is not told from noise.
INSIGNIFICANT = 12.59
MIN_COMMON = 20


class StandstillGate:
    """Compares a frame with the one the pose was held at: a creep adds up until it counts."""

    def __init__(self, settings: ZeroMotionSettings) -> None:
        self._settings = settings
        self._held: Observation | None = None
        self._landmark: Tensor | None = None
        self._pose: Tensor | None = None

    def restart(self, observation: Observation, landmark: Tensor, world_from_body: Tensor) -> None:
        """Compare with this frame from now on."""
        self._held = observation
        self._landmark = landmark
        self._pose = world_from_body

    def hold(self, observation: Observation, tracked: Tracked) -> Tensor | None:
        """(4, 4) pose to hold, or None when the camera moves."""
        if (
            not self._settings.enabled
            or self._held is None
            or self._landmark is None
            or self._pose is None
        ):
            return None
        seen = (self._landmark >= 0).nonzero()[:, 0]
        if len(seen) == 0:
            return None
        size = (
            int(max(self._landmark.max(), tracked.landmark.max() if len(tracked.landmark) else 0))
            + 1
        )
        # Pixels compare within a camera.
        cameras = int(torch.cat([self._held.camera, observation.camera]).max()) + 1
        place = torch.full((cameras, size), -1, dtype=torch.int64)
        place[self._held.camera[seen], self._landmark[seen]] = seen
        partner = place[observation.camera[tracked.feature], tracked.landmark]
        good = tracked.inlier & (partner >= 0)
        if int(good.sum()) < MIN_COMMON:
            return None
        before = self._held.features.keypoints_xy[partner[good]]
        now = observation.features.keypoints_xy[tracked.feature[good]]
        if float((now - before).norm(dim=1).median()) > self._settings.max_flow_px:
            return None
        change = se3.log(se3.inverse(self._pose) @ tracked.world_from_body)
        if float(change @ tracked.information @ change) > INSIGNIFICANT:
            return None
        return self._pose
