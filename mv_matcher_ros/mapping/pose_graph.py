# SPDX-License-Identifier: Apache-2.0
"""Keyframes, odometry and loops as one graph, kept at its optimum.

A keyframe that odometry did not lose costs next to nothing: it is a variable of the optimiser only
once a loop holds it (`hubs`). Loops pass `loop_consistency` first. GTSAM holds Python's lock while
it works; that, too, is a reason to give it little to do at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.mapping.graph_update import GraphUpdate, moved_enough
from mv_matcher_ros.mapping.hubs import Hubs
from mv_matcher_ros.mapping.loop_consistency import LoopConsistency
from mv_matcher_ros.mapping.loop_cycles import Link
from mv_matcher_ros.mapping.loops import Loop, check_covariance, check_pose
from mv_matcher_ros.mapping.odometry_chain import OdometryChain, Rows
from mv_matcher_ros.mapping.pose_algebra import SE3, SIM3, split_scale, with_scale
from mv_matcher_ros.mapping.pose_graph_solver import Between, Factor, Prior, Solver
from mv_matcher_ros.mapping.segments import carry, hanging_together

# The origin is held so firmly; the first keyframe of a segment that no loop has joined, so weakly:
# in m and rad (and log scale). It keeps the graph solvable and says that nothing is known.
FIRMLY = 1e-5
WEAKLY = np.array([1e3, 1e3, 1e3, np.pi, np.pi, np.pi, 3.0])
# Loops that wait are looked at again after an optimisation, so many of the newest.
RECONSIDERED = 8
# Optimisation, and loops dropped or taken because of it, in turn.
MOST_ROUNDS = 5


class PoseGraph:
    """Poses `map_from_body` of keyframes, numbered by keys that increase.

    Covariances are in the order x y z rx ry rz (log scale last) of a perturbation on the right,
    that is in the axes of the keyframe's own body: T = T0 exp(xi). Where the graph has scales, a
    point p of a keyframe is scale * R p + t on the map, and lengths in the axes of a keyframe are
    in its own units.

    Args:
        settings: `mapping.pose_graph`.
        similarity: scales drift (Sim(3)): one camera without metric scale.

    Raises:
        MissingDependencyError: gtsam is not installed.
    """

    def __init__(self, settings: PoseGraphSettings, similarity: bool = False) -> None:
        self._settings = settings
        self._algebra = SIM3 if similarity else SE3
        self._solver = Solver(self._algebra)
        self._chain = OdometryChain(self._algebra)
        self._hubs = Hubs(self._chain)
        self._consistency = LoopConsistency(self._chain, settings, self._extent)
        self._keys: list[int] = []
        self._poses = Rows(4, 4)
        self._stretch: dict[int, int] = {}  # factor of the odometry behind a hub
        self._factor: dict[int, int] = {}  # of each loop that is worked in
        self._prior: dict[int, int] = {}  # by the keyframe that it holds
        self._group: list[int] = []  # of each segment, the first that it hangs together with
        self._origin = 0
        self._since = 0  # keyframes since loops were worked in
        self._patient: set[int] = set()  # loops that can wait
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Those that are believed."""
        return tuple(self._consistency.link(n).loop for n in self._consistency.believed())

    def add_keyframe(self, key: int, map_from_body: Array, scale: float = 1.0) -> None:
        """The first keyframe, or the first after odometry was lost: it begins a segment.

        A segment stays where it was begun, as a guess, until loops join it to another.

        Args:
            key: larger than all before.
            map_from_body: (4, 4) rigid.
            scale: of this keyframe's units on the map; 1 in a metric graph.

        Raises:
            GeometryError: not a new key, or not a pose.
        """
        self._check_new(key)
        self._check_scale(f'keyframe {key}', map_from_body, scale)
        self._chain.begin()
        self._append(key, with_scale(map_from_body, scale))
        self._solver.add_variable(len(self) - 1, self._poses.all[-1])
        self._group.append(len(self._group))
        self._hold_groups()
        self._solver.update(0)

    def add_odometry(self, a: int, b: int, a_from_b: Array, covariance: Array) -> None:
        """Keyframe `b`, seen from the newest one `a`; it takes its place in the map from there.

        Args:
            a, b: keys.
            a_from_b: (4, 4) rigid, in the units of `a`.
            covariance: (6, 6); without metric scale the drift of the scale,
                `mapping.pose_graph.log_scale_sigma`, comes on top.

        Raises:
            GeometryError: `a` is not the newest keyframe, `b` is not new, or it is no pose.
        """
        name = f'odometry {a} -> {b}'
        if not self._keys or a != self._keys[-1]:
            newest = self._keys[-1] if self._keys else 'none'
            raise GeometryError(f'{name}: the newest keyframe is {newest}')
        self._check_new(b)
        check_pose(name, a_from_b)
        covariance = check_covariance(name, covariance, 6)
        if self._algebra.similarity:
            whole = np.diag([0.0] * 6 + [self._settings.log_scale_sigma**2])
            whole[:6, :6] = covariance
            covariance = whole
        self._chain.extend(np.asarray(a_from_b, np.float64), covariance)
        self._append(b, self._poses.all[-1] @ a_from_b)

    def _check_new(self, key: int) -> None:
        if self._keys and key <= self._keys[-1]:
            raise GeometryError(
                f'keyframe {key}: keys must increase, the last is {self._keys[-1]}'
            )

    def _check_scale(self, name: str, pose: Array, scale: float) -> None:
        check_pose(name, pose, scale)
        if scale != 1.0 and not self._algebra.similarity:
            raise GeometryError(f'{name}: a metric graph has no scale, got {scale:g}')

    def _append(self, key: int, pose: Array) -> None:
        self._keys.append(key)
        self._poses.append(pose)
        self._hubs.follow()
        self._since += 1

    def add_loops(self, loops: Sequence[Loop], trusted: bool = False) -> tuple[bool, ...]:
        """Weigh loops; those that are believed take effect with `update`.

        A loop that is not believed waits, and may be taken when others agree with it.

        Args:
            loops: in the order in which they were found.
            trusted: believe them without asking, e.g. those of a graph that was saved.

        Returns:
            Of each, whether it is believed now.

        Raises:
            GeometryError: unknown keyframe, wrong covariance, or a scale in a metric graph.
        """
        links = [self._link(loop) for loop in loops]
        numbers = [self._consistency.add(link, trusted) for link in links]
        return tuple(self._consistency.is_believed(n) for n in numbers)

    def _link(self, loop: Loop) -> Link:
        """The loop between numbers, the earlier keyframe first."""
        name = f'loop {loop.a} -> {loop.b}'
        a, b = self._number(loop.a), self._number(loop.b)
        self._check_scale(name, loop.a_from_b, loop.scale)
        covariance = check_covariance(name, loop.covariance, self._algebra.size)
        a_from_b = with_scale(loop.a_from_b, loop.scale)
        if a < b:
            return Link(a, b, a_from_b, covariance, loop)
        turn = self._algebra.adjoint(a_from_b)
        return Link(b, a, self._algebra.inverse(a_from_b), turn @ covariance @ turn.T, loop)

    def _number(self, key: int) -> int:
        place = bisect_left(self._keys, key)
        if place == len(self._keys) or self._keys[place] != key:
            raise GeometryError(f'keyframe {key} is not in the graph')
        return place

    def _extent(self, number: int) -> float:
        """Half the diagonal of the map, in units of a keyframe."""
        size = np.ptp(self._poses.all[:, :3, 3], axis=0)
        scale = np.cbrt(np.linalg.det(self._poses.all[number, :3, :3]))
        return max(float(np.linalg.norm(size) / scale) / 2.0, 1e-9)

    def update(self, now: bool = False) -> GraphUpdate:
        """Work in what was added since.

        Loops that the graph hardly disagrees with wait for company
        (`mapping.pose_graph.waiting_keyframes`): each optimisation touches a good part of the
        graph, however small the correction.

        Args:
            now: do not wait.
        """
        if not (self._pending() and (now or self._due())):
            return self._report(self._poses.all, False)
        before = self._poses.all.copy()
        for _ in range(MOST_ROUNDS):
            self._work_in()
            self._consistency.reconsider(RECONSIDERED)
            self._drop_contradicted()
            if not self._pending():
                break
        self._since = 0
        self._patient.clear()
        return self._report(before, True)

    def _pending(self) -> bool:
        return self._factor.keys() != set(self._consistency.believed())

    def _due(self) -> bool:
        """Whether loops cannot wait: it is time, one was dropped, or one is off by much."""
        believed = set(self._consistency.believed())
        new = sorted(believed - self._factor.keys())
        if self._since >= self._settings.waiting_keyframes or self._factor.keys() - believed:
            return True
        new = [n for n in new if n not in self._patient]
        self._patient.update(new)  # the graph does not change until they are worked in
        size = self._algebra.size
        return bool((self._misfits(new) > size * self._settings.urgent**2).any())

    def _misfits(self, numbers: Sequence[int]) -> Array:
        """(K,) squared distance of loops from the poses, in their own sigma."""
        if not numbers:
            return np.zeros(0)
        links = [self._consistency.link(n) for n in numbers]
        poses, algebra = self._poses.all, self._algebra
        a, b = poses[[x.a for x in links]], poses[[x.b for x in links]]
        measured = np.stack([x.a_from_b for x in links])
        residual = algebra.log(algebra.inverse(a @ measured) @ b)
        covariance = np.stack([x.covariance for x in links])
        whitened = np.linalg.solve(covariance, residual[..., None])[..., 0]
        return np.asarray((residual * whitened).sum(-1))

    def _drop_contradicted(self) -> None:
        """Drop the loop that disagrees most with all the others, if it does by much."""
        believed = self._consistency.believed()
        misfits = self._misfits(believed)
        if len(misfits) and misfits.max() > self._consistency.contradiction:
            self._consistency.drop(believed[int(misfits.argmax())])

    def _work_in(self) -> None:
        """Bring the optimiser up to what is believed, and the poses up to the optimiser."""
        believed = self._consistency.believed()
        for number in sorted(self._factor.keys() - set(believed)):
            self._solver.remove(self._factor.pop(number))
        moved = self._join(sorted(self._factor), believed)
        for number in believed:
            if number not in self._factor:
                self._factor[number] = self._add_link(self._consistency.link(number))
        if moved:
            self._solver.restart(self._hubs.numbers, self._poses.all[self._hubs.numbers])
        self._solver.update(self._settings.iterations)
        self._place(self._solver.poses())

    def _join(self, kept: list[int], believed: list[int]) -> bool:
        """Carry segments to where new loops say they belong; whether any was moved."""
        segment = self._chain.segment

        def group(links: Sequence[Link]) -> list[int]:
            return hanging_together(
                len(self._group), [(segment[x.a], segment[x.b]) for x in links]
            )

        before = group([self._consistency.link(n) for n in kept])
        links = [self._consistency.link(n) for n in believed]
        after = group(links)
        moved = before != after and carry(
            self._chain, self._poses.all, before, links, before[segment[self._origin]]
        )
        if after != self._group:
            self._group = after
            self._hold_groups()
        return moved

    def _hold_groups(self) -> None:
        """A prior for each group of segments: on the origin, or on its first keyframe."""
        home = self._group[self._chain.segment[self._origin]]
        held = {self._origin if g == home else self._chain.first[g] for g in self._group}
        for k in sorted(self._prior.keys() - held):
            self._solver.remove(self._prior.pop(k))
        for k in sorted(held - self._prior.keys()):
            self._prior[k] = self._solver.add(self._held(k))

    def _held(self, k: int) -> Prior:
        size = self._algebra.size
        sigma = np.full(size, FIRMLY) if k == self._origin else WEAKLY[:size]
        return Prior(k, self._poses.all[k].copy(), np.diag(sigma**2))

    def _add_link(self, link: Link) -> int:
        for k in (link.a, link.b):
            if k not in self._hubs:
                self._add_hub(k)
        return self._solver.add(self._between(link))

    def _between(self, link: Link) -> Between:
        width = self._settings.kernel_width
        return Between(link.a, link.b, link.a_from_b, link.covariance, width or None)

    def _add_hub(self, k: int) -> None:
        before, after = self._hubs.add(k)
        self._solver.add_variable(k, self._poses.all[k].copy())
        if after is not None:
            self._solver.remove(self._stretch.pop(before))
            self._stretch[k] = self._solver.add(self._odometry(k, after))
        self._stretch[before] = self._solver.add(self._odometry(before, k))

    def _odometry(self, a: int, b: int) -> Between:
        a_from_b, covariance = self._chain.relative(np.array([a]), np.array([b]))
        return Between(a, b, a_from_b[0], covariance[0])

    def _place(self, hub_poses: Array) -> None:
        """Take over what the optimiser says; keyframes between follow their hubs."""
        numbers = np.array(self._hubs.numbers)
        moved = (hub_poses != self._poses.all[numbers]).any((1, 2))
        before = np.searchsorted(numbers, np.arange(len(self)), side='right') - 1
        after = np.minimum(before + 1, len(numbers) - 1)
        of = np.flatnonzero(moved[before] | moved[after])
        self._poses.all[of] = self._hubs.poses(hub_poses, of)

    def _report(self, before: Array, optimised: bool) -> GraphUpdate:
        believed = set(self._consistency.believed())
        taken, dropped = believed - self._reported, self._reported - believed
        self._reported = believed
        moved = np.zeros(0, dtype=np.int64)
        if optimised:
            moved = np.flatnonzero(moved_enough(before, self._poses.all, self._settings))
        (old, old_scale), (new, new_scale) = (
            split_scale(p[moved]) for p in (before, self._poses.all)
        )
        return GraphUpdate(
            optimised,
            np.array(self._keys, dtype=np.int64)[moved],
            old,
            new,
            old_scale,
            new_scale,
            tuple(self._consistency.link(n).loop for n in sorted(taken)),
            tuple(self._consistency.link(n).loop for n in sorted(dropped)),
        )

    def poses(self) -> tuple[NDArray[np.int64], Array, Array]:
        """Keys (N,), rigid map_from_body (N, 4, 4) and scales (N,) of all keyframes."""
        rigid, scale = split_scale(self._poses.all)
        return np.array(self._keys, dtype=np.int64), rigid, scale

    def pose(self, key: int) -> tuple[Array, float]:
        """Rigid map_from_body (4, 4) and scale of one keyframe.

        Raises:
            GeometryError: unknown key.
        """
        rigid, scale = split_scale(self._poses.all[self._number(key)])
        return rigid, float(scale)

    def joined(self, key: int) -> bool:
        """Whether a keyframe hangs together with the origin; else its place is a guess."""
        segment = self._chain.segment
        return self._group[segment[self._number(key)]] == self._group[segment[self._origin]]

    def optimise_fully(self) -> float:
        """Levenberg-Marquardt over every keyframe, for offline use; returns the cost.

        Beside what incremental steps leave undone it takes away the small error of `hubs`.
        """
        self.update(now=True)
        cost = 0.0
        for _ in range(MOST_ROUNDS):
            poses, cost = self._solver.optimum(self._poses.all, self.factors())
            self._poses.all[:] = poses
            self._solver.restart(self._hubs.numbers, poses[self._hubs.numbers])
            self._consistency.reconsider(RECONSIDERED)
            self._drop_contradicted()
            if not self._pending():
                break
            self._work_in()
        return cost

    def factors(self) -> list[Factor]:
        """The whole graph, every keyframe a variable numbered by its place in `poses`."""
        steps, covariances = self._chain.step.all, self._chain.step_covariance.all
        first = set(self._chain.first)
        return [
            *(self._held(k) for k in sorted(self._prior)),
            *(
                Between(k - 1, k, steps[k], covariances[k])
                for k in range(len(self))
                if k not in first
            ),
            *(self._between(self._consistency.link(n)) for n in sorted(self._factor)),
        ]

    def cost(self) -> float:
        """Half the sum of squared whitened residuals of `factors` at the poses as they are."""
        return self._solver.cost(self._poses.all, self.factors())
