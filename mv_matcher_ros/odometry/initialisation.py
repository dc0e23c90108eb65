# SPDX-License-Identifier: Apache-2.0
"""The start of a map without metric scale: waits for parallax, then poses of several views.

The first and the newest view decide whether a map may begin; the frames between them then take
part in its poses.
"""

from __future__ import annotations

import math

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import (
    essential_from_pose,
    pose_from_essential,
    sampson_error,
)
from mv_matcher_ros.geometry.two_view_model import TwoViewKind, select_two_view_model
from mv_matcher_ros.models.classical import Matcher
from mv_matcher_ros.odometry.map_start import MapStart, poses_of
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.pair_poses import PairMethod
from mv_matcher_ros.odometry.pose_estimator import PoseEstimator, WindowPoses

# Share of the first view's matches below which the second view looks at something else: start over
# from it.
RESTART_SHARE = 0.35
# Share of the matches the relative pose must explain.
MIN_INLIER_SHARE = 0.4
INLIER_PX = 1.0
# Noise of a keypoint for the choice between turning and moving.
NOISE_PX = 0.6
# So many views one after the other that do not fit the first one: start over from the last. It, or
# the first one, shows something else, and in the end a chance would fit.
STRANGE_VIEWS = 2
# A view between the two that sees fewer of the points than this leaves its pose to chance.
LEAST_SEEN = 15
# Support of the second-best pose of the essential matrix beyond which cheirality does not decide.
AMBIGUOUS_SHARE = 0.8
# Frames kept between the first view and the newest one; of more, every other is let go.
MOST_BETWEEN = 16
ONLY_TURNED = 'waiting for translation: the camera only turned, or stands still'
NOT_RIGID = 'waiting: the two views do not fit one rigid scene'


class MapInitialiser:
    """Waits for a view with enough parallax to the first."""

    def __init__(self, settings: Settings, camera: Camera, matcher: Matcher) -> None:
        self._settings = settings
        self._matcher = matcher
        self._focal = camera.focal_px
        self._least_rad = math.radians(settings.landmarks.min_parallax_deg)
        self._views = min(settings.matching.views, settings.keyframes.window)
        self._estimator = PoseEstimator(settings.pose_estimator)
        # The eight-point of two views of a plane is arbitrary: robust solvers take five points.
        self._of_plane = PoseEstimator(
            settings.pose_estimator.model_copy(update={'min_mass': float('inf')})
        )
        self.reset()

    def reset(self) -> None:
        """Forget all views."""
        self._restart(None)

    def _restart(self, first: Observation | None) -> None:
        self._first = first
        self._between: list[Observation] = []
        self._first_matches = 0
        self._strange = 0  # views one after the other

    def offer(self, observation: Observation) -> tuple[MapStart | None, str]:
        """A start with this as the newest view, or None and what is waited for."""
        wanted = self._settings.initialisation
        if self._first is None:
            if len(observation) < wanted.min_matches:
                return None, (
                    f'waiting for texture: {len(observation)} keypoints, '
                    f'{wanted.min_matches} are needed'
                )
            self._restart(observation)
            return None, 'waiting for a second view with parallax'
        matches = self._matcher.match([self._first.features, observation.features])
        self._first_matches = max(self._first_matches, len(matches))
        if len(matches) < max(wanted.min_matches, RESTART_SHARE * self._first_matches):
            self._restart(observation)
            return (
                None,
                f'only {len(matches)} matches with the first view: starting over from this one',
            )
        start, message = self._two_views(self._first, observation, matches)
        self._strange = self._strange + 1 if message == NOT_RIGID else 0
        if self._strange >= STRANGE_VIEWS:
            self._restart(observation)
            return None, f'{message}, nor did the one before: starting over from this one'
        if start is None:
            if not self._strange:
                self._keep(observation)
            return None, message
        return self._several_views(self._first, observation) or start, ''

    def _keep(self, observation: Observation) -> None:
        self._between.append(observation)
        if len(self._between) > MOST_BETWEEN:
            self._between = self._between[::2]

    # -------------------------------------------------------------- two views

    def _two_views(
        self, first: Observation, second: Observation, matches: Matches
    ) -> tuple[MapStart | None, str]:
        found = poses_of([first, second], matches, self._estimator)
        fault, plane = self._judge(first, second, matches, found)
        if not fault and plane and int(found.pair_method[0]) == PairMethod.EIGHT_POINT:
            found = poses_of([first, second], matches, self._of_plane)
            fault, _ = self._judge(first, second, matches, found)
        if fault:
            return None, fault
        return self._with_parallax(MapStart.of([first, second], found, self._least_rad))

    def _judge(
        self, first: Observation, second: Observation, matches: Matches, found: WindowPoses
    ) -> tuple[str, bool]:
        """Why a map cannot begin with these views ('' if it can), and whether they see a plane."""
        if int(found.pair_method[0]) == PairMethod.ROTATION:
            return ONLY_TURNED, False
        if not bool(found.found.all()):
            return NOT_RIGID, False
        essential = essential_from_pose(se3.inverse(found.world_from_body[1]))
        ours = first.plane_xy[matches.keypoints[:, 0]]
        theirs = second.plane_xy[matches.keypoints[:, 1]]
        near = sampson_error(essential, ours, theirs).abs() < INLIER_PX / self._focal
        if near.sum() < MIN_INLIER_SHARE * len(matches):
            return NOT_RIGID, False
        ours, theirs = ours[near], theirs[near]
        model = select_two_view_model(ours, theirs, NOISE_PX / self._focal, essential=essential)
        if int(model.kind) == TwoViewKind.ROTATION:
            return ONLY_TURNED, False
        pose = pose_from_essential(essential, ours, theirs)
        if float(pose.runner_up) > AMBIGUOUS_SHARE * float(pose.support):
            return 'waiting for parallax: two poses explain the views equally well', False
        return '', int(model.kind) == TwoViewKind.PLANE

    def _with_parallax(self, start: MapStart) -> tuple[MapStart | None, str]:
        wanted = self._settings.initialisation
        wide = start.wide_points(wanted.min_parallax_deg)
        if wide >= wanted.min_landmarks:
            return start, ''
        return None, (
            f'waiting for parallax: {wide} points with {wanted.min_parallax_deg:g} degrees, '
            f'{wanted.min_landmarks} are needed'
        )

    # ---------------------------------------------------------- several views

    def _several_views(self, first: Observation, newest: Observation) -> MapStart | None:
        """A start with frames between, None if they do not hang together."""
        between = spread(self._between, self._views - 2)
        if not between:
            return None
        views = [first, *between, newest]
        matches = self._matcher.match([view.features for view in views])
        found = poses_of(views, matches, self._estimator)
        if not bool(found.found.all()) or not found.adjusted:
            return None
        start = MapStart.of(views, found, self._least_rad)
        if min(start.seen_by_each()) < LEAST_SEEN:
            return None
        return self._with_parallax(start)[0]


def spread(frames: list[Observation], most: int) -> list[Observation]:
    """At most so many of the frames, at even distances from each other and from both ends."""
    if len(frames) <= most:
        return frames
    step = (len(frames) + 1) / (most + 1)
    return [frames[round((number + 1) * step) - 1] for number in range(most)]
