# SPDX-License-Identifier: Apache-2.0
"""Where a frame is on a map that does not change.

Where nothing is known, keyframes that look alike are asked; where the last pose is known, those
that saw what is in view now. Either way they and the frame are one graph to the matcher, and their
landmarks say the pose, with points inferred between landmarks where there are weights for that
(Giang et al., DeViLoc, CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Rig
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_matching import MapMatcher
from mv_matcher_ros.mapping.place_index import PlaceIndex
from mv_matcher_ros.mapping.point_aggregation import PointAggregation
from mv_matcher_ros.mapping.view_pose import agreed_pose
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.place_descriptor import PlaceDescriber
from mv_matcher_ros.odometry.observation import Observation

# Keyframes that look most like the frame, of which places are made.
ALIKE = 20
# Of those near a known pose: as far as the landmarks are away, and turned by less than this.
LARGEST_TURN_RAD = 0.9


@dataclass(frozen=True)
class Located:
    """Where a frame is.

    Attributes:
        map_from_body: (4, 4) rigid, in units of the map.
        covariance: (6, 6) of its right perturbation, x y z rx ry rz, the map taken as known.
        inliers: landmarks that agree.
        keyframe: that the frame was seen from.
    """

    map_from_body: Array
    covariance: Array
    inliers: int
    keyframe: int


@dataclass(frozen=True)
class NotFound:
    """Why a frame is nowhere on the map."""

    reason: str


class Localizer:
    """Finds frames on a map; keeps no state.

    Args:
        settings: all settings.
        rig: calibrated cameras.
        models: detector and matcher; the detector has to be that of the map.
        describer: of places, that of the map.
        world: the map.
    """

    def __init__(
        self, settings: Settings, rig: Rig, models: Models, describer: PlaceDescriber, world: Map
    ) -> None:
        self._settings = settings.mapping.loops
        self._camera, self._world, self._describer = rig.cameras[0], world, describer
        inference = models.point_inference(settings)
        aggregation = None
        if inference is not None:
            aggregation = PointAggregation(settings.mapping.points, rig.cameras[0].focal_px)
        self._matcher = MapMatcher(models.matcher, rig.cameras[0], inference, aggregation)
        self._index = PlaceIndex(describer.size)
        for key, keyframe in world.keyframes.items():
            self._index.append(key, keyframe.stamp_ns, torch.tensor(keyframe.place))
        self._keys = np.array(list(world.keyframes), np.int64)
        poses = [world.placed(int(key)) for key in self._keys]
        self._poses = np.stack([pose for pose, _ in poses]) if poses else np.zeros((0, 4, 4))

    def locate(self, observation: Observation, guess: Array | None = None) -> Located | NotFound:
        """Where a frame is.

        Args:
            observation: of the frame.
            guess: (4, 4) map_from_body if it is about known.
        """
        if not len(self._keys):
            return NotFound('the map has no keyframes')
        reasons = []
        for number, group in enumerate(self._groups(observation, guess)):
            if number == self._settings.tried + (guess is not None):
                break
            found = self._against(observation, group, guess)
            if isinstance(found, Located):
                return found
            reasons.append(found.reason)
        return NotFound('; '.join(dict.fromkeys(reasons)) or 'no keyframe looks alike')

    def _groups(self, observation: Observation, guess: Array | None) -> Iterator[list[int]]:
        """Keyframes of one place each: those near the guess, then those that look alike."""
        room = self._settings.views - 1
        if guess is not None:
            near = self._near(guess)[:room]
            if near:
                yield near
        place = self._describer.describe(observation.features)
        found = self._index.search(place, ALIKE)
        alike = [int(self._keys[p]) for p in found.positions[0] if p >= 0]
        taken: set[int] = set()
        for key in alike:
            if key in taken:
                continue
            shared = {key, *self._world.neighbours(key, 3 * room)}
            group = [other for other in alike if other in shared][:room]
            more = [other for other in self._world.neighbours(key, room) if other not in group]
            taken |= set(group)
            yield [*group, *more][:room]

    def _near(self, guess: Array) -> list[int]:
        """Keyframes that look the same way from nearby, the nearest first."""
        step = np.linalg.norm(self._poses[:, :3, 3] - guess[:3, 3], axis=1)
        trace = np.einsum('nij,ij->n', self._poses[:, :3, :3], guess[:3, :3])
        turn = np.arccos(np.clip((trace - 1.0) / 2.0, -1.0, 1.0))
        reach = max(float(np.median(step)), 1e-9)
        order = np.argsort(step / reach + turn / LARGEST_TURN_RAD)
        return [int(self._keys[n]) for n in order if turn[n] < LARGEST_TURN_RAD]

    def _against(
        self, observation: Observation, group: list[int], guess: Array | None
    ) -> Located | NotFound:
        matches = self._matcher.match(self._world, observation.features, group)
        pose, scale = self._world.placed(group[0])
        guesses: Tensor | None = None
        if guess is not None:
            body_from_first = np.linalg.inv(guess) @ pose
            body_from_first[:3, 3] /= scale
            guesses = torch.from_numpy(body_from_first)[None]
        found = agreed_pose(
            matches, observation.plane_xy, observation.sigma, self._camera, self._settings, guesses
        )
        if isinstance(found, str):
            return NotFound(found)
        step = found.world_from_body.numpy().copy()
        step[:3, 3] *= scale
        covariance = found.covariance.numpy().copy()
        covariance[:3] *= scale
        covariance[:, :3] *= scale
        return Located(pose @ step, covariance, found.inliers, group[0])
