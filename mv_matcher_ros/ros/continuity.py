# SPDX-License-Identifier: Apache-2.0
"""odom does not jump when the engine is reset: the new path begins where the old one ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mv_matcher_ros.datatypes import Array, Estimate


class Continuity:
    """Moves the estimates of an engine that starts at its origin to where odom was left.

    Args:
        odom_from_first_body: (4, 4) pose that the engine gives to its first body frame.
    """

    def __init__(self, odom_from_first_body: Array) -> None:
        self._engine_from_start = odom_from_first_body
        self._last: Estimate | None = None
        self.begin_again()

    def begin_again(self) -> None:
        """Start at the origin: time itself began again."""
        self._odom_from_engine: Array = np.eye(4)
        self._start_covariance: Array | None = None
        self._last = None

    def go_on(self) -> None:
        """Start at the last known pose, with its uncertainty; at the origin if there was none."""
        if self._last is None or self._last.odom_from_body is None:
            return
        engine_origin = np.linalg.inv(self._engine_from_start)
        self._odom_from_engine = self._last.odom_from_body @ engine_origin
        self._start_covariance = self._last.covariance

    def in_odom(self, engine_from_body: Array) -> Array:
        """(4, 4) pose in odom of one of the engine."""
        moved: Array = self._odom_from_engine @ engine_from_body
        return moved

    def apply(self, estimate: Estimate) -> Estimate:
        """The estimate of the engine in odom: pose, covariance (6, 6), landmarks."""
        moved = self._moved(estimate)
        if moved.odom_from_body is not None:
            self._last = moved
        return moved

    def _moved(self, estimate: Estimate) -> Estimate:
        shift = self._odom_from_engine
        if np.array_equal(shift, np.eye(4)):
            return estimate
        rotation = shift[:3, :3]
        pose = None if estimate.odom_from_body is None else shift @ estimate.odom_from_body
        landmarks = estimate.landmarks
        if landmarks is not None:
            landmarks = (landmarks @ rotation.T + shift[:3, 3]).astype(np.float32)
        keyframes = None if estimate.keyframes is None else shift @ estimate.keyframes
        covariance = estimate.covariance
        if covariance is not None and pose is not None:
            both = np.kron(np.eye(2), rotation)
            covariance = both @ covariance @ both.T + self._inherited(pose)
        return replace(
            estimate,
            odom_from_body=pose,
            covariance=covariance,
            landmarks=landmarks,
            keyframes=keyframes,
        )

    def _inherited(self, pose: Array) -> Array:
        """What the uncertain start adds: an error of its rotation swings the position about it."""
        if self._start_covariance is None:
            return np.zeros((6, 6))
        start = self._odom_from_engine @ self._engine_from_start
        x, y, z = pose[:3, 3] - start[:3, 3]
        lever = np.eye(6)
        lever[:3, 3:] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]
        inherited: Array = lever @ self._start_covariance @ lever.T
        return inherited
