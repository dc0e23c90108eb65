# SPDX-License-Identifier: Apache-2.0
"""Self-calibration of a stereo rig's disparity while it moves.

A tenth of a pixel of error in the relative yaw of two cameras (or in a principal point) adds a
constant δ to every disparity, and with it a scale error that grows with depth. Motion tells: seen
from another keyframe, points whose inverse depths are all off by δ are not where any motion would
put them. What the motion itself is wrong by, in all six directions, is estimated with δ and
eliminated: the poses come from these depths, and agree with them as far as they can. Told to be
right, they would confirm whatever the depths say.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.window import Keyframe, Window

# What is thought of the offset before any motion, and how far it may go: a calibration is good to
# less than a pixel.
START_SIGMA_PX = 0.3
LARGEST_PX = 1.0
# Most rigs are right: none is corrected before it is that many standard deviations off. What is
# not yet known well would shift all depths alike, by more than they err.
SURE_SIGMAS = 3.0
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
        offset: what is taken out, in units of inverse depth (disparity over focal length times
            baseline); 0 until it is sure that there is one.
        estimate, variance: of it.
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
        self.offset = self.estimate = 0.0
        self.variance = (START_SIGMA_PX * self._per_px) ** 2

    @property
    def offset_px(self) -> float:
        """What is taken out, in pixels of disparity."""
        return self.offset / self._per_px

    @property
    def sigma_px(self) -> float:
        """Standard deviation of the estimate in pixels."""
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
        seen_offset = self.offset + intercept
        updated = self.estimate + gain * (seen_offset - self.estimate)
        self.estimate = min(max(updated, -limit), limit)
        self.variance *= 1.0 - gain
        sure = abs(self.estimate) > SURE_SIGMAS * self.variance**0.5
        if self.offset == 0.0 and not sure:
            return
        change, self.offset = self.estimate - self.offset, self.estimate
        for keyframe in window.keyframes:
            seen = keyframe.observation
            corrected = seen.inverse_depth - change
            corrected = torch.where(seen.camera == self._camera, corrected, seen.inverse_depth)
            keyframe.observation = replace(seen, inverse_depth=corrected)

    def _regress(self, window: Window) -> tuple[float, float] | None:
        """δ and its variance over the pairs of the newest keyframe with older ones."""
        newest = window.keyframes[-1]
        information = pull = 0.0
        used = 0
        for other in window.keyframes[-6:-1:2]:
            motion, offset, value = self._rows(window, newest, other)
            # What any motion could do as well says nothing of the offset (Schur complement).
            by_motion = torch.linalg.pinv(motion.T @ motion, hermitian=True) @ (motion.T @ offset)
            offset = offset - motion @ by_motion
            information += float(offset.square().sum())
            pull += float((offset * value).sum())
            used += len(value) // 2
        if used < FEWEST_POINTS or information <= 0.0:
            return None
        return pull / information, 1.0 / information

    def _rows(
        self, window: Window, newest: Keyframe, other: Keyframe
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of common landmarks in the other image: what moves them, and how far off they are.

        Returns:
            (2K, 6) by a motion of the other camera, (2K,) by δ, (2K,) seen less expected from the
            stereo depths; all over the standard deviation of the latter.
        """
        here = newest.observation
        place = other.feature_of_landmark(len(window.landmarks), self._camera)
        usable = (newest.landmark >= 0) & here.inverse_depth.isfinite()
        feature = (usable & (here.camera == self._camera)).nonzero()[:, 0]
        partner = place[newest.landmark[feature]]
        feature, partner = feature[partner >= 0], partner[partner >= 0]
        pose = self._maker.relative(newest, other, self._camera)
        turned = homogeneous(here.plane_xy[feature]) @ pose[:3, :3].T
        translation = pose[:3, 3]

        def seen_at(inverse_depth: Tensor) -> tuple[Tensor, Tensor]:
            """Points over their depth in newest, in the other camera; d plane / d point."""
            point = turned + inverse_depth[:, None] * translation
            plane = point[:, :2] / point[:, 2:]
            eye = torch.eye(2, dtype=plane.dtype).expand(len(plane), 2, 2)
            return point, torch.cat([eye, -plane[:, :, None]], 2) / point[:, 2:, None]

        point, _ = seen_at(here.inverse_depth[feature])
        difference = other.observation.plane_xy[partner] - point[:, :2] / point[:, 2:]
        # Derivatives at the landmark's depth: the measured one would carry its noise into both
        # sides and bend the result (errors in variables).
        rows = newest.landmark[feature]
        inverse = 1.0 / self._maker.depth_in(window, newest, rows, self._camera)
        point, by_point = seen_at(inverse)
        by_depth = by_point @ translation
        noise = here.sigma[feature].square() + other.observation.sigma[partner].square()
        depth_noise = here.inverse_depth_sigma[feature].square()
        covariance = noise[:, None, None] * torch.eye(2, dtype=noise.dtype)
        covariance = covariance + (
            depth_noise[:, None, None] * by_depth[:, :, None] * by_depth[:, None, :]
        )
        factor = torch.linalg.cholesky(covariance)
        columns = torch.cat(
            [
                by_point * inverse[:, None, None],
                -by_point @ se3.hat(point),
                -by_depth[:, :, None],
                difference[:, :, None],
            ],
            2,
        )
        white = torch.linalg.solve_triangular(factor, columns, upper=False)
        good = white[:, :, 7].square().sum(1) < OUTLIER_SIGMAS**2
        motion, offset, value = white[good].flatten(0, 1).split([6, 1, 1], dim=1)
        return motion, offset[:, 0], value[:, 0]
