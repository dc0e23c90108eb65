# SPDX-License-Identifier: Apache-2.0
"""Poses of several views from the matches between them: the block shared with training.

Matches and confidences of all pairs → weighted eight-point of each pair → relative scales → poses
over the best spanning tree → bundle adjustment over all views, weighted by confidence. Everything
is differentiable by confidences and coordinates; from the start of a robust solver on.
Source: Roessle and Niessner, End2End Multi-View Feature Matching with Differentiable Pose
Optimization, ICCV 2023, section 3.4; the scales and the tree are our own. On the CPU, in double
precision: problems are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from mv_matcher_ros.config import PoseEstimatorSettings
from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import attach_gradient, solve
from mv_matcher_ros.geometry.epipolar import essential_from_pose, sampson_error
from mv_matcher_ros.geometry.reprojection import Problem
from mv_matcher_ros.geometry.triangulation import triangulate
from mv_matcher_ros.odometry.pair_poses import (
    PairMatches,
    PairMethod,
    PairPoses,
    pair_poses,
    with_known,
)
from mv_matcher_ros.odometry.pair_scales import PairScales, pair_scales
from mv_matcher_ros.odometry.tracks import Tracks, build_tracks
from mv_matcher_ros.odometry.view_tree import ViewSetup, spanning_tree

Gradient = Literal['none', 'unrolled', 'implicit']
# Points with less parallax start too far off to help the poses.
MIN_PARALLAX_RAD = 0.005
LEAST_NOISE = 0.1
POINT_STEPS = 1
# Share of the cost that the last step may still save. Gradients hold at the optimum only.
CONVERGED = {'none': 1e-3, 'unrolled': 1e-9, 'implicit': 1e-12}


@dataclass(frozen=True)
class WindowPoses:
    """What the estimator found.

    Attributes:
        world_from_body: (B, 4, 4); the world is that of the solved bodies, or the first found one.
        found: (B,) bool, the others have no meaning.
        metric: lengths are those of the known baselines; otherwise arbitrary.
        tracks: all tracks; points: (T, 3) in the world; valid: (T,) bool, triangulated.
        inlier: (T, V) bool, observations that agree with the poses.
        pairs: (P, 2) int64; pair_method: (P,) int64 `PairMethod`; pair_share: (P,) share of the
            confidence that agreed.
        adjusted: bundle adjustment ran; False: the poses are those of the tree.
    """

    world_from_body: Tensor
    found: Tensor
    metric: bool
    tracks: Tracks
    points: Tensor
    valid: Tensor
    inlier: Tensor
    pairs: Tensor
    pair_method: Tensor
    pair_share: Tensor
    adjusted: bool

    @property
    def methods(self) -> dict[str, int]:
        """How many pairs used which method."""
        return {
            method.name.lower(): int((self.pair_method == method).sum())
            for method in PairMethod
            if bool((self.pair_method == method).any())
        }


class PoseEstimator:
    """Poses of V views from their matches; keeps no state."""

    def __init__(self, settings: PoseEstimatorSettings) -> None:
        self._settings = settings

    def estimate(
        self,
        plane_xy: Tensor,
        sigma: Tensor,
        matches: Matches,
        setup: ViewSetup | None = None,
        gradient: Gradient = 'none',
    ) -> WindowPoses:
        """Poses of all views that the matches tie together.

        Args:
            plane_xy: (V, N, 2) float64 keypoints on the normalised planes; sigma: (V, N).
            matches: between the views, with confidences.
            setup: how the views hang together; None: one camera, nothing known.
            gradient: how the adjusted poses depend on confidences and coordinates: not at all,
                through its iterations, or by the implicit function theorem at the optimum.
        """
        views, capacity = plane_xy.shape[:2]
        setup = ViewSetup.separate(views) if setup is None else setup
        pairs = PairMatches.of(matches, list(combinations(range(views), 2)), plane_xy, sigma)
        poses = self.relative_poses(pairs, setup)
        scales = pair_scales(pairs, poses, views, capacity)
        world_from_body, found = spanning_tree(pairs.pairs, poses, scales, setup)
        tracks = build_tracks(matches, views, capacity)
        # As wide as the noise that the matches show, in sigma; to gradients a constant.
        noise = _noise(pairs, poses)
        start = self._problem(plane_xy, sigma, tracks, world_from_body, found, setup, noise)
        adjusted = self._adjusted(start, gradient)
        return self._result(adjusted, start, tracks, found, scales, pairs, poses)

    def relative_poses(self, pairs: PairMatches, setup: ViewSetup) -> PairPoses:
        """Of each pair: what is known, else from its matches."""
        known, relative = setup.known_pairs(pairs.pairs)
        return with_known(
            pair_poses(pairs, self._settings, known), pairs, known, relative, self._settings
        )

    def _problem(
        self,
        plane_xy: Tensor,
        sigma: Tensor,
        tracks: Tracks,
        world_from_body: Tensor,
        found: Tensor,
        setup: ViewSetup,
        kernel_width: float,
    ) -> _Start:
        view_found = found[setup.body]
        camera_from_world = setup.camera_from_body[setup.camera] @ se3.inverse(
            world_from_body[setup.body]
        )
        seen = (tracks.keypoint >= 0) & view_found
        column = torch.arange(len(setup.body))
        index = tracks.keypoint.clamp_min(0)
        measured = plane_xy[column, index]  # (T, V, 2)
        noise = sigma[column, index]
        confidence = torch.where(seen, tracks.confidence.to(plane_xy.dtype), 0.0)
        with torch.no_grad():
            guess = triangulate(
                measured.detach(),
                camera_from_world.detach(),
                (confidence / noise.square()).detach(),
                min_parallax_rad=MIN_PARALLAX_RAD,
            )
        error = guess.residuals.norm(dim=-1) / noise
        close = (error < 4.0 * self._settings.inlier) | ~seen
        valid = guess.valid & (seen & close).sum(1).ge(2)
        used = (seen & close)[valid]
        point, view = used.nonzero(as_tuple=True)
        fixed = setup.solved | ~found
        if not bool(setup.solved.any()):
            fixed = fixed.clone()
            fixed[found.nonzero()[0]] = True
        problem = Problem(
            world_from_body[None],
            guess.points[valid][None],
            setup.body[view][None],
            point[None],
            measured[valid][point, view][None],
            (1.0 / noise)[valid][point, view][None, :, None].expand(1, -1, 2),
            fixed[None],
            setup.camera_from_body[None],
            setup.camera[view][None],
            kernel='cauchy',
            kernel_width=kernel_width,
            importance=confidence[valid][point, view][None],
        )
        return _Start(problem, valid, seen, measured, noise, setup)

    def _adjusted(self, start: _Start, gradient: Gradient) -> Problem | None:
        """The problem at its optimum; None if there is nothing to adjust."""
        problem = start.problem
        free = bool((~problem.fixed).any())
        if not free or problem.points.shape[1] == 0 or self._settings.iterations == 0:
            return None
        solution = solve(
            problem,
            self._settings.iterations,
            CONVERGED[gradient],
            unroll=gradient == 'unrolled',
            point_steps=POINT_STEPS,
        )
        if gradient == 'implicit':
            return problem.moved(*attach_gradient(problem, solution))
        return problem.moved(solution.world_from_body, solution.points)

    def _result(
        self,
        adjusted: Problem | None,
        start: _Start,
        tracks: Tracks,
        found: Tensor,
        scales: PairScales,
        pairs: PairMatches,
        poses: PairPoses,
    ) -> WindowPoses:
        at = start.problem if adjusted is None else adjusted
        points = at.points.new_zeros(len(tracks), 3)
        points[start.valid] = at.points[0]
        setup = start.setup
        with torch.no_grad():
            camera_from_world = setup.camera_from_body[setup.camera] @ se3.inverse(
                at.world_from_body[0][setup.body]
            )
            there = (camera_from_world[:, :3, :3] @ points[:, None, :, None])[..., 0]
            there = there + camera_from_world[:, :3, 3]
            ahead = there[..., 2] > 1e-9
            seen_at = there[..., :2] / torch.where(ahead, there[..., 2], 1.0)[..., None]
            error = (seen_at - start.measured).norm(dim=-1) / start.noise
            inlier = start.seen & ahead & (error < self._settings.inlier) & start.valid[:, None]
        return WindowPoses(
            at.world_from_body[0],
            found,
            scales.metric or bool(setup.solved.sum() > 1),
            tracks,
            points,
            start.valid,
            inlier,
            pairs.pairs,
            poses.method,
            poses.share,
            adjusted is not None,
        )


def _noise(pairs: PairMatches, poses: PairPoses) -> float:
    """Robust standard deviation of the inliers across their epipolar lines, in sigma, at most 1.

    A kernel made for more noise than there is lets wrong matches near their lines pull.
    """
    lines = (poses.method != PairMethod.NONE) & (poses.method != PairMethod.ROTATION)
    with torch.no_grad():
        essential = essential_from_pose(poses.b_from_a)
        error = sampson_error(essential, pairs.plane_xy[:, 0], pairs.plane_xy[:, 1]).abs()
        found = (error / pairs.sigma)[poses.inlier & lines[:, None]]
    if not len(found):
        return 1.0
    return float((1.4826 * found.median()).clamp(LEAST_NOISE, 1.0))


@dataclass(frozen=True)
class _Start:
    """A bundle adjustment and where its parts come from."""

    problem: Problem
    valid: Tensor  # (T,) tracks that are points of the problem
    seen: Tensor  # (T, V)
    measured: Tensor  # (T, V, 2)
    noise: Tensor  # (T, V)
    setup: ViewSetup
