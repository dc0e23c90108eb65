# SPDX-License-Identifier: Apache-2.0
"""Keyframes that the optimiser sees, and where the ones between them lie.

Between two keyframes that loops hold, odometry is a chain of independent steps: for the optimiser
one step with the sum of their covariances says the same, and given both ends the best places of
those between follow in closed form (the conditional mean of a Gaussian chain). So only the ends of
loops and the first keyframe of each segment are variables: hubs. 5 000 keyframes with 300 loops
have 600 hubs, and closing a loop takes a fraction of the time, the result being the same to second
order in how far the chain is bent (`bench graph` compares the costs).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.odometry_chain import Indices, OdometryChain, Rows


@dataclass(frozen=True)
class Bridge:
    """How a keyframe moves with the hubs around it: xi = of_before xi_before + of_after xi_after.

    Attributes:
        before, after: numbers of the hubs; `after` is None behind the last hub of a segment.
        of_before, of_after: (n, n), perturbations on the right.
        rest: (n, n) covariance of what the hubs do not say.
    """

    before: int
    after: int | None
    of_before: Array
    of_after: Array
    rest: Array


class Hubs:
    """The hubs of a chain, in order."""

    def __init__(self, chain: OdometryChain) -> None:
        self._chain = chain
        self.numbers: list[int] = []
        size = chain.algebra.size
        # Of each keyframe: its pose from the hub before it, and its share of that stretch's bend.
        self._local, self._share = Rows(4, 4), Rows(size, size)

    def follow(self) -> None:
        """Take note of keyframes that are new in the chain; firsts of segments become hubs."""
        size = self._chain.algebra.size
        for k in range(len(self._local), len(self._chain)):
            if k == self._chain.first[self._chain.segment[k]]:
                self.numbers.append(k)
            local, _ = self._chain.relative(np.array([self.numbers[-1]]), np.array([k]))
            self._local.append(local[0])
            self._share.append(np.zeros((size, size)))

    def around(self, k: int) -> tuple[int, int | None]:
        """The hubs before and after a keyframe that is none, in its segment."""
        place = bisect_left(self.numbers, k)
        after = self.numbers[place] if place < len(self.numbers) else None
        if after is not None and self._chain.segment[after] != self._chain.segment[k]:
            after = None
        return self.numbers[place - 1], after

    def __contains__(self, k: int) -> bool:
        place = bisect_left(self.numbers, k)
        return place < len(self.numbers) and self.numbers[place] == k

    def add(self, k: int) -> tuple[int, int | None]:
        """Make a keyframe a hub; returns the hubs around it."""
        before, after = self.around(k)
        insort(self.numbers, k)
        self._measure(before, k)
        if after is not None:
            self._measure(k, after)
        else:
            rest = np.arange(k, self._end_of(k))
            self._local.all[rest], _ = self._chain.relative(np.full(len(rest), k), rest)
        return before, after

    def _end_of(self, k: int) -> int:
        segment = self._chain.segment[k] + 1
        return self._chain.first[segment] if segment < len(self._chain.first) else len(self._local)

    def _measure(self, before: int, after: int) -> None:
        """Local poses and shares of the keyframes of one stretch, `after` not included.

        With C_k the covariance of k from `before` as a perturbation on the left, k takes
        C_k C_after^-1 of what the end is off.
        """
        inner = np.arange(before, after + 1)
        local, right = self._chain.relative(np.full(len(inner), before), inner)
        forward = self._chain.algebra.adjoint(local)
        left = forward @ right @ np.swapaxes(forward, 1, 2)
        stacked = np.concatenate(list(left[:-1]), 1)  # one solve for all: both are symmetric
        solved = np.linalg.solve(left[-1], stacked).reshape(len(stacked), -1, len(stacked))
        self._local.all[before:after] = local[:-1]
        self._share.all[before:after] = solved.transpose(1, 2, 0)

    def poses(self, hub_poses: Array, of: Indices) -> Array:
        """(K, 4, 4) poses of keyframes `of`, given those of all hubs (H, 4, 4), in order."""
        algebra, numbers = self._chain.algebra, np.array(self.numbers)
        at = np.searchsorted(numbers, of, side='right') - 1
        poses = hub_poses[at] @ self._local.all[of]
        segment = np.array(self._chain.segment)
        inside = np.flatnonzero(at + 1 < len(numbers))
        inside = inside[segment[numbers[at[inside] + 1]] == segment[numbers[at[inside]]]]
        if len(inside) == 0:
            return poses
        stretch, which = np.unique(at[inside], return_inverse=True)
        before, after = hub_poses[stretch], hub_poses[stretch + 1]
        measured, _ = self._chain.relative(numbers[stretch], numbers[stretch + 1])
        off = algebra.log(algebra.inverse(before) @ after @ algebra.inverse(measured))
        bend = np.einsum('kij,kj->ki', self._share.all[of[inside]], off[which])
        poses[inside] = before[which] @ algebra.exp(bend) @ self._local.all[of[inside]]
        return poses

    def bridge(self, k: int, before: int | None = None) -> Bridge:
        """How a keyframe that is no hub moves with those around it.

        Args:
            k: the keyframe.
            before: a keyframe to take for the hub before it.
        """
        chain, algebra = self._chain, self._chain.algebra
        hub, after = self.around(k)
        before = hub if before is None else before
        ends = np.array([before, k if after is None else after])
        from_k, _ = chain.relative(ends, np.array([k, k]))
        to_ends = algebra.adjoint(from_k)  # k's tangent vectors at both ends
        of_before = np.linalg.inv(to_ends[0])
        _, near = chain.relative(ends[:1], np.array([k]))
        if after is None:
            return Bridge(before, None, of_before, np.zeros_like(of_before), near[0])
        _, far = chain.relative(np.array([k]), ends[1:])
        trust = np.linalg.inv(near[0])
        pull = to_ends[1].T @ np.linalg.inv(far[0])
        rest = np.linalg.inv(trust + pull @ to_ends[1])
        return Bridge(before, after, rest @ trust @ of_before, rest @ pull, rest)
