# SPDX-License-Identifier: Apache-2.0
"""Pose of a new frame: against the landmarks of the window, else against its keyframes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.camera import camera_project
from mv_matcher_ros.geometry.pose_ransac import estimate_absolute_pose
from mv_matcher_ros.geometry.reprojection import Problem, linearise, residuals
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.projection import project
from mv_matcher_ros.odometry.seeing import SeeingCameras, of_each
from mv_matcher_ros.odometry.window import Keyframe, Landmarks, Window, measurements

# Radius of the last search, around projections with the solved pose, as a share of the first.
REFINED_RADIUS_SHARE = 0.4
# Least share of the landmarks before the cameras that agree with a pose that was searched for.
RECOGNISED_SHARE = 0.1
POSE_ITERATIONS = 10
POSE_DECREASE = 1e-4


@dataclass(frozen=True)
class Tracked:
    """A measured pose and the matches behind it.

    Attributes:
        world_from_body: (4, 4).
        feature, landmark: (K,) int64 matched pairs.
        inlier: (K,) bool, agree with the pose.
        information: (6, 6) of the right perturbation of the pose, landmarks taken as known.
        method: which way it was found, for messages.
    """

    world_from_body: Tensor
    feature: Tensor
    landmark: Tensor
    inlier: Tensor
    information: Tensor
    method: str

    @property
    def inliers(self) -> int:
        """Number of matches that agree with the pose."""
        return int(self.inlier.sum())


class Tracker:
    """Finds the landmarks of a window in a frame and the pose that explains them."""

    def __init__(
        self,
        settings: Settings,
        cameras: SeeingCameras,
        matcher: NearestNeighbourMatcher,
        graph: LearnedMatcher | None = None,
    ) -> None:
        self._settings = settings
        self._matcher = matcher
        self._graph = graph
        self._cameras = cameras

    def track(self, window: Window, observation: Observation, guess: Tensor) -> Tracked | None:
        """Pose near `guess`, or None when too little agrees."""
        wanted, matching = self._settings.tracking, self._settings.matching
        narrow = matching.search_radius_px * REFINED_RADIUS_SHARE
        best: Tracked | None = None
        for radius in (narrow, matching.search_radius_px, matching.wide_radius_px):
            found = self._search(window, observation, guess, radius)
            tracked = self.solve_pose(window.landmarks, observation, *found, guess, 'landmarks')
            if tracked is not None and (best is None or tracked.inliers > best.inliers):
                best = tracked
            # Few matches in the narrow search can agree on a wrong pose: there, ask for plenty.
            plenty = self._settings.keyframes.min_tracked * 2
            enough = plenty if radius == narrow else wanted.degraded_inliers
            if best is not None and best.inliers >= enough:
                break
        if best is None:
            return None
        found = self._search(window, observation, best.world_from_body, narrow)
        refined = self.solve_pose(
            window.landmarks, observation, *found, best.world_from_body, 'landmarks'
        )
        if refined is not None and refined.inliers >= best.inliers:
            best = refined
        return best if self.believable(best) else None

    def track_known(
        self,
        window: Window,
        observation: Observation,
        guess: Tensor,
        feature: Tensor,
        landmark: Tensor,
    ) -> Tracked | None:
        """Pose near `guess`, which is good, from (K,) known matches and those found around it."""
        narrow = self._settings.matching.search_radius_px * REFINED_RADIUS_SHARE
        more = self._search(window, observation, guess, narrow)
        new = ~(torch.isin(more[0], feature) | torch.isin(more[1], landmark))
        feature = torch.cat([feature, more[0][new]])
        landmark = torch.cat([landmark, more[1][new]])
        tracked = self.solve_pose(
            window.landmarks, observation, feature, landmark, guess, 'landmarks'
        )
        return tracked if tracked is not None and self.believable(tracked) else None

    def relocalise(
        self, window: Window, observation: Observation, keyframe: Keyframe
    ) -> Tracked | None:
        """Pose from unguided matches with one keyframe's landmarks (P3P in RANSAC), or None.

        Any camera may see what another one saw: the robot may have turned.
        """
        pairs = torch.cat([
            self._unguided(keyframe.observation, there, observation, here)
            for here in range(len(self._cameras))
            for there in range(len(self._cameras))
        ])  # fmt: skip
        landmark = keyframe.landmark[pairs[:, 0]]
        seen = landmark >= 0
        return self._found_again(window, observation, pairs[seen, 1], landmark[seen], 'keyframe')

    def _unguided(self, a: Observation, of_a: int, b: Observation, of_b: int) -> Tensor:
        """(K, 2) features of two observations, each seen by one camera, that look alike."""
        parts = [self._cameras.part(a, of_a).features, self._cameras.part(b, of_b).features]
        pairs = self._matcher.match(parts).keypoints
        return torch.stack([a.rows_of(of_a)[pairs[:, 0]], b.rows_of(of_b)[pairs[:, 1]]], dim=1)

    def relocalise_jointly(self, window: Window, observation: Observation) -> Tracked | None:
        """Pose from the newest keyframes and the frame in one graph; None without a network.

        All seeing cameras of each are views of it, as far as there is room.
        """
        count = len(self._cameras)
        room = self._settings.matching.views // count - 1
        if self._graph is None or room < 1:
            return None
        older = window.keyframes[-room:]
        seen = [*(keyframe.observation for keyframe in older), observation]
        views = [(each, camera) for each in seen for camera in range(count)]
        new = len(views) - count
        matches = self._graph.match(
            [self._cameras.part(each, camera).features for each, camera in views],
            [(there, here) for there in range(new) for here in range(new, len(views))],
        )
        there, feature = matches.keypoints.clone().unbind(1)
        landmark = torch.full((len(matches),), -1, dtype=torch.int64)
        for number, (each, camera) in enumerate(views):  # counted in the view, then in all
            rows = each.rows_of(camera)
            if number < new:
                of_it = matches.views[:, 0] == number
                landmark[of_it] = older[number // count].landmark[rows[there[of_it]]]
            else:
                of_it = matches.views[:, 1] == number
                feature[of_it] = rows[feature[of_it]]
        order = matches.confidence.argsort(descending=True, stable=True)
        order = order[landmark[order] >= 0]
        feature, landmark = feature[order], landmark[order]
        for side in (0, 1):  # the most confident match of each feature, then of each landmark
            first = first_of_each((feature, landmark)[side])
            feature, landmark = feature[first], landmark[first]
        return self._found_again(window, observation, feature, landmark, 'graph')

    def _found_again(
        self,
        window: Window,
        observation: Observation,
        feature: Tensor,
        landmark: Tensor,
        method: str,
    ) -> Tracked | None:
        """Pose from (K,) matches with landmarks, some of them wrong, and without a guess."""
        start = self._robust_start(window, observation, feature, landmark)
        if start is None:
            return None
        tracked = self.solve_pose(window.landmarks, observation, feature, landmark, start, method)
        if tracked is None or not self.believable(tracked):
            return None
        return self.track(window, observation, tracked.world_from_body) or tracked

    def believable(self, tracked: Tracked) -> bool:
        """Enough matches agree, and a large enough share of them."""
        wanted = self._settings.tracking
        share = tracked.inliers / max(len(tracked.inlier), 1)
        return tracked.inliers >= wanted.min_inliers and share >= wanted.min_inlier_ratio

    def recognised(self, window: Window, tracked: Tracked) -> bool:
        """Whether a pose that was searched for explains what should be seen from there.

        A few dozen of many landmarks agree with a wrong pose; with the right one, more than a
        quarter of those before the cameras do, as far as walls between them allow.
        """
        ahead = 0
        points = window.landmarks.position[window.landmarks.alive]
        camera_from_world = self._cameras.camera_from_world(tracked.world_from_body)
        for camera, pose in zip(self._cameras.cameras, camera_from_world, strict=True):
            pixels, valid = camera_project(camera, se3.transform(pose, points))
            size = pixels.new_tensor((camera.width, camera.height))
            ahead += int((valid & (pixels >= 0).all(1) & (pixels < size).all(1)).sum())
        return tracked.inliers >= RECOGNISED_SHARE * ahead

    def solve_pose(
        self,
        landmarks: Landmarks,
        observation: Observation,
        feature: Tensor,
        landmark: Tensor,
        start: Tensor,
        method: str,
    ) -> Tracked | None:
        """Robust least squares of the pose alone; None with fewer than four matches."""
        if len(feature) < 4:
            return None
        measured, information = measurements(observation)
        camera = observation.camera[feature]
        camera_from_world = of_each(self._cameras.camera_from_world(start), camera)
        expected = project(landmarks, landmark, camera_from_world)
        adjustment = self._settings.bundle_adjustment
        count = len(feature)
        problem = Problem(
            start[None, None],
            landmarks.position[landmark][None],
            torch.zeros(1, count, dtype=torch.int64),
            torch.arange(count)[None],
            measured[feature][None],
            expected.whitening(information[feature])[None],
            torch.zeros(1, 1, dtype=torch.bool),
            camera_from_body=self._cameras.camera_from_body[None],
            camera_index=camera[None],
            kernel=adjustment.kernel,
            kernel_width=adjustment.kernel_width,
            points_fixed=True,
        )
        solution = solve(problem, POSE_ITERATIONS, POSE_DECREASE)
        at_end = problem.moved(solution.world_from_body, solution.points)
        errors, depth = residuals(at_end)
        inlier = (errors[0, :, :2].norm(dim=1) < self._settings.tracking.inlier_px) & (
            depth[0] > 0
        )
        system = linearise(at_end)
        if not bool(solution.world_from_body.isfinite().all()):
            return None
        pose = se3.normalise(solution.world_from_body[0, 0])
        return Tracked(pose, feature, landmark, inlier, system.pose_pose[0], method)

    def _search(
        self, window: Window, observation: Observation, guess: Tensor, radius_px: float
    ) -> tuple[Tensor, Tensor]:
        """(K,) features and (K,) landmarks that match within a radius of the projections."""
        features, landmarks = [], []
        camera_from_world = self._cameras.camera_from_world(guess)
        for number, radius in enumerate(self._cameras.on_plane(radius_px)):
            part = self._cameras.part(observation, number)
            rows = window.landmarks.alive.nonzero()[:, 0]
            local = se3.transform(camera_from_world[number], window.landmarks.position[rows])
            ahead = local[:, 2] > 0
            rows, local = rows[ahead], local[ahead]
            pairs, _ = self._matcher.match_near(
                (local[:, :2] / local[:, 2:], window.landmarks.descriptor[rows]),
                (part.plane_xy, part.features.descriptors),
                radius,
            )
            features.append(observation.rows_of(number)[pairs[:, 1]])
            landmarks.append(rows[pairs[:, 0]])
        return torch.cat(features), torch.cat(landmarks)

    def _robust_start(
        self, window: Window, observation: Observation, feature: Tensor, landmark: Tensor
    ) -> Tensor | None:
        """(4, 4) world_from_body by P3P in RANSAC, or None; by the camera with most matches."""
        whose = observation.camera[feature]
        number = int(whose.bincount(minlength=1).argmax())
        feature, landmark = feature[whose == number], landmark[whose == number]
        wanted = self._settings.tracking
        if len(feature) < wanted.min_inliers:
            return None
        start = estimate_absolute_pose(
            window.landmarks.position[landmark],
            observation.plane_xy[feature],
            wanted.inlier_px / self._cameras.cameras[number].focal_px,
            least_share=max(wanted.min_inlier_ratio, wanted.min_inliers / len(feature)),
            seed=self._settings.runtime.seed,
        )
        if not start.valid or int(start.inliers.sum()) < wanted.min_inliers:
            return None
        return se3.inverse(start.camera_from_world) @ self._cameras.camera_from_body[number]


def first_of_each(values: Tensor) -> Tensor:
    """(K,) int64 places at which a value of (N,) int64 stands for the first time, in order."""
    _, inverse = torch.unique(values, return_inverse=True)
    place = torch.arange(len(values))
    first = torch.full((int(inverse.max()) + 1 if len(values) else 0,), len(values))
    return first.scatter_reduce(0, inverse, place, 'amin').sort().values
