# SPDX-License-Identifier: Apache-2.0
"""Self-calibration of a stereo pair's disparities while it moves.

A relative rotation of the two cameras that the calibration does not know, or a wrong ratio of
their focal lengths, changes disparities by a smooth field over the image; a tenth of a pixel of
relative yaw is a scale error that grows with depth. Motion tells: seen from another keyframe,
points whose inverse depths are off by such a field are not where any motion would put them. What
the motion itself is wrong by, in all six directions, is estimated with the field and eliminated:
the poses come from these depths, and agree with them as far as they can. Told to be right, they
would confirm whatever the depths say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.window import Keyframe, Window

# What is thought of each part of the field before any motion, and how far it may go: a calibration
# is good to less than a pixel.
START_SIGMA_PX = 0.3
# The same where somebody has told what it is off by.
TOLD_SIGMA_PX = 0.1
LARGEST_PX = 1.0
# Most pairs are right: none is corrected before its parts together are that far from nought, in
# standard deviations (Mahalanobis). What is not yet known well would shift all depths alike, by
# more than they err.
SURE_SIGMAS = 4.0
# Surfaces and lenses are not what they are taken for: no part is known better than this.
LEAST_SIGMA_PX = 0.03
# The same keyframes take part in several regressions: their information is counted that much less.
REUSE = 3.0
FEWEST_POINTS = 30
OUTLIER_SIGMAS = 3.0
# Only a rig whose baseline is nearly across the view has a disparity in the usual sense.
LARGEST_FORWARD_SHARE = 0.2


@dataclass(frozen=True)
class DisparityField:
    """An error of inverse depths over the image of the first camera of a pair.

    With s along the baseline and t across it on the normalised plane it is a (1 + s²) + b s + c t:
    relative yaw, ratio of the focal lengths (of a fisheye what comes nearest to that), relative
    roll. Relative pitch moves images across.

    Attributes:
        along: (2,) unit vector of the baseline on the normalised plane.
        parts: (3,) a, b, c in 1/m.
    """

    along: Tensor
    parts: Tensor

    def basis(self, plane_xy: Tensor) -> Tensor:
        """(N, 3) what each part does at places (N, 2)."""
        s = plane_xy @ self.along
        t = plane_xy @ torch.stack([-self.along[1], self.along[0]])
        return torch.stack([1.0 + s.square(), s, t], 1)

    def at(self, plane_xy: Tensor) -> Tensor:
        """(N,) too much inverse depth, 1/m, at places (N, 2)."""
        return self.basis(plane_xy) @ self.parts


class DisparityError:
    """Estimates the error of the disparities and takes it out of the inverse depths.

    Args:
        rig: the pair.
        maker: knows where the cameras are.
        camera: which of the seeing cameras is the first of the pair.
        told_px: the parts of the field that are known before, in pixels; empty for none.

    Attributes:
        field: what is taken out; what was told, or nothing until it is sure that there is an
            error.
    """

    def __init__(
        self, rig: Rig, maker: LandmarkMaker, camera: int = 0, told_px: Sequence[float] = ()
    ) -> None:
        first, second = (camera.body_from_camera for camera in rig.cameras[:2])
        baseline = first[:3, :3].T @ (second[:3, 3] - first[:3, 3])
        self._per_px = 1.0 / (rig.cameras[0].focal_px * max(rig.baseline_m, 1e-9))
        self._usable = abs(baseline[2]) < LARGEST_FORWARD_SHARE * rig.baseline_m
        along = torch.from_numpy(baseline[:2].copy())
        self._none = DisparityField(along / along.norm().clamp_min(1e-9), torch.zeros(3).double())
        self._maker = maker
        self._camera = camera
        self._told_px = torch.tensor(list(told_px), dtype=torch.float64)
        self.reset()

    def reset(self) -> None:
        """Back to the calibration as given, and what was told of it."""
        self.field, sigma_px = self._none, START_SIGMA_PX
        # Of the parts in pixels: information, and information times what they are.
        self._pull = torch.zeros(3, dtype=torch.float64)
        if self._usable and self._told_px.any():
            self.field = replace(self._none, parts=self._told_px * self._per_px)
            sigma_px = TOLD_SIGMA_PX
            self._pull = self._told_px / sigma_px**2
        self._information = torch.eye(3, dtype=torch.float64) / sigma_px**2

    @property
    def parts_px(self) -> Tensor:
        """(3,) of the field that is taken out, in pixels of disparity."""
        return self.field.parts / self._per_px

    @property
    def in_words(self) -> str:
        """What is taken out, for people; empty if nothing is."""
        if self.field is self._none:
            return ''
        yaw, focal, roll = (f'{part:+.2f}' for part in self.parts_px.tolist())
        return f'yaw {yaw} px, focal length {focal} px, roll {roll} px'

    @property
    def settled(self) -> bool:
        """Whether more of the same motion would say little more of the pair, or it has nothing to
        say."""
        return not self._usable or float(self.sigma_px[0]) <= LEAST_SIGMA_PX

    @property
    def sigma_px(self) -> Tensor:
        """(3,) standard deviations of the estimate, in pixels of disparity."""
        return torch.linalg.inv(self._information).diagonal().sqrt()

    def update(self, window: Window) -> bool:
        """Learn from the newest keyframe, and correct the depths of the window by what changed.

        Returns whether this is the first time that there is something to correct.
        """
        if not self._usable or len(window.keyframes) < 2:
            return False
        found = self._regress(window)
        if found is None:
            return False
        information, pull = found
        self._information = self._information + information / REUSE
        self._pull = self._pull + (pull + information @ self.parts_px) / REUSE
        estimate = torch.linalg.solve(self._information, self._pull)
        known = torch.linalg.inv(self._information) + LEAST_SIGMA_PX**2 * torch.eye(3)
        sure = float(estimate @ torch.linalg.solve(known, estimate)) > SURE_SIGMAS**2
        first = self.field is self._none
        if first and not sure:
            return False
        parts = estimate.clamp(-LARGEST_PX, LARGEST_PX) * self._per_px
        before, self.field = self.field, replace(self.field, parts=parts)
        change = replace(self.field, parts=parts - before.parts)
        for keyframe in window.keyframes:
            seen = keyframe.observation
            corrected = seen.inverse_depth - change.at(seen.plane_xy)
            corrected = torch.where(seen.camera == self._camera, corrected, seen.inverse_depth)
            keyframe.observation = replace(seen, inverse_depth=corrected)
        return first

    def _regress(self, window: Window) -> tuple[Tensor, Tensor] | None:
        """(3, 3) information on the parts that are left, in pixels, and (3,) what pulls at them,
        over the pairs of the newest keyframe with older ones."""
        newest = window.keyframes[-1]
        information = torch.zeros(3, 3, dtype=torch.float64)
        pull = torch.zeros(3, dtype=torch.float64)
        used = 0
        for other in window.keyframes[-6:-1:2]:
            motion, parts, value = self._rows(window, newest, other)
            # What any motion could do as well says nothing of the field (Schur complement).
            by_motion = torch.linalg.pinv(motion.T @ motion, hermitian=True) @ (motion.T @ parts)
            parts = parts - motion @ by_motion
            information += parts.T @ parts
            pull += parts.T @ value
            used += len(value) // 2
        return None if used < FEWEST_POINTS else (information, pull)

    def _rows(
        self, window: Window, newest: Keyframe, other: Keyframe
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of common landmarks in the other image: what moves them, and how far off they are.

        Returns:
            (2K, 6) by a motion of the other camera, (2K, 3) by a pixel of each part of the field,
            (2K,) seen less expected from the stereo depths; all over the standard deviation of the
            latter.
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
        motion, by_error, value = white[good].flatten(0, 1).split([6, 1, 1], dim=1)
        basis = self.field.basis(here.plane_xy[feature][good]).repeat_interleave(2, dim=0)
        return motion, by_error * basis * self._per_px, value[:, 0]
