# SPDX-License-Identifier: Apache-2.0
"""Two-view start without metric scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.geometry.epipolar import homogeneous, pose_from_essential
from mv_matcher_ros.geometry.two_view_model import TwoViewKind, select_two_view_model
from mv_matcher_ros.models.classical import Matcher
from mv_matcher_ros.odometry.landmarks import inverse_depth_from_pair
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.robust_pose import robust_essential

# Share of the first view's matches below which the second view looks at something else: start over
# from it.
RESTART_SHARE = 0.35
# Share of the matches the essential matrix must explain.
MIN_INLIER_SHARE = 0.4
# Noise of a keypoint for the choice between turning and moving.
NOISE_PX = 0.6
# Support of the second-best pose of the essential matrix beyond which cheirality does not decide.
AMBIGUOUS_SHARE = 0.8


@dataclass(frozen=True)
class TwoViewStart:
    """Two views with a relative pose and points, the median depth of the points being one.

    Attributes:
        first: the older observation.
        second_from_first: (4, 4) between the cameras.
        pairs: (K, 2) features of the first and of the second view.
        points: (K, 3) in the first camera.
    """

    first: Observation
    second_from_first: Tensor
    pairs: Tensor
    points: Tensor

    def scaled(self, factor: float) -> TwoViewStart:
        """The same start with all lengths multiplied."""
        relative = self.second_from_first.clone()
        relative[:3, 3] *= factor
        return replace(self, second_from_first=relative, points=self.points * factor)


class TwoViewInitialiser:
    """Waits for a second view with enough parallax to the first."""

    def __init__(self, settings: Settings, camera: Camera, matcher: Matcher) -> None:
        self._settings = settings
        self._matcher = matcher
        self._focal = camera.focal_px
        self._first: Observation | None = None
        self._first_matches = 0

    def reset(self) -> None:
        """Forget the first view."""
        self._first = None

    def offer(self, observation: Observation) -> tuple[TwoViewStart | None, str]:
        """A start with this as the second view, or None and what is waited for."""
        wanted = self._settings.initialisation
        if self._first is None:
            if len(observation) < wanted.min_matches:
                return None, (
                    f'waiting for texture: {len(observation)} keypoints, '
                    f'{wanted.min_matches} are needed'
                )
            self._first, self._first_matches = observation, 0
            return None, 'waiting for a second view with parallax'
        pairs = self._matcher.match([self._first.features, observation.features]).keypoints
        self._first_matches = max(self._first_matches, len(pairs))
        if len(pairs) < max(wanted.min_matches, RESTART_SHARE * self._first_matches):
            self._first, self._first_matches = observation, 0
            return (
                None,
                f'only {len(pairs)} matches with the first view: starting over from this one',
            )
        return self._two_view(self._first, observation, pairs)

    def _two_view(
        self, first: Observation, second: Observation, pairs: Tensor
    ) -> tuple[TwoViewStart | None, str]:
        wanted = self._settings.initialisation
        ours, theirs = first.plane_xy[pairs[:, 0]], second.plane_xy[pairs[:, 1]]
        essential, inlier = robust_essential(ours.numpy(), theirs.numpy(), 1.0 / self._focal)
        if essential is None or inlier.sum() < MIN_INLIER_SHARE * len(pairs):
            return None, 'waiting: the two views do not fit one rigid scene'
        model = select_two_view_model(
            ours[inlier], theirs[inlier], NOISE_PX / self._focal, essential=essential
        )
        if int(model.kind) == TwoViewKind.ROTATION:
            return None, 'waiting for translation: the camera only turned, or stands still'
        pose = pose_from_essential(essential, ours[inlier], theirs[inlier])
        if float(pose.runner_up) > AMBIGUOUS_SHARE * float(pose.support):
            return None, 'waiting for parallax: two poses explain the views equally well'
        relative, chosen = pose.b_from_a, pairs[inlier]
        inverse_depth, turned = inverse_depth_from_pair(ours[inlier], theirs[inlier], relative)
        rays = homogeneous(theirs[inlier])
        cosine = (turned * rays).sum(1) / (turned.norm(dim=1) * rays.norm(dim=1))
        parallax = torch.arccos(cosine.clamp(-1.0, 1.0))
        ahead = inverse_depth > 0
        wide = int((ahead & (parallax > math.radians(wanted.min_parallax_deg))).sum())
        if wide < wanted.min_landmarks:
            return None, (
                f'waiting for parallax: {wide} points with {wanted.min_parallax_deg:g} degrees, '
                f'{wanted.min_landmarks} are needed'
            )
        good = ahead & (parallax > math.radians(self._settings.landmarks.min_parallax_deg))
        points = homogeneous(ours[inlier][good]) / inverse_depth[good][:, None]
        start = TwoViewStart(first, relative, chosen[good], points)
        return start.scaled(1.0 / float(points[:, 2].median())), ''
