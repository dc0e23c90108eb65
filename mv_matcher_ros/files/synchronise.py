# SPDX-License-Identifier: Apache-2.0
"""Pairing of streams while they come in: the pairs of `pair_stamps`, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar('T')


class PairSynchroniser(Generic[T]):
    """Finds the pairs that are each other's nearest and at most `slop_ns` apart.

    Stamps of one stream must increase. An answer waits until a later stamp of the other stream
    shows that nothing nearer can come, or until `limit` items wait.

    Args:
        slop_ns: largest difference of a pair.
        limit: most items kept of one stream; beyond it the other stream is taken to be silent.
    """

    def __init__(self, slop_ns: int, limit: int = 100) -> None:
        self._slop_ns = slop_ns
        self._limit = limit
        self._left: deque[tuple[int, T]] = deque()
        self._right: deque[tuple[int, T]] = deque()
        self._previous_left_ns: int | None = None
        self.unpaired = 0  # lefts that found no partner

    def push_left(self, stamp_ns: int, item: T) -> Iterator[tuple[int, T, T]]:
        """Take an item of the first stream; yields (left stamp, left, right) of settled pairs."""
        self._left.append((stamp_ns, item))
        yield from self._settle(ended=False)

    def push_right(self, stamp_ns: int, item: T) -> Iterator[tuple[int, T, T]]:
        """The same for the second stream."""
        self._right.append((stamp_ns, item))
        yield from self._settle(ended=False)
        while len(self._right) > self._limit:
            self._right.popleft()

    def flush(self) -> Iterator[tuple[int, T, T]]:
        """Both streams have ended: settle what is left."""
        yield from self._settle(ended=True)

    def _settle(self, ended: bool) -> Iterator[tuple[int, T, T]]:
        while self._left:
            full = len(self._left) > self._limit
            stamp_ns, item = self._left[0]
            # Rights before the nearest one are of no use to this left or any after it.
            while len(self._right) > 1 and self._right[1][0] <= stamp_ns:
                self._right.popleft()
            if not (ended or full or (self._right and self._right[-1][0] >= stamp_ns)):
                return
            nearest = min(self._right, key=lambda r: abs(r[0] - stamp_ns), default=None)
            partner_ns = nearest[0] if nearest else stamp_ns
            if not (ended or full or self._left[-1][0] >= partner_ns):
                return
            others = [s for s, _ in self._left if s != stamp_ns]
            if self._previous_left_ns is not None:
                others.append(self._previous_left_ns)
            self._left.popleft()
            self._previous_left_ns = stamp_ns
            distance = abs(partner_ns - stamp_ns)
            # On a tie the earlier left wins, as in `pair_stamps`.
            beaten = any((abs(s - partner_ns), s) < (distance, stamp_ns) for s in others)
            if nearest is None or distance > self._slop_ns or beaten:
                self.unpaired += 1
            else:
                yield stamp_ns, item, nearest[1]


class Synchroniser(Generic[T]):
    """Items of one stream, each with its partners in all the others.

    Args:
        slop_ns, limit: as for `PairSynchroniser`.
        others: how many other streams there are, one at least.
    """

    def __init__(self, slop_ns: int, others: int, limit: int = 100) -> None:
        self._pairs = [PairSynchroniser[T](slop_ns, limit) for _ in range(others)]
        self._settled: list[deque[tuple[int, T, T]]] = [deque() for _ in self._pairs]
        self._limit = limit
        self._taken = self._whole = 0
        self._ended = False

    def push_first(self, stamp_ns: int, item: T) -> Iterator[tuple[int, T, tuple[T, ...]]]:
        """Take an item of the first stream; yields (stamp, first, others) of settled ones."""
        self._taken += 1
        for number, pairs in enumerate(self._pairs):
            self._keep(number, pairs.push_left(stamp_ns, item))
        yield from self._complete()

    def push_other(
        self, number: int, stamp_ns: int, item: T
    ) -> Iterator[tuple[int, T, tuple[T, ...]]]:
        """The same for one of the other streams."""
        self._keep(number, self._pairs[number].push_right(stamp_ns, item))
        yield from self._complete()

    def flush(self) -> Iterator[tuple[int, T, tuple[T, ...]]]:
        """All streams have ended: settle what is left."""
        for number, pairs in enumerate(self._pairs):
            self._keep(number, pairs.flush())
        yield from self._complete()
        self._ended = True

    @property
    def unpaired(self) -> int:
        """Items of the first stream that found no partner in another one."""
        if self._ended:
            return self._taken - self._whole
        return max(pairs.unpaired for pairs in self._pairs)

    def _keep(self, number: int, settled: Iterator[tuple[int, T, T]]) -> None:
        kept = self._settled[number]
        kept.extend(settled)
        while len(kept) > self._limit:  # another stream is silent
            kept.popleft()

    def _complete(self) -> Iterator[tuple[int, T, tuple[T, ...]]]:
        while all(self._settled):
            heads = [settled[0] for settled in self._settled]
            newest = max(stamp_ns for stamp_ns, _, _ in heads)
            if all(stamp_ns == newest for stamp_ns, _, _ in heads):
                for settled in self._settled:
                    settled.popleft()
                self._whole += 1
                yield newest, heads[0][1], tuple(other for _, _, other in heads)
                continue
            for settled in self._settled:  # what is older lacks a partner in another stream
                if settled[0][0] < newest:
                    settled.popleft()
