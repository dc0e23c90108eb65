# SPDX-License-Identifier: Apache-2.0
"""Depth from the second camera of a rig: features matched along epipolar lines, then aligned.

The rig need not be rectified. Two keypoints of one spot are half a pixel apart from where they
should be; the images around them say where the first one is in the second image six times better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Features, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_error import DisparityField
from mv_matcher_ros.odometry.landmarks import inverse_depth_from_pair
from mv_matcher_ros.odometry.observation import Observation, with_depth
from mv_matcher_ros.odometry.pair_alignment import Images, PairAlignment


class StereoMatcher:
    """Gives features of the first camera an inverse depth from the second."""

    def __init__(self, settings: Settings, rig: Rig, matcher: NearestNeighbourMatcher) -> None:
        self._settings = settings.stereo
        self._matcher = matcher
        first, second = (torch.from_numpy(c.body_from_camera.copy()) for c in rig.cameras[:2])
        self._second_from_first = se3.inverse(second) @ first
        self._essential = se3.hat(self._second_from_first[:3, 3]) @ self._second_from_first[:3, :3]
        self._baseline = float(self._second_from_first[:3, 3].norm())
        self._focal = rig.cameras[0].focal_px
        self._alignment = PairAlignment(settings, rig)

    def add_depth(
        self,
        observation: Observation,
        features: Features,
        plane_xy: Tensor,
        sigma: Tensor,
        error: DisparityField | None = None,
        given: Tensor | None = None,
        images: Images | None = None,
    ) -> Observation:
        """The observation with inverse depths where the second view agrees.

        Args:
            observation: of the first view.
            features, plane_xy, sigma: of the second view.
            error: of the inverse depths, taken out.
            given: (K, 2) matches that are known already; those that the rig allows are taken.
            images: the working images of both views, to measure matches in them; None leaves them
                as far apart as their keypoints are.
        """
        unknown = torch.full((len(observation),), torch.nan, dtype=torch.float64)
        spread = torch.ones_like(unknown)
        if len(observation) and len(features):
            allowed = self._candidates(observation.plane_xy, plane_xy)
            similarity = observation.features.descriptors @ features.descriptors.T
            if given is not None:
                given = given[allowed[given[:, 0], given[:, 1]]]
                allowed[given[:, 0]] = False
                allowed[:, given[:, 1]] = False
            pairs, _ = self._matcher.match_guided(similarity, allowed)
            if given is not None:
                pairs = torch.cat([given, pairs])
            left, right = pairs[:, 0], pairs[:, 1]
            first_xy, second_xy = observation.plane_xy[left], plane_xy[right]
            found, _ = inverse_depth_from_pair(first_xy, second_xy, self._second_from_first)
            slope = self._second_from_first[:2, 3] - second_xy * self._second_from_first[2, 3]
            noise = (observation.sigma[left].square() + sigma[right].square()).sqrt()
            noise = noise / slope.norm(dim=1)
            if images is not None:
                aligned = self._alignment.inverse_depth(
                    images, first_xy, observation.sigma[left], found
                )
                better = aligned[0].isfinite() & (aligned[1] < noise)
                found = torch.where(better, aligned[0], found)
                noise = torch.where(better, aligned[1], noise)
            unknown[left] = found if error is None else found - error.at(first_xy)
            spread[left] = noise
        return with_depth(observation, unknown, spread)

    def _candidates(self, first_xy: Tensor, second_xy: Tensor) -> Tensor:
        """(N, M) pairs near the epipolar line and at a possible depth."""
        lines = homogeneous(first_xy) @ self._essential.T
        distance = (lines @ homogeneous(second_xy).T).abs() / lines[:, :2].norm(
            dim=1, keepdim=True
        ).clamp_min(1e-12)
        near = distance * self._focal < self._settings.epipolar_px
        turned = homogeneous(first_xy) @ self._second_from_first[:3, :3].T
        translation = self._second_from_first[:3, 3]
        # With inverse depth the projection moves along the line from the infinite point towards
        # the epipole.
        nearest = 1.0 / (self._settings.min_depth_baselines * self._baseline)
        start = turned[:, :2] / turned[:, 2:]
        end = turned + nearest * translation
        end = end[:, :2] / end[:, 2:].clamp_min(1e-6)
        direction = end - start
        length = direction.norm(dim=1).clamp_min(1e-12)
        direction = direction / length[:, None]
        along = direction @ second_xy.T - (direction * start).sum(1, keepdim=True)
        slack = self._settings.epipolar_px / self._focal
        return near & (along > -slack) & (along < length[:, None] + slack)
