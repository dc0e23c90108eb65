# SPDX-License-Identifier: Apache-2.0
"""The lower level: poses of the views of a clip and points of the world, from matches alone.

A start by the pose estimator (two-view geometry, relative scales, a tree of pairs), absolute poses
for views that the tree left out, then rounds: bundle adjustment to its optimum, observations with
large residuals dropped, points looked for in the views that do not see them, tracks of one point
merged. What is measured may be anything that a table of tracks gives: keypoints as they are, or
expectations that a network can learn from.

Source: Zhan et al., iMatching: Imperative Correspondence Learning, ECCV 2024, section 3.2 (the
rounds). The start is that of the odometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.pose_ransac import MIN_INLIERS, estimate_absolute_pose
from mv_matcher_ros.geometry.reprojection import Problem
from mv_matcher_ros.geometry.triangulation import triangulate
from mv_matcher_ros.odometry.pair_poses import PairMethod
from mv_matcher_ros.odometry.pose_estimator import PoseEstimator, WindowPoses
from mv_matcher_ros.training.adaptation.growing import grown, owners
from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.views import ClipViews, projected

# (T, V) int64 keypoint that sees track t in view v, −1 for none → (T, V, 2) on the normalised
# planes; any number where unseen.
Measure = Callable[[Tensor], Tensor]

ROUGH, CONVERGED = 1e-5, 1e-11
ROUGH_ITERATIONS = 10
POINT_STEPS = 1
# Observations are dropped beyond this many times the limit in the first round, then nearer to it.
LENIENT = (4.0, 2.0)


@dataclass(frozen=True)
class Structure:
    """An optimum of bundle adjustment.

    Attributes:
        problem: at its optimum; observation o is row `track[o]`, column `view[o]` of the table.
        track, view: (O,) int64.
        table: (T, V) int64 keypoints, −1 where unseen or dropped.
        camera_from_world: (V, 4, 4) float64; seen: (V,) bool, views whose pose was found.
        points: (T, 3) float64.
        residual_px: (T, V) float64 reprojection error, infinite where unseen.
    """

    problem: Problem
    track: Tensor
    view: Tensor
    table: Tensor
    camera_from_world: Tensor
    seen: Tensor
    points: Tensor
    residual_px: Tensor

    def __len__(self) -> int:
        """How many points."""
        return len(self.table)


@dataclass(frozen=True)
class Fault:
    """Why a clip has no structure."""

    reason: str


TOO_FEW = 'too few matches'
NO_PARALLAX = 'no parallax: the camera turned or stood still'
APART = 'the matches do not hold together'


class StructureSolver:
    """Solves clips; keeps no state."""

    def __init__(self, settings: StructureSettings) -> None:
        self._settings = settings
        self._estimator = PoseEstimator(settings.poses)

    @torch.no_grad()
    def solve(
        self,
        clip: ClipViews,
        matches: Matches,
        measure: Measure | None = None,
        least_similarity: float = 0.0,
    ) -> Structure | Fault:
        """Structure of a clip.

        Args:
            clip: its views.
            matches: between all pairs of them, with confidences.
            measure: what is measured; None: the keypoints as they are.
            least_similarity: of the descriptors of a keypoint that a track grows by.
        """
        settings = self._settings
        if len(matches) < settings.min_tracks:
            return Fault(TOO_FEW)
        sigma = (settings.noise_px * clip.pixel)[:, None].expand(clip.valid.shape)
        start = self._estimator.estimate(clip.plane_xy, sigma, matches, clip.setup)
        if not _has_baseline(start):
            return Fault(NO_PARALLAX)
        state = self._with_missing_views(clip, _State.of(start))
        measured_by = clip.as_they_are if measure is None else measure
        for number in range(settings.rounds):
            last = number + 1 == settings.rounds
            state = self._adjusted(clip, state, measured_by, last)
            if len(state.table) < settings.min_tracks:
                return Fault(APART)
            if last:
                break
            limit = settings.inlier_px * (LENIENT[number] if number < len(LENIENT) else 1.0)
            state = self._dropped(clip, state, measured_by, limit)
            if settings.grow_px:
                table, confidence, points = grown(
                    clip, state.table, state.confidence, state.points,
                    self._camera_from_world(clip, state), state.found[clip.setup.body],
                    settings.grow_px, least_similarity,
                )  # fmt: skip
                state = _State(state.world_from_body, state.found, table, confidence, points)
        found = self._result(clip, state, measured_by)
        explained = _explained(found, matches)
        return found if explained >= settings.min_share else Fault(APART)

    # ------------------------------------------------------------------ rounds

    def _adjusted(self, clip: ClipViews, state: _State, measure: Measure, last: bool) -> _State:
        """At the optimum; tracks that cannot be triangulated are left out."""
        settings = self._settings
        if last:  # what is kept is judged once more before the optimum that counts
            rough = self._solved(clip, state, measure, ROUGH_ITERATIONS, ROUGH)
            state = self._dropped(clip, rough, measure, settings.inlier_px)
            return self._solved(clip, state, measure, settings.iterations, CONVERGED)
        state = self._triangulated(clip, state, measure)
        return self._solved(clip, state, measure, ROUGH_ITERATIONS, ROUGH)

    def _solved(
        self, clip: ClipViews, state: _State, measure: Measure, iterations: int, stop: float
    ) -> _State:
        if not len(state.table):
            return state
        problem, _, _ = self._problem(clip, state, measure)
        solution = solve(problem, iterations, stop, point_steps=POINT_STEPS)
        return state.moved(se3.normalise(solution.world_from_body[0]), solution.points[0])

    def _problem(
        self, clip: ClipViews, state: _State, measure: Measure
    ) -> tuple[Problem, Tensor, Tensor]:
        """The problem at the state's values, and the rows and columns of its observations."""
        setup, settings = clip.setup, self._settings
        track, view = (state.table >= 0).nonzero(as_tuple=True)
        importance = state.confidence[track, view].clamp_min(1e-3)
        noise = settings.noise_px * clip.pixel[view]
        fixed = setup.solved | ~state.found
        if not bool(setup.solved.any()):
            fixed = fixed.clone()
            fixed[state.found.nonzero()[0]] = True
        problem = Problem(
            state.world_from_body[None],
            state.points[None],
            setup.body[view][None],
            track[None],
            measure(state.table)[track, view][None],
            (1.0 / noise)[None, :, None].expand(1, -1, 2),
            fixed[None],
            setup.camera_from_body[None],
            setup.camera[view][None],
            kernel='cauchy',
            kernel_width=settings.kernel_width,
            # Their mean is one: no weight can make the objective smaller.
            importance=(importance / importance.mean())[None],
        )
        return problem, track, view

    def _triangulated(self, clip: ClipViews, state: _State, measure: Measure) -> _State:
        """Points anew, of tracks that have one in front of all views and with parallax."""
        seen = (state.table >= 0) & state.found[clip.setup.body]
        state = state.masked(seen)
        made = triangulate(
            measure(state.table),
            self._camera_from_world(clip, state),
            torch.where(seen, state.confidence.clamp_min(1e-3), 0.0),
            min_parallax_rad=math.radians(self._settings.min_parallax_deg),
        )
        return state.moved(state.world_from_body, made.points).of_tracks(made.valid)

    def _dropped(
        self, clip: ClipViews, state: _State, measure: Measure, limit_px: float
    ) -> _State:
        """Without observations beyond the limit, and tracks that then have no parallax."""
        residual = self._residual_px(clip, state, measure)
        state = state.masked(residual <= limit_px)
        state = state.of_tracks((state.table >= 0).sum(1) >= 2)
        centre = se3.inverse(self._camera_from_world(clip, state))[:, :3, 3]
        rays = torch.nn.functional.normalize(state.points[:, None] - centre, dim=-1)
        both = (state.table >= 0)[:, :, None] & (state.table >= 0)[:, None]
        cosine = torch.where(both, rays @ rays.mT, 1.0).flatten(1).amin(1)
        wide = cosine <= math.cos(math.radians(self._settings.min_parallax_deg))
        return state.of_tracks(wide)

    def _residual_px(self, clip: ClipViews, state: _State, measure: Measure) -> Tensor:
        """(T, V) reprojection error, infinite where unseen or behind the camera."""
        plane, ahead = projected(self._camera_from_world(clip, state), state.points)
        error = (plane - measure(state.table)).norm(dim=-1) / clip.pixel
        return torch.where(ahead & (state.table >= 0), error, torch.inf)

    @staticmethod
    def _camera_from_world(clip: ClipViews, state: _State) -> Tensor:
        setup = clip.setup
        body_from_world = se3.inverse(state.world_from_body[setup.body])
        return setup.camera_from_body[setup.camera] @ body_from_world

    def _result(self, clip: ClipViews, state: _State, measure: Measure) -> Structure:
        problem, track, view = self._problem(clip, state, measure)
        return Structure(
            problem,
            track,
            view,
            state.table,
            self._camera_from_world(clip, state),
            state.found[clip.setup.body],
            state.points,
            self._residual_px(clip, state, measure),
        )

    # ---------------------------------------------------------- missing views

    def _with_missing_views(self, clip: ClipViews, state: _State) -> _State:
        """Bodies that the tree of pairs left out, by what they see of the points (PnP)."""
        setup = clip.setup
        for body in (~state.found).nonzero()[:, 0].tolist():
            views = (setup.body == body).nonzero()[:, 0].tolist()
            best: tuple[int, Tensor] | None = None
            for view in views:
                seen = (state.table[:, view] >= 0) & state.points.isfinite().all(1)
                rows = seen.nonzero()[:, 0]
                pose = estimate_absolute_pose(
                    state.points[rows],
                    clip.plane_xy[view, state.table[rows, view]],
                    float(self._settings.inlier_px * clip.pixel[view]),
                    guesses=_expected(state, body)[None],
                )
                count = int(pose.inliers.sum())
                if pose.valid and count >= 2 * MIN_INLIERS and (best is None or count > best[0]):
                    camera_from_body = setup.camera_from_body[setup.camera[view]]
                    best = count, se3.inverse(pose.camera_from_world) @ camera_from_body
            if best is not None:
                state = state.with_body(body, best[1])
        return state


@dataclass(frozen=True)
class _State:
    """Where the rounds are: poses (B, 4, 4), which are found, and tracks with points."""

    world_from_body: Tensor
    found: Tensor
    table: Tensor  # (T, V)
    confidence: Tensor  # (T, V)
    points: Tensor  # (T, 3), NaN where there is none yet

    @classmethod
    def of(cls, start: WindowPoses) -> _State:
        points = torch.where(start.valid[:, None], start.points, torch.nan)
        confidence = start.tracks.confidence.double()
        return cls(start.world_from_body, start.found, start.tracks.keypoint, confidence, points)

    def moved(self, world_from_body: Tensor, points: Tensor) -> _State:
        return _State(world_from_body, self.found, self.table, self.confidence, points)

    def masked(self, kept: Tensor) -> _State:
        """Without observations (T, V)."""
        table = torch.where(kept, self.table, -1)
        confidence = torch.where(kept, self.confidence, 0.0)
        return _State(self.world_from_body, self.found, table, confidence, self.points)

    def of_tracks(self, kept: Tensor) -> _State:
        return _State(
            self.world_from_body, self.found,
            self.table[kept], self.confidence[kept], self.points[kept],
        )  # fmt: skip

    def with_body(self, body: int, world_from_body: Tensor) -> _State:
        poses, found = self.world_from_body.clone(), self.found.clone()
        poses[body], found[body] = world_from_body, True
        return _State(poses, found, self.table, self.confidence, self.points)


def _has_baseline(start: WindowPoses) -> bool:
    """Whether the views that hang together differ by more than turns."""
    measured = (start.pair_method == PairMethod.EIGHT_POINT) | (
        start.pair_method == PairMethod.ROBUST
    )
    return int(start.found.sum()) >= 2 and bool(measured.any())


def _expected(state: _State, body: int) -> Tensor:
    """(4, 4) camera_from_world of a body at constant velocity from the two nearest found ones."""
    known = state.found.nonzero()[:, 0].tolist()
    nearest = sorted(known, key=lambda other: abs(other - body))[:2]
    if len(nearest) < 2:
        return se3.inverse(state.world_from_body[nearest[0]])
    near, far = nearest
    step = se3.log(se3.inverse(state.world_from_body[far]) @ state.world_from_body[near])
    ahead = se3.exp(step * ((body - near) / (near - far)))
    return se3.inverse(state.world_from_body[near] @ ahead)


def _explained(found: Structure, matches: Matches) -> float:
    """Share of the matches, by confidence, whose keypoints are of one point."""
    owner = owners(found.table, 1 + int(max(matches.keypoints.max(), found.table.max())))
    a = owner[matches.views[:, 0], matches.keypoints[:, 0]]
    b = owner[matches.views[:, 1], matches.keypoints[:, 1]]
    confidence = matches.confidence.double()
    return float(confidence[(a >= 0) & (a == b)].sum() / confidence.sum().clamp_min(1e-9))
