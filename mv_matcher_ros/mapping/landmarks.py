# SPDX-License-Identifier: Apache-2.0
"""Points of a map: each hangs at a keyframe, and moves with it when the graph does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array

Floats = NDArray[np.float32]
# Elements of a symmetric 3 x 3 matrix that are kept: xx xy xz yy yz zz.
ROWS, COLUMNS = np.triu_indices(3)


@dataclass
class Landmarks:
    """Rows of parallel arrays with room to grow; a landmark's number never changes.

    Attributes:
        anchor: (L,) int32 key of the keyframe it hangs at, −1 where it is gone.
        position: (L, 3) float32 in the body frame of the anchor, in its units.
        covariance: (L, 6) float32 of the position given that pose: xx xy xz yy yz zz.
        seen: (L,) int32 by how many keyframes.
    """

    anchor: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    position: Floats = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    covariance: Floats = field(default_factory=lambda: np.zeros((0, 6), np.float32))
    seen: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        self._count = len(self.anchor)

    def __len__(self) -> int:
        return self._count

    def add(self, count: int) -> NDArray[np.int32]:
        """Numbers of so many new ones, that hang nowhere yet."""
        first, self._count = self._count, self._count + count
        if self._count > len(self.anchor):
            room = max(2 * len(self.anchor), self._count, 1024)
            more = room - len(self.anchor)
            self.anchor = np.concatenate([self.anchor, np.full(more, -1, np.int32)])
            self.seen = np.concatenate([self.seen, np.zeros(more, np.int32)])
            self.position = _with_rows(self.position, more)
            self.covariance = _with_rows(self.covariance, more)
        return np.arange(first, self._count, dtype=np.int32)

    def place(self, number: NDArray[np.int32], key: int, position: Array, spread: Array) -> None:
        """Hang them at a keyframe: (K,) numbers, (K, 3) in its body frame, (K, 3, 3)."""
        self.anchor[number] = key
        self.position[number] = position
        self.covariance[number] = spread[:, ROWS, COLUMNS]

    def spread(self, number: NDArray[np.int32]) -> Array:
        """(K, 3, 3) float64 covariances of the positions."""
        packed = self.covariance[number].astype(np.float64)
        full = np.empty((len(number), 3, 3))
        full[:, ROWS, COLUMNS] = packed
        full[:, COLUMNS, ROWS] = packed
        return full

    def compact(self) -> NDArray[np.int32]:
        """Let go of those that are gone; returns (L,) the new number of each, −1 for those."""
        kept = self.anchor[: self._count] >= 0
        number = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        rows = kept.nonzero()[0]
        self.anchor, self.seen = self.anchor[rows], self.seen[rows]
        self.position, self.covariance = self.position[rows], self.covariance[rows]
        self._count = len(rows)
        return number


def _with_rows(values: Floats, more: int) -> Floats:
    return np.concatenate([values, np.full((more, values.shape[1]), np.nan, np.float32)])
