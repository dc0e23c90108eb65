# SPDX-License-Identifier: Apache-2.0
"""The graph as it is solved: poses of all keyframes from hubs, odometry between them, and loops.

Everything here goes by numbers of keyframes and takes every loop it is given; `pose_graph` knows
keys and decides on loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.graph_covariance import covariance_of, joint_covariance
from mv_matcher_ros.mapping.hubs import Hubs
from mv_matcher_ros.mapping.loop_cycles import Link
from mv_matcher_ros.mapping.odometry_chain import OdometryChain, Rows
from mv_matcher_ros.mapping.pose_algebra import Algebra
from mv_matcher_ros.mapping.pose_graph_solver import Between, Factor, Prior, Solver
from mv_matcher_ros.mapping.segments import carry, hanging_together

# The origin is held so firmly; the first keyframe of a segment that no loop has joined, so weakly:
# in m, rad and log scale. It keeps the graph solvable and says that nothing is known.
FIRMLY = 1e-5
WEAKLY = np.array([1e3, 1e3, 1e3, np.pi, np.pi, np.pi, 3.0])
# Hubs that move by less, as a share of the map, leave the keyframes behind them where they are.
STILL = 1e-6


class CondensedGraph:
    """Poses of keyframes, kept at the optimum of odometry and loops.

    Args:
        settings: `mapping.pose_graph`.
        algebra: SE(3) or Sim(3).

    Attributes:
        chain: odometry.
        origin: number of the keyframe that is held.
        group: of each segment, the first one that it hangs together with.
    """

    def __init__(self, settings: PoseGraphSettings, algebra: Algebra) -> None:
        self._settings = settings
        self._algebra = algebra
        self._solver = Solver(algebra)
        self.chain = OdometryChain(algebra)
        self._hubs = Hubs(self.chain)
        self._poses = Rows(4, 4)
        self._stretch: dict[int, int] = {}  # factor of the odometry behind a hub
        self._links: dict[int, Link] = {}
        self._factor: dict[int, int] = {}  # of each link
        self._prior: dict[int, int] = {}  # by the keyframe that it holds
        self.group: list[int] = []
        self.origin = 0

    @property
    def poses(self) -> Array:
        """(N, 4, 4) [[s R, t], [0, 1]] of all keyframes; a view."""
        return self._poses.all

    @property
    def links(self) -> Mapping[int, Link]:
        """Loops that are worked in, by number."""
        return self._links

    def begin(self, pose: Array) -> None:
        """A keyframe begins a segment, at a pose that is a guess."""
        self.chain.begin()
        self._poses.append(pose)
        self._hubs.follow()
        self._solver.add_variable(len(self.poses) - 1, pose)
        self.group.append(len(self.group))
        self._hold_groups()
        self._solver.update(0)

    def extend(self, step: Array, covariance: Array) -> None:
        """A keyframe is seen from the newest one."""
        self.chain.extend(step, covariance)
        self._poses.append(self.poses[-1] @ step)
        self._hubs.follow()

    def extent(self, number: int) -> float:
        """Half the diagonal of the map, in units of a keyframe."""
        size = np.linalg.norm(np.ptp(self.poses[:, :3, 3], axis=0))
        scale = np.linalg.norm(self.poses[number, :3, :3]) / np.sqrt(3.0)
        return max(float(size / scale) / 2.0, 1e-9)

    def work_in(self, links: Mapping[int, Link]) -> None:
        """Make these the loops of the graph, and the poses those that fit best.

        Args:
            links: by number; a number that is known already means the same loop.
        """
        for number in sorted(self._links.keys() - links.keys()):
            self._solver.remove(self._factor.pop(number))
            del self._links[number]
        moved = self._join(list(self._links.values()), list(links.values()))
        for number in sorted(links.keys() - self._links.keys()):
            link = self._links[number] = links[number]
            self._make_hubs(link.a, link.b)
            self._factor[number] = self._solver.add(self._between(link))
        if moved:
            self._restart()
        self._solver.update(self._settings.iterations)
        self._place(self._solver.poses())

    def _join(self, kept: Sequence[Link], links: Sequence[Link]) -> bool:
        """Carry segments to where new loops say they belong; whether any was moved."""
        segment = self.chain.segment

        def group(by: Sequence[Link]) -> list[int]:
            pairs = [(segment[x.a], segment[x.b]) for x in by]
            return hanging_together(len(self.group), pairs)

        before, after = group(kept), group(links)
        home = before[segment[self.origin]]
        moved = before != after and carry(self.chain, self.poses, before, links, home)
        if after != self.group:
            self.group = after
            self._hold_groups()
        return moved

    def _hold_groups(self) -> None:
        """A prior for each group of segments: on the origin, or on its first keyframe."""
        home = self.group[self.chain.segment[self.origin]]
        held = {self.origin if g == home else self.chain.first[g] for g in self.group}
        for k in sorted(self._prior.keys() - held):
            self._solver.remove(self._prior.pop(k))
        for k in sorted(held - self._prior.keys()):
            self._prior[k] = self._solver.add(self._held(k))

    def _held(self, k: int) -> Prior:
        size = self._algebra.size
        sigma = np.full(size, FIRMLY) if k == self.origin else WEAKLY[:size]
        return Prior(k, self.poses[k].copy(), np.diag(sigma**2))

    def _between(self, link: Link) -> Between:
        width = self._settings.kernel_width
        return Between(link.a, link.b, link.a_from_b, link.covariance, width or None)

    def _make_hubs(self, *numbers: int) -> None:
        for k in numbers:
            if k in self._hubs:
                continue
            before, after = self._hubs.add(k)
            self._solver.add_variable(k, self.poses[k].copy())
            if after is not None:
                self._solver.remove(self._stretch.pop(before))
                self._stretch[k] = self._solver.add(self._odometry(k, after))
            self._stretch[before] = self._solver.add(self._odometry(before, k))

    def _odometry(self, a: int, b: int) -> Between:
        a_from_b, covariance = self.chain.relative(np.array([a]), np.array([b]))
        return Between(a, b, a_from_b[0], covariance[0])

    def _restart(self) -> None:
        self._solver.restart(self._hubs.numbers, self.poses[self._hubs.numbers])

    def _place(self, hub_poses: Array) -> None:
        """Take over what the optimiser says; keyframes between follow their hubs."""
        numbers = np.array(self._hubs.numbers)
        still = STILL * self.extent(self.origin)
        moved = (np.abs(hub_poses - self.poses[numbers]) > still).any((1, 2))
        before = np.searchsorted(numbers, np.arange(len(self.poses)), side='right') - 1
        after = np.minimum(before + 1, len(numbers) - 1)
        of = np.flatnonzero(moved[before] | moved[after])
        self.poses[of] = self._hubs.poses(hub_poses, of)

    def misfits(self, links: Sequence[Link]) -> Array:
        """(K,) squared distance of loops from the poses, in their own sigma."""
        if not links:
            return np.zeros(0)
        algebra = self._algebra
        a, b = self.poses[[x.a for x in links]], self.poses[[x.b for x in links]]
        measured = np.stack([x.a_from_b for x in links])
        residual = algebra.log(algebra.inverse(a @ measured) @ b)
        covariance = np.stack([x.covariance for x in links])
        whitened = np.linalg.solve(covariance, residual[..., None])[..., 0]
        return np.asarray((residual * whitened).sum(-1))

    def covariance(self, number: int) -> Array:
        """(n, n) of a keyframe's pose, a perturbation on the right."""
        return covariance_of(self._hubs, self._solver.joint, self._algebra.size, number)

    def relative_covariance(self, i: int, j: int) -> Array:
        """(n, n) of the pose of `j` seen from `i`, a perturbation on the right."""
        size, algebra = self._algebra.size, self._algebra
        if i == j:
            return np.zeros((size, size))
        both = joint_covariance(self._hubs, self._solver.joint, size, min(i, j), max(i, j))
        j_from_i = algebra.inverse(self.poses[j]) @ self.poses[i]
        parts = (-algebra.adjoint(j_from_i), np.eye(size))
        moves = np.hstack(parts if i < j else parts[::-1])
        return np.asarray(moves @ both @ moves.T)

    def hold(self, number: int, pose: Array) -> None:
        """Hold a keyframe at a pose; all that hangs together with it moves along."""
        segment = self.chain.segment
        correction = pose @ self._algebra.inverse(self.poses[number])
        along = np.array(self.group)[segment] == self.group[segment[number]]
        self.poses[along] = correction @ self.poses[along]
        self._make_hubs(number)
        self.origin = number
        for handle in self._prior.values():
            self._solver.remove(handle)
        self._prior = {}
        self._hold_groups()
        self._restart()

    def optimise_fully(self) -> float:
        """Levenberg-Marquardt with every keyframe as a variable; returns the cost."""
        poses, cost = self._solver.optimum(self.poses, self.factors())
        self.poses[:] = poses
        self._restart()
        return cost

    def steps(self) -> Iterator[tuple[int, Array, Array]]:
        """Odometry as (number, pose from the keyframe before, covariance)."""
        first = set(self.chain.first)
        steps, covariances = self.chain.step.all, self.chain.step_covariance.all
        return ((k, steps[k], covariances[k]) for k in range(len(self.chain)) if k not in first)

    def factors(self) -> list[Factor]:
        """The whole graph, every keyframe a variable."""
        return [
            *(self._held(k) for k in sorted(self._prior)),
            *(Between(k - 1, k, step, covariance) for k, step, covariance in self.steps()),
            *(self._between(link) for link in self._links.values()),
        ]

    def cost(self) -> float:
        """Half the sum of squared whitened residuals of `factors`, robust kernels applied."""
        return self._solver.cost(self.poses, self.factors())
