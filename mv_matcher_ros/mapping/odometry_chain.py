# SPDX-License-Identifier: Apache-2.0
"""What odometry alone says: segments of keyframes, and how well any two of one know each other.

The relative pose of two keyframes is a product of steps, and its covariance the sum of theirs seen
from one frame. Both are kept summed up from the start of the segment, so that any pair costs the
same however far apart: with P the pose from the start and S the covariance of P as a perturbation
on the left, the pose of j from i is P_i^-1 P_j and its covariance, as a perturbation on the right,
Ad(P_j^-1) (S_j - S_i) Ad(P_j^-1)^T.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.pose_algebra import Algebra

Indices = NDArray[np.int64]


class Rows:
    """An array that grows by rows; `Rows.all` is a view of those there are."""

    def __init__(self, *shape: int) -> None:
        self._data = np.empty((64, *shape))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def all(self) -> Array:
        return self._data[: self._count]

    def append(self, row: Array | float) -> None:
        if self._count == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self._count] = row
        self._count += 1


class OdometryChain:
    """Segments of keyframes, numbered from 0 in the order in which they came.

    Args:
        algebra: SE(3) or Sim(3).
    """

    def __init__(self, algebra: Algebra) -> None:
        self.algebra = algebra
        self.segment: list[int] = []
        self.first: list[int] = []  # of each segment
        size = algebra.size
        self.step, self.step_covariance = Rows(4, 4), Rows(size, size)
        self._pose, self._inverse = Rows(4, 4), Rows(4, 4)
        self._spread = Rows(size, size)
        self._back = Rows(size, size)  # adjoint of the inverse of each pose
        self._length = Rows()
        self._unit: Array | None = None

    def __len__(self) -> int:
        return len(self.segment)

    def begin(self) -> int:
        """A keyframe of which odometry knows nothing begins a segment; returns its number."""
        self.first.append(len(self))
        size = self.algebra.size
        self.step.append(np.eye(4))
        self.step_covariance.append(np.zeros((size, size)))
        length = self._length.all[-1] if len(self) else 0.0
        self._append(len(self.first) - 1, np.eye(4), np.zeros((size, size)), length)
        return len(self) - 1

    def extend(self, step: Array, covariance: Array) -> int:
        """A keyframe seen from the one before it; returns its number.

        Args:
            step: (4, 4) before_from_new.
            covariance: (n, n) of `step` as a perturbation on the right.
        """
        self.step.append(step)
        self.step_covariance.append(covariance)
        pose = self._pose.all[-1] @ step
        forward = self.algebra.adjoint(pose)
        spread = self._spread.all[-1] + forward @ covariance @ forward.T
        length = self._length.all[-1] + self.size_of(covariance)
        self._append(self.segment[-1], pose, spread, length)
        return len(self) - 1

    def _append(self, segment: int, pose: Array, spread: Array, length: float) -> None:
        self.segment.append(segment)
        inverse = self.algebra.inverse(pose)
        self._pose.append(pose)
        self._inverse.append(inverse)
        self._spread.append(0.5 * (spread + spread.T))
        self._back.append(self.algebra.adjoint(inverse))
        self._length.append(length)

    def size_of(self, covariance: Array) -> float:
        """A covariance as a number that adds up along a way: its variances, in the first step's.

        It only ranks ways (which is the tightest); their covariances are composed exactly.
        """
        variances = np.array([np.trace(covariance[:3, :3]), np.trace(covariance[3:6, 3:6])])
        if self._unit is None:
            self._unit = variances
        return float((variances / self._unit).sum())

    def length(self, i: int, j: int) -> float:
        """`size_of` what lies between two keyframes of a segment."""
        return float(abs(self._length.all[j] - self._length.all[i]))

    def lengths(self) -> Array:
        """(N,) `size_of` everything up to each keyframe; differences count within segments."""
        return self._length.all

    def relative(self, i: Indices, j: Indices) -> tuple[Array, Array]:
        """Pose of `j` from `i`, pairs of one segment each, in either order.

        Returns:
            (K, 4, 4) i_from_j and (K, n, n) covariances of a perturbation on the right.
        """
        i_from_j = self._inverse.all[i] @ self._pose.all[j]
        spread = self._spread.all[j] - self._spread.all[i]
        # Against time it is the covariance of the same steps.
        spread = np.where((np.asarray(j) < np.asarray(i))[:, None, None], -spread, spread)
        back = self._back.all[j]
        covariance = back @ spread @ np.swapaxes(back, 1, 2)
        return i_from_j, 0.5 * (covariance + np.swapaxes(covariance, 1, 2))
