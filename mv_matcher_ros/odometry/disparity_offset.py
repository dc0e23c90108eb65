# SPDX-License-Identifier: Apache-2.0
"""Self-calibration of a stereo rig's disparity while it moves.

A tenth of a pixel of error in the relative yaw of two cameras (or in a principal point) adds a
constant to every disparity, and with it a scale error that grows with depth. Motion tells: inverse
depths from two keyframes, ρ_m, are right up to one common factor 1 + ε, whatever the offset, so
that the stereo ones are ρ_s = ρ_m − ε ρ_m + δ. Points at different depths separate δ from ε by
weighted regression.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.odometry.landmarks import LandmarkMaker, inverse_depth_from_pair
from mv_matcher_ros.odometry.window import Keyframe, Window

# What is thought of the offset before any motion, and how far it may go: a calibration is good to
# less than a pixel.
START_SIGMA_PX = 0.3
LARGEST_PX = 1.0
# The same keyframes take part in several regressions: their information is counted that much less.
REUSE = 3.0
FEWEST_POINTS = 30
OUTLIER_SIGMAS = 3.0
# Only a rig whose baseline is nearly across the view has a disparity in the usual sense.
LARGEST_FORWARD_SHARE = 0.2


class DisparityOffset:
    """Estimates the constant error of the disparities and takes it out of the inverse depths.

    Args:
        rig: the pair.
        maker: knows where the cameras are.
        camera: which of the seeing cameras is the first of the pair.

    Attributes:
        offset: estimate in units of inverse depth (disparity over focal length times baseline).
        variance: of the estimate.
    """

    def __init__(self, rig: Rig, maker: LandmarkMaker, camera: int = 0) -> None:
        first, second = (camera.body_from_camera for camera in rig.cameras[:2])
        baseline = first[:3, :3].T @ (second[:3, 3] - first[:3, 3])
        self._per_px = 1.0 / (rig.cameras[0].focal_px * max(rig.baseline_m, 1e-9))
        self._usable = abs(baseline[2]) < LARGEST_FORWARD_SHARE * rig.baseline_m
        self._maker = maker
        self._camera = camera
        self.reset()

    def reset(self) -> None:
        """Back to the calibration as given."""
        self.offset = 0.0
        self.variance = (START_SIGMA_PX * self._per_px) ** 2

    @property
    def offset_px(self) -> float:
        """The estimate in pixels of disparity."""
        return self.offset / self._per_px

    @property
    def sigma_px(self) -> float:
        """Its standard deviation in pixels."""
        return float(self.variance**0.5) / self._per_px

    def update(self, window: Window) -> None:
        """Learn from the newest keyframe, and correct the depths of the window by what changed."""
        if not self._usable or len(window.keyframes) < 2:
            return
        found = self._regress(window)
        if found is None:
            return
        intercept, variance = found
        gain = self.variance / (self.variance + REUSE * variance)
        limit = LARGEST_PX * self._per_px
        updated = min(max(self.offset + gain * intercept, -limit), limit)
        self.variance *= 1.0 - gain
        change, self.offset = updated - self.offset, updated
        for keyframe in window.keyframes:
            seen = keyframe.observation
            corrected = seen.inverse_depth - change
            corrected = torch.where(seen.camera == self._camera, corrected, seen.inverse_depth)
            keyframe.observation = replace(seen, inverse_depth=corrected)

    def _regress(self, window: Window) -> tuple[float, float] | None:
        """Intercept δ and its variance over the pairs of the newest keyframe with older ones."""
        newest = window.keyframes[-1]
        normal = torch.zeros(2, 2, dtype=torch.float64)
        right = torch.zeros(2, dtype=torch.float64)
        used = 0
        for other in window.keyframes[-6:-1:2]:
            design, value = self._rows(window, newest, other)
            normal += design.T @ design
            right += design.T @ value
            used += len(value)
        if used < FEWEST_POINTS:
            return None
        covariance = torch.linalg.pinv(normal, hermitian=True)
        return float((covariance @ right)[1]), float(covariance[1, 1])

    def _rows(self, window: Window, newest: Keyframe, other: Keyframe) -> tuple[Tensor, Tensor]:
        """Whitened rows (K, 2) of [ρ_m, 1] and values (K,) ρ_s − ρ_m of common landmarks."""
        here = newest.observation
        place = other.feature_of_landmark(len(window.landmarks), self._camera)
        usable = (newest.landmark >= 0) & here.inverse_depth.isfinite()
        feature = (usable & (here.camera == self._camera)).nonzero()[:, 0]
        partner = place[newest.landmark[feature]]
        feature, partner = feature[partner >= 0], partner[partner >= 0]
        other_from_newest = self._maker.relative(newest, other, self._camera)
        there_xy = other.observation.plane_xy[partner]
        by_motion, _ = inverse_depth_from_pair(here.plane_xy[feature], there_xy, other_from_newest)
        slope = other_from_newest[:2, 3] - there_xy * other_from_newest[2, 3]
        noise = here.sigma[feature].square() + other.observation.sigma[partner].square()
        variance = noise / slope.square().sum(1).clamp_min(1e-18)
        variance = variance + here.inverse_depth_sigma[feature].square()
        difference = here.inverse_depth[feature] - by_motion
        good = difference.square() < OUTLIER_SIGMAS**2 * variance
        weight = variance[good].rsqrt()
        # The regressor is the landmark's depth: `by_motion` would carry its noise into both
        # sides and bend the line (errors in variables).
        rows = newest.landmark[feature[good]]
        depth = self._maker.depth_in(window, newest, rows, self._camera)
        design = torch.stack([1.0 / depth, torch.ones_like(depth)], 1)
        return design * weight[:, None], difference[good] * weight
