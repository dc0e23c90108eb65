# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of the window, culling of what does not fit, the prior of what leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mv_matcher_ros.config import CovarianceSettings, Settings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import marginal_prior, solve
from mv_matcher_ros.geometry.reprojection import (
    PosePrior,
    Problem,
    linearise,
    residuals,
)
from mv_matcher_ros.geometry.schur import eliminate_points, half_inverse_of, least_norm_inverse
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.window import FlatObservations, Window

# How well the first pose is held (m, rad): it defines odom. Tight, yet far from the limits of
# float64.
ANCHOR_SIGMA = 1e-4
RELATIVE_DECREASE = 1e-4
# Fewer points than this say nothing of where they were seen from.
LEAST_POINTS = 3
# A landmark seen by one of this many newest keyframes is still being tracked.
STILL_TRACKED = 2


class LocalAdjustment:
    """Refines a window in place."""

    def __init__(self, settings: Settings, cameras: SeeingCameras) -> None:
        self._settings = settings
        self._camera_from_body = cameras.camera_from_body
        self._covariance = torch.zeros(0, 0, dtype=torch.float64)

    def anchor(self, window: Window, hold_scale: bool = False, number: int = 0) -> None:
        """A prior that holds one pose and, if asked to, the distance of the newest.

        What keyframes that have left knew is forgotten.
        """
        poses = window.poses()
        information = torch.zeros(6 * len(poses), 6 * len(poses), dtype=torch.float64)
        first = 6 * (number % len(poses))
        held = slice(first, first + 6)
        information[held, held] = torch.eye(6, dtype=torch.float64) / ANCHOR_SIGMA**2
        if hold_scale and len(poses) > 1:
            step = poses[-1, :3, :3].T @ (poses[-1, :3, 3] - poses[0, :3, 3])
            direction = step / step.norm()
            sigma = ANCHOR_SIGMA * float(step.norm())
            information[-6:-3, -6:-3] = direction[:, None] * direction[None, :] / sigma**2
        gradient = torch.zeros(1, 6 * len(poses), dtype=torch.float64)
        window.prior = PosePrior(information[None], gradient, poses[None])

    def extend_prior(self, window: Window) -> None:
        """Grow the prior over the newest keyframe, of which it knows nothing."""
        if window.prior is None:
            return
        prior, missing = window.prior, len(window.keyframes) - window.prior.linearisation.shape[1]
        if missing <= 0:
            return
        newest = window.poses()[-missing:][None]
        pad = (0, 6 * missing)
        window.prior = PosePrior(
            torch.nn.functional.pad(prior.information, (*pad, *pad)),
            torch.nn.functional.pad(prior.gradient, pad),
            torch.cat([prior.linearisation, newest], dim=1),
        )

    def refine(self, window: Window, iterations: int | None = None) -> None:
        """Minimise reprojection errors over the window, then let go of what does not fit."""
        flat = window.flat_observations()
        if len(flat.keyframe) == 0:
            return
        problem = self._problem(window, flat)
        problem = replace(problem, fixed=problem.fixed | _unknown(window, flat))
        adjustment = self._settings.bundle_adjustment
        solution = solve(
            problem,
            iterations or adjustment.iterations,
            RELATIVE_DECREASE,
            point_steps=adjustment.point_steps,
        )
        poses = se3.normalise(solution.world_from_body[0])
        for keyframe, pose in zip(window.keyframes, poses, strict=True):
            keyframe.world_from_body = pose
        window.landmarks.position = solution.points[0]
        at_end = problem.moved(solution.world_from_body, solution.points)
        equations = linearise(at_end)
        window.landmarks.covariance = _covariance_of(equations.point_point)
        self._covariance = least_norm_inverse(eliminate_points(at_end, equations).pose_pose)[0]
        self._cull(window, flat, at_end)

    def assess(self, window: Window) -> None:
        """Say how well landmarks are known that are not refined yet."""
        flat = window.flat_observations()
        if len(flat.keyframe):
            known = _covariance_of(linearise(self._problem(window, flat)).point_point)
            new = ~window.landmarks.covariance.any(dim=2).any(dim=1)
            window.landmarks.covariance[new] = known[new]

    def step_covariance(self, window: Window, number: int = -1) -> Tensor:
        """(6, 6) covariance of the step to a keyframe from the one before, at the last `refine`.

        With what bundle adjustment cannot know (`covariance.*`). Zero for the first keyframe,
        which nothing measures.

        Args:
            window: as it was refined; number: of the keyframe in it.
        """
        poses, settings = window.poses(), self._settings.covariance
        known = step_covariance(poses, self._covariance, number)
        if not bool(known.any()):
            return known
        last = number % len(poses)
        step = se3.inverse(poses[last - 1]) @ poses[last]
        return settings.noise**2 * known + unknown_covariance(step, settings)

    def drop_oldest(self, window: Window) -> None:
        """Remove the oldest keyframe; what it knew stays as a prior on the others."""
        flat = window.flat_observations()
        leaving = self._leaving(window, flat)
        if self._settings.bundle_adjustment.marginal_prior:
            part = flat.chosen(leaving[flat.landmark])
            problem = self._problem(window, part)
            used, compact = part.landmark.unique(return_inverse=True)
            problem = replace(problem, points=problem.points[:, used], point_index=compact[None])
            drop = torch.zeros(len(window.keyframes), dtype=torch.bool)
            drop[0] = True
            window.prior = marginal_prior(problem, drop)
        window.keyframes.pop(0)
        window.forget(leaving)
        window.count_seen()
        window.compact()

    def _problem(self, window: Window, flat: FlatObservations) -> Problem:
        fixed = torch.zeros(len(window.keyframes), dtype=torch.bool)
        adjustment = self._settings.bundle_adjustment
        if not adjustment.marginal_prior:
            fixed[: 1 if self._settings.sensor != 'mono' else 2] = True
        problem = window.problem(
            self._camera_from_body, fixed, adjustment.kernel, adjustment.kernel_width, flat
        )
        return problem if adjustment.marginal_prior else replace(problem, prior=None)

    def _leaving(self, window: Window, flat: FlatObservations) -> Tensor:
        """(P,) landmarks that go with the oldest keyframe, which sees them.

        They are no longer tracked, or would be left too weak.
        """
        count = len(window.landmarks)
        by_oldest = torch.zeros(count, dtype=torch.bool)
        by_oldest[flat.landmark[flat.keyframe == 0]] = True
        tracked = torch.zeros(count, dtype=torch.bool)
        tracked[flat.landmark[flat.keyframe >= len(window.keyframes) - STILL_TRACKED]] = True
        seen = torch.zeros(count, dtype=torch.int64).index_add_(
            0, flat.landmark, torch.ones_like(flat.landmark)
        )
        has_depth = torch.zeros(count, dtype=torch.bool)
        has_depth[flat.landmark[(flat.sqrt_information[:, 2] > 0) & (flat.keyframe > 0)]] = True
        weak = (seen <= 2) & ~has_depth
        return by_oldest & (~tracked | weak)

    def _cull(self, window: Window, flat: FlatObservations, at_end: Problem) -> None:
        errors, depth = residuals(at_end)
        # What is wrong is wrong, however little it was believed.
        errors = errors / flat.weight[:, None]
        limit = self._settings.landmarks.max_reprojection_px
        bad = (
            (errors[0, :, :2].norm(dim=1) > limit)
            | (depth[0] <= 0)
            | (errors[0, :, 2].abs() > 2.0 * limit)
        )
        for number, keyframe in enumerate(window.keyframes):
            keyframe.landmark[flat.feature[bad & (flat.keyframe == number)]] = -1
        good = ~bad
        count = len(window.landmarks)
        seen = torch.zeros(count, dtype=torch.int64).index_add_(
            0, flat.landmark[good], torch.ones_like(flat.landmark[good])
        )
        has_depth = torch.zeros(count, dtype=torch.bool)
        has_depth[flat.landmark[good & (flat.sqrt_information[:, 2] > 0)]] = True
        weak = window.landmarks.alive & ((seen == 0) | ((seen < 2) & ~has_depth))
        window.forget(weak | ~window.landmarks.position.isfinite().all(1))
        window.count_seen()


def _unknown(window: Window, flat: FlatObservations) -> Tensor:
    """(V,) bool, keyframes whose poses nothing tells: they stay, instead of going anywhere."""
    count = len(window.keyframes)
    unknown = torch.bincount(flat.keyframe, minlength=count) < LEAST_POINTS
    if window.prior is not None:
        told = window.prior.information[0].diagonal().reshape(-1, 6).any(1)
        unknown[: len(told)] &= ~told
    return unknown


def _covariance_of(information: Tensor) -> Tensor:
    """(P, 3, 3) of (1, P, 3, 3)."""
    half = half_inverse_of(information)[0]
    return half.transpose(1, 2) @ half


def unknown_covariance(step: Tensor, settings: CovarianceSettings) -> Tensor:
    """(6, 6) what a step (4, 4) errs by beside the noise of keypoints, by its length and angle."""
    length, angle = step[:3, 3].norm(), se3.log(step)[3:].norm()
    turn = (settings.turn_share * angle) ** 2 + math.radians(settings.turn_deg) ** 2
    variances = torch.stack([(settings.share * length) ** 2, turn])
    return torch.diag(variances.repeat_interleave(3))


def step_covariance(poses: Tensor, covariance: Tensor, number: int = -1) -> Tensor:
    """(6, 6) covariance of a pose seen from the one before, all poses and points free.

    Of the right perturbation δ of T_before⁻¹ T = … exp(δ): δ = δ_this − Ad(T⁻¹ T_before) δ_before.
    Zero for the first pose, which nothing measures.

    Args:
        poses: (V, 4, 4); covariance: (6 V, 6 V) of their right perturbations.
        number: of the pose; negative ones count from the end.
    """
    last = number % len(poses)
    if last == 0 or len(covariance) < 6 * (last + 1):
        return torch.zeros(6, 6, dtype=poses.dtype)
    rows = slice(6 * (last - 1), 6 * (last + 1))
    both = covariance[rows, rows]
    adjoint = se3.adjoint(se3.inverse(poses[last]) @ poses[last - 1])
    jacobian = torch.cat([-adjoint, torch.eye(6, dtype=adjoint.dtype)], dim=1)
    return jacobian @ both @ jacobian.T
