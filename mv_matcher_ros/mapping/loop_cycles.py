# SPDX-License-Identifier: Apache-2.0
"""Ways round: what odometry and other loops say of a loop.

A loop, and a way back from its one end to the other, must give the identity up to what both are
known to. The way may go along another loop (the cycles of pairwise consistency: Mangelson et al.,
Pairwise consistent measurement set maximization, ICRA 2018) or take the tightest path through
odometry and all loops that are believed.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.odometry_chain import OdometryChain


@dataclass(frozen=True)
class Link:
    """A loop between keyframes by number, a before b.

    Attributes:
        a, b: numbers of the keyframes in the chain.
        a_from_b: (4, 4), with scale where the graph has it.
        covariance: (n, n) of a perturbation on the right.
        loop: the same as it was given.
    """

    a: int
    b: int
    a_from_b: Array
    covariance: Array
    loop: Loop


class Misfit(NamedTuple):
    """How far ways round are from closing.

    Attributes:
        squared: (K,) squared Mahalanobis distance from the identity.
        covariance: (K, n, n) that it was measured with: how much a false loop might hide in.
    """

    squared: Array
    covariance: Array


def pair_misfit(chain: OdometryChain, link: Link, others: list[Link]) -> Misfit:
    """Cycles of a loop with each of several others between the same two segments.

    The cycle a → b → other's b → other's a → a; every error is carried to its end.
    """
    algebra = chain.algebra
    a, b = np.array([o.a for o in others]), np.array([o.b for o in others])
    along_b, spread_b = chain.relative(np.full(len(others), link.b), b)
    along_a, spread_a = chain.relative(a, np.full(len(others), link.a))
    back = algebra.inverse(np.stack([o.a_from_b for o in others])) @ along_a
    rest = along_b @ back
    ahead = algebra.adjoint(algebra.inverse(np.stack([rest, back])))
    spread = np.stack([o.covariance for o in others]) + spread_b
    covariance = (
        ahead[0] @ link.covariance @ np.swapaxes(ahead[0], 1, 2)
        + ahead[1] @ spread @ np.swapaxes(ahead[1], 1, 2)
        + spread_a
    )
    return _misfit(algebra.log(link.a_from_b @ rest), covariance)


def _misfit(residual: Array, covariance: Array) -> Misfit:
    whitened = np.linalg.solve(covariance, residual[..., None])[..., 0]
    return Misfit((residual * whitened).sum(-1), covariance)


class Paths:
    """The graph of odometry and believed loops, for the tightest way between two keyframes."""

    def __init__(self, chain: OdometryChain) -> None:
        self._chain = chain
        self._ends: list[int] = []
        # Loops that touch a keyframe, by their number: the other end, and how long the way is.
        self._at: dict[int, dict[int, tuple[int, float]]] = {}
        self._links: dict[int, Link] = {}

    def add(self, number: int, link: Link) -> None:
        """Believe a loop."""
        self._links[number] = link
        length = self._chain.size_of(link.covariance)
        for k, other in ((link.a, link.b), (link.b, link.a)):
            if k not in self._at:
                insort(self._ends, k)
            self._at.setdefault(k, {})[number] = (other, length)

    def remove(self, number: int) -> None:
        """Believe it no more."""
        link = self._links.pop(number)
        for k in (link.a, link.b):
            del self._at[k][number]
            if not self._at[k]:
                del self._at[k]
                self._ends.remove(k)

    def tightest(self, start: int, goal: int) -> list[tuple[int, int, int | None]] | None:
        """Steps (from, to, number of the loop or None for odometry); None where there is no way.

        Ways are ranked by `OdometryChain.size_of` their covariances, which adds up.
        """
        best = {start: 0.0}
        came: dict[int, tuple[int, int | None]] = {}
        queue = [(0.0, start)]
        while queue:
            length, at = heapq.heappop(queue)
            if at == goal:
                return self._walked(came, start, goal)
            if length > best[at]:
                continue
            for to, step, number in self._steps(at, goal):
                if length + step < best.get(to, np.inf):
                    best[to] = length + step
                    came[to] = (at, number)
                    heapq.heappush(queue, (length + step, to))
        return None

    def _steps(self, at: int, goal: int) -> list[tuple[int, float, int | None]]:
        chain = self._chain
        place = bisect_left(self._ends, at)
        here = at in self._at
        beside = (
            self._ends[max(place - 1, 0) : place] + self._ends[place + here : place + here + 1]
        )
        segment = chain.segment[at]
        found: list[tuple[int, float, int | None]] = [
            (k, chain.length(at, k), None) for k in (*beside, goal) if chain.segment[k] == segment
        ]
        found += [(to, length, number) for number, (to, length) in self._at.get(at, {}).items()]
        return found

    @staticmethod
    def _walked(
        came: dict[int, tuple[int, int | None]], start: int, goal: int
    ) -> list[tuple[int, int, int | None]]:
        steps = []
        while goal != start:
            before, number = came[goal]
            steps.append((before, goal, number))
            goal = before
        return steps[::-1]

    def misfit(self, link: Link, steps: list[tuple[int, int, int | None]]) -> Misfit:
        """Of a loop and a way from its end b to its end a."""
        chain, algebra = self._chain, self._chain.algebra
        begin, end = (np.array([step[i] for step in steps], dtype=np.int64) for i in (0, 1))
        loops = [None if number is None else self._links[number] for _, _, number in steps]
        # Placeholders where a loop is walked: from a keyframe to itself.
        moves, spreads = chain.relative(
            begin, np.where([x is not None for x in loops], begin, end)
        )
        for i, other in enumerate(loops):
            if other is None:
                continue
            if other.a == begin[i]:
                moves[i], spreads[i] = other.a_from_b, other.covariance
            else:
                turn = algebra.adjoint(other.a_from_b)
                moves[i] = algebra.inverse(other.a_from_b)
                spreads[i] = turn @ other.covariance @ turn.T
        rest = np.tile(np.eye(4), (len(steps) + 1, 1, 1))  # from the end of each step on
        for i in range(len(steps) - 1, -1, -1):
            rest[i] = moves[i] @ rest[i + 1]
        ahead = algebra.adjoint(algebra.inverse(rest))
        every = np.concatenate([link.covariance[None], spreads])
        covariance = (ahead @ every @ np.swapaxes(ahead, 1, 2)).sum(0)
        return _misfit(algebra.log(link.a_from_b @ rest[0])[None], covariance[None])
