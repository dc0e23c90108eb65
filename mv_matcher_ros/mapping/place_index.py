# SPDX-License-Identifier: Apache-2.0
"""Exact search among the place descriptors of all keyframes: one matrix product a query.

Nothing is approximated: 100 000 keyframes are 50 MB in half precision, which a processor reads in
a few milliseconds, and an index of neighbours would have to be kept while the map changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.errors import ModelError

Rows = NDArray[np.float16] | NDArray[np.float32]
# Rows converted to single precision at a time: they stay in the processor's cache.
_BLOCK = 2048
_FIRST_ROOM = 256


@dataclass(frozen=True)
class PlaceArrays:
    """What an index holds, to be written as .npy files and given back.

    Attributes:
        descriptors: (N, S) float16 or float32, contiguous, unit length or zero.
        keys: (N,) int64 of the keyframes.
        stamps_ns: (N,) int64.
        kept: (N,) bool, False for keyframes that were removed.
    """

    descriptors: Rows
    keys: NDArray[np.int64]
    stamps_ns: NDArray[np.int64]
    kept: NDArray[np.bool_]


@dataclass(frozen=True)
class Similar:
    """The keyframes most similar to each of Q queries, best first.

    Attributes:
        positions: (Q, K) int64 in the order of appending; -1 where there are fewer.
        scores: (Q, K) float32 cosines, -inf there.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


class PlaceIndex:
    """Place descriptors of keyframes in the order of their time.

    Args:
        size: numbers of a descriptor.
        half: keep them in half precision; scores are single precision products of what is kept.
    """

    def __init__(self, size: int, half: bool = True) -> None:
        self.size, self._count = size, 0
        # Twice the error of a product of unit vectors in single precision.
        self._rounding = 2.0 * size * float(np.finfo(np.float32).eps)
        kind: Any = np.float16 if half else np.float32
        self._rows: Rows = np.zeros((0, size), kind)
        self._keys = np.zeros(0, np.int64)
        self._stamps_ns = np.zeros(0, np.int64)
        self._kept = np.zeros(0, np.bool_)

    @classmethod
    def of(cls, arrays: PlaceArrays) -> PlaceIndex:
        """The index that gave these arrays. Descriptors stay where they are until one is appended:
        `np.load(…, mmap_mode='c')` reads no more than a search needs.

        Raises:
            ModelError: arrays that do not belong together.
        """
        rows, count = arrays.descriptors, len(arrays.descriptors)
        others = (arrays.keys, arrays.stamps_ns, arrays.kept)
        fits = rows.ndim == 2 and rows.dtype in (np.float16, np.float32)
        if not fits or any(other.shape != (count,) for other in others):
            shapes = ', '.join(str(a.shape) for a in (rows, *others))
            raise ModelError(f'places: {rows.dtype} {shapes} are no descriptors, keys and stamps')
        index = cls(rows.shape[1], rows.dtype == np.float16)
        # torch shares only what may be written to; in mode 'c' nothing reaches the file.
        index._rows = rows if rows.flags.writeable and rows.flags.c_contiguous else rows.copy()
        index._keys, index._stamps_ns = arrays.keys.copy(), arrays.stamps_ns.copy()
        index._kept, index._count = arrays.kept.copy(), count
        return index

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> NDArray[np.int64]:
        """(N,) of the keyframes, by position."""
        return self._keys[: self._count]

    @property
    def stamps_ns(self) -> NDArray[np.int64]:
        """(N,) by position."""
        return self._stamps_ns[: self._count]

    def arrays(self) -> PlaceArrays:
        """All of it; views that the next `append` may leave behind."""
        n = self._count
        return PlaceArrays(self._rows[:n], self.keys, self.stamps_ns, self._kept[:n])

    def append(self, key: int, stamp_ns: int, descriptor: Tensor) -> int:
        """Add a keyframe; returns its position. An image without a place (zeros) is never found.

        Raises:
            ModelError: another width, or not finite.
        """
        row = self._queries(descriptor)
        if len(row) != 1:
            raise ModelError(f'places: one descriptor is appended at a time, not {len(row)}')
        if self._count == len(self._rows):
            self._grow(max(_FIRST_ROOM, 2 * self._count))
        position = self._count
        self._rows[position] = row[0].numpy()
        self._keys[position], self._stamps_ns[position] = key, stamp_ns
        self._kept[position] = bool(row.any())
        self._count += 1
        return position

    def remove(self, key: int) -> None:
        """A keyframe is not to be found any more; unknown keys are no fault."""
        self._kept[: self._count][self.keys == key] = False

    def search(
        self,
        queries: Tensor,
        most: int,
        stamps_ns: int | NDArray[np.int64] | None = None,
        gap_s: float = 0.0,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Similar:
        """The most similar keyframes, exactly; equal scores in the order of time.

        Args:
            queries: (S,) or (Q, S) descriptors; zeros find nothing.
            most: so many of each at most.
            stamps_ns: of the queries; keyframes within `gap_s` of them are left out.
            gap_s: see there, seconds.
            allowed: (N,) which keyframes may be found, besides those removed.

        Raises:
            ModelError: descriptors of another width, not finite, or `allowed` of another length.
        """
        wanted = self._queries(queries)
        scores = self.scores(wanted)
        scores[:, ~self._kept[: self._count]] = -np.inf
        if allowed is not None:
            if allowed.shape != (self._count,):
                raise ModelError(f'places: {allowed.shape} allowed of {self._count} keyframes')
            scores[:, ~allowed] = -np.inf
        if stamps_ns is not None:
            when = np.broadcast_to(np.asarray(stamps_ns, np.int64), (len(wanted),))
            near = np.abs(self.stamps_ns[None] - when[:, None]) < round(gap_s * 1e9)
            scores[near] = -np.inf
        scores[~wanted.any(1).numpy()] = -np.inf
        positions = np.full((len(wanted), most), -1, np.int64)
        found = np.full((len(wanted), most), -np.inf, np.float32)
        for number, row in enumerate(scores):
            best, exact = self._best(row, wanted[number].double().numpy(), most)
            positions[number, : len(best)] = best
            found[number, : len(best)] = exact
        return Similar(positions, found)

    def _best(
        self, scores: NDArray[np.float32], query: NDArray[np.float64], most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Positions and scores of the largest, best first, equal ones in order.

        Those that rounding may have moved are compared in double precision: the answer is the
        same with any number of threads, blocks and queries.
        """
        most = min(most, len(scores))
        if not most:
            return np.zeros(0, np.int64), np.zeros(0)
        least = np.partition(scores, len(scores) - most)[len(scores) - most]
        near = np.flatnonzero((scores >= least - self._rounding) & (scores > -np.inf))
        exact = self._rows[near].astype(np.float64) @ query
        order = np.lexsort((near, -exact))[:most]
        return near[order], exact[order]

    def scores(self, queries: Tensor) -> NDArray[np.float32]:
        """(Q, N) float32 products of descriptors with all keyframes, removed ones too."""
        wanted = self._queries(queries)
        out = torch.empty(len(wanted), self._count)
        rows = torch.from_numpy(self._rows[: self._count])
        if rows.dtype == torch.float32:
            return np.asarray(torch.matmul(wanted, rows.T, out=out).numpy())
        block = torch.empty(min(_BLOCK, self._count), self.size)
        for begin in range(0, self._count, _BLOCK):
            part = rows[begin : begin + _BLOCK]
            single = block[: len(part)].copy_(part)
            if len(wanted) == 1:
                torch.mv(single, wanted[0], out=out[0, begin : begin + len(part)])
            else:
                out[:, begin : begin + len(part)] = wanted @ single.T
        return np.asarray(out.numpy())

    def _queries(self, descriptors: Tensor) -> Tensor:
        """(Q, S) float32 on the CPU."""
        found = descriptors.detach().float().cpu()
        found = found[None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] != self.size:
            raise ModelError(f'places: descriptors {tuple(found.shape)}, not (Q, {self.size})')
        if not found.isfinite().all():
            raise ModelError('places: a descriptor is not finite')
        return found

    def _grow(self, room: int) -> None:
        for name in ('_rows', '_keys', '_stamps_ns', '_kept'):
            old = getattr(self, name)
            new = np.zeros((room, *old.shape[1:]), old.dtype)
            new[: self._count] = old[: self._count]
            setattr(self, name, new)
