# SPDX-License-Identifier: Apache-2.0
"""Records of the odometry become keyframes of a map, and their landmarks landmarks of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.mapping.keyframe import Floats, MapKeyframe, packed
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord

# A measured depth less certain than this share of it makes no landmark.
MAX_DEPTH_SIGMA = 0.15
# Keyframes after which a landmark that was not seen is forgotten, once or twice: more than any
# window has.
REMEMBERED = 60
# As little is a point uncertain at best, as a share of its distance.
MIN_SIGMA = 1e-4


class Insertion:
    """Adds keyframes to a map and remembers which landmark of the odometry is which of the map.

    Args:
        camera: the first of the rig.
        keypoints: kept of a keyframe: those that show a point first, then the strongest.
    """

    def __init__(self, camera: Camera, keypoints: int) -> None:
        self._keypoints = keypoints
        self._body_from_camera = torch.from_numpy(camera.body_from_camera.copy())
        self._segment: int | None = None
        self._forget()

    def _forget(self) -> None:
        # What the odometry still sees, and what it saw before: a landmark that it has not seen for
        # long it does not know any more.
        self._number: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._held: set[int] = set()
        self._since = 0

    def add(
        self, world: Map, record: KeyframeRecord, segment: int, pose: Array, place: Floats
    ) -> MapKeyframe:
        """A keyframe of the map.

        A landmark that the odometry follows hangs at the newest keyframe that saw it.

        Args:
            world: gets it.
            record: of the odometry.
            segment: of the map that the record's segment is.
            pose: (4, 4) similarity map_from_body.
            place: descriptor of its place.
        """
        if segment != self._segment:
            self._segment = segment
            self._forget()
        if self._since == REMEMBERED:
            self._before, self._number, self._since = self._number, {}, 0
            self._held &= set(self._before.values())
        self._since += 1
        points, spread = self._points(record)
        shows = points.isfinite().all(1)
        order = record.observation.features.scores.argsort(descending=True, stable=True)
        order = order[(~shows[order]).to(torch.int8).argsort(stable=True)]
        kept = order[: self._keypoints].sort().values
        features = record.observation.features.chosen(kept)
        number = self._landmarks(world, record.landmark[kept], shows[kept])
        held = [n for n in self._held if world.landmarks.anchor[n] >= 0]
        there = (number >= 0) & ~np.isin(number, held)
        rows = torch.from_numpy(there)
        world.landmarks.place(
            number[there], world.next_key, points[kept][rows].numpy(), spread[kept][rows].numpy()
        )
        keyframe = MapKeyframe(
            world.next_key,
            record.stamp_ns,
            segment,
            features.keypoints_xy.numpy(),
            packed(features.descriptors.numpy()),
            features.scores.numpy().astype(np.float16),
            features.sigma_px.numpy().astype(np.float16),
            record.observation.inverse_depth[kept].float().numpy(),
            record.observation.inverse_depth_sigma[kept].float().numpy(),
            number,
            record.odom_from_body.numpy(),
            place,
        )
        world.add(keyframe, pose)
        return keyframe

    def fused(self, now: Mapping[int, int]) -> None:
        """Landmarks by their numbers that have become older ones, which stay where they hang."""
        for names in (self._number, self._before):
            for own, number in names.items():
                if number in now:
                    names[own] = now[number]
                    self._held.add(now[number])

    def renumbered(self, new_number: NDArray[np.int32]) -> None:
        """Landmarks have other numbers: (L,) of each, −1 for those that have gone."""

        def renamed(names: dict[int, int]) -> dict[int, int]:
            return {own: new for own, old in names.items() if (new := int(new_number[old])) >= 0}

        self._number, self._before = renamed(self._number), renamed(self._before)
        self._held = {int(new_number[number]) for number in self._held} - {-1}

    def _landmarks(self, world: Map, own: Tensor, shows: Tensor) -> NDArray[np.int32]:
        """(K,) numbers in the map; of points that the odometry does not follow new ones."""
        number = np.full(len(own), -1, np.int32)
        for row, (name, seen) in enumerate(zip(own.tolist(), shows.tolist(), strict=True)):
            if seen and name in self._before:
                self._number.setdefault(name, self._before.pop(name))
            if seen and name in self._number:
                number[row] = self._number[name]
        # Two landmarks may have become one: the first of the two features shows it.
        _, first = np.unique(number, return_index=True)
        repeated = number >= 0
        repeated[first] = False
        number[repeated] = -1
        new = (shows.numpy() & ~repeated & (number < 0)).nonzero()[0]
        number[new] = world.landmarks.add(len(new))
        for row in new.tolist():
            if (name := int(own[row])) >= 0:
                self._number[name] = int(number[row])
        return number

    def _points(self, record: KeyframeRecord) -> tuple[Tensor, Tensor]:
        """(N, 3) points of the features in the body frame, NaN for none, and (N, 3, 3) spreads."""
        observation = record.observation
        inverse, sigma = observation.inverse_depth, observation.inverse_depth_sigma
        measured = (inverse > 0) & (sigma < MAX_DEPTH_SIGMA * inverse)
        measured &= ~record.points.isfinite().all(1)
        depth = 1.0 / torch.where(measured, inverse, 1.0)
        ray = torch.cat([observation.plane_xy, torch.ones_like(depth)[:, None]], dim=1)
        local = ray * depth[:, None]
        across = torch.zeros(len(depth), 3, 3, dtype=torch.float64)
        across[:, 0, 0] = across[:, 1, 1] = (observation.sigma * depth) ** 2
        along = (sigma * depth**2)[:, None] * ray
        local_spread = across + along[:, :, None] * along[:, None]
        turn = self._body_from_camera[:3, :3]
        points = torch.where(
            measured[:, None], se3.transform(self._body_from_camera, local), record.points
        )
        spread = torch.where(
            measured[:, None, None], turn @ local_spread @ turn.T, record.point_covariance
        )
        least = (MIN_SIGMA * points.norm(dim=1)) ** 2
        return points, spread + least[:, None, None] * torch.eye(3, dtype=torch.float64)
