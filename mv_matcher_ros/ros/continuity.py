# SPDX-License-Identifier: Apache-2.0
"""odom does not jump when the engine is reset: the new path begins where the old one ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array, Estimate
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.motion import coasting_covariance

# The motion goes on at its last velocity for so long.
_COASTING_S = 0.5


class Continuity:
    """Moves the estimates of an engine that starts at its origin to where odom was left.

    Args:
        odom_from_first_body: (4, 4) pose that the engine gives to its first body frame.
    """

    def __init__(self, odom_from_first_body: Array) -> None:
        self._engine_from_start = odom_from_first_body
        self._last: Estimate | None = None
        self._last_s = 0.0
        self.begin_again()

    def begin_again(self) -> None:
        """Start at the origin: time itself began again."""
        self._odom_from_engine: Array = np.eye(4)
        self._start_covariance: Array | None = None
        self._last = None

    def go_on(self, now_s: float) -> None:
        """Start where the body should be by now; at the origin if no pose was known.

        That is the last pose, moved at its velocity for at most `_COASTING_S`, with its covariance
        and what nobody has seen of the motion since.

        Args:
            now_s: as for `apply`.
        """
        last = self._last
        if last is None or last.odom_from_body is None:
            return
        since_s = max(now_s - self._last_s, 0.0)
        twist = np.zeros(6) if last.twist is None else last.twist
        coasts = since_s <= _COASTING_S
        step = se3.exp(torch.from_numpy(twist * since_s * coasts)).numpy()
        start = last.odom_from_body @ step
        self._odom_from_engine = start @ np.linalg.inv(self._engine_from_start)
        if last.covariance is not None:
            speeds = np.array([np.linalg.norm(twist[:3]), np.linalg.norm(twist[3:])])
            unseen = np.square(speeds * since_s * (not coasts))
            growth = np.diag(np.repeat(unseen, 3)) + coasting_covariance(since_s).numpy()
            lever = _lever(start[:3, 3] - last.odom_from_body[:3, 3])
            self._start_covariance = lever @ last.covariance @ lever.T + growth

    def in_odom(self, engine_from_body: Array) -> Array:
        """(4, 4) pose in odom of one of the engine."""
        moved: Array = self._odom_from_engine @ engine_from_body
        return moved

    def apply(self, estimate: Estimate, now_s: float) -> Estimate:
        """The estimate of the engine in odom: pose, covariance (6, 6), landmarks.

        Args:
            estimate: of the engine.
            now_s: when its images came, by a clock that nobody sets.
        """
        moved = self._moved(estimate)
        if moved.odom_from_body is not None:
            self._last, self._last_s = moved, now_s
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
        lever = _lever(pose[:3, 3] - start[:3, 3])
        inherited: Array = lever @ self._start_covariance @ lever.T
        return inherited


def _lever(offset: Array) -> Array:
    """(6, 6) what an error of a pose does to one that is (3,) away from it, in fixed axes."""
    x, y, z = offset
    lever = np.eye(6)
    lever[:3, 3:] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]
    return lever
