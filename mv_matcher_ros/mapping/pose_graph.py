# SPDX-License-Identifier: Apache-2.0
"""Keyframes, odometry and loops as one graph, kept at its optimum.

A keyframe that odometry did not lose costs next to nothing: it is a variable of the optimiser only
once a loop holds it (`hubs`). Loops pass `loop_consistency` first. GTSAM holds Python's lock while
it works: another thread waits as long as one optimisation takes, which is a reason to keep those
few and short.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.mapping.carried_loops import carried
from mv_matcher_ros.mapping.condensed_graph import CondensedGraph
from mv_matcher_ros.mapping.graph_update import GraphUpdate, moved_enough
from mv_matcher_ros.mapping.loop_consistency import LoopConsistency
from mv_matcher_ros.mapping.loop_cycles import Link
from mv_matcher_ros.mapping.loops import Loop, check_covariance, check_pose
from mv_matcher_ros.mapping.pose_algebra import SE3, SIM3, split_scale, with_scale

# Loops that wait are looked at again after an optimisation, so many each time.
RECONSIDERED = 8
# Optimisation, and loops dropped or taken because of it, in turn.
MOST_ROUNDS = 5


class PoseGraph:
    """Poses `map_from_body` of keyframes, which are named by keys that increase.

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
        self._graph = CondensedGraph(settings, self._algebra)
        self._loops = LoopConsistency(self._graph.chain, settings, self._graph.extent)
        self._keys: list[int] = []
        self._since = 0  # keyframes since loops were worked in
        self._patient: set[int] = set()  # loops that were found able to wait
        self._reported: dict[int, Loop] = {}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def similarity(self) -> bool:
        """Whether keyframes have scales."""
        return self._algebra.similarity

    @property
    def origin(self) -> int:
        """Key of the keyframe that the others are placed from.

        Raises:
            GeometryError: there is no keyframe.
        """
        if not self._keys:
            raise GeometryError('the pose graph is empty')
        return self._keys[self._graph.origin]

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Those that are believed."""
        return tuple(self._loops.link(n).loop for n in sorted(self._loops.believed))

    def loops_among(self, keys: Sequence[int]) -> list[Loop]:
        """Loops that are believed, as they are between keyframes that stay when others go.

        An end that is not one of `keys` is replaced by the nearest that is, by the odometry in
        between, whose covariance adds up. Of several loops between the same two the tightest is
        given: they rest on the same ways.

        Args:
            keys: of keyframes of the graph, in order; ends of a segment without one are lost.
        """
        kept = np.array([self._number(key) for key in keys], dtype=np.int64)
        links = [self._loops.link(n) for n in sorted(self._loops.believed)]
        found = []
        for link in carried(self._graph.chain, links, kept):
            pose, scale = self._parts(link.a_from_b)
            found.append(
                Loop(self._keys[link.a], self._keys[link.b], pose, link.covariance, scale)
            )
        return found

    def _parts(self, transform: Array) -> tuple[Array, float]:
        """Rigid (4, 4) and scale; exactly 1 in a metric graph, whatever rounding has left."""
        pose, scale = split_scale(transform)
        return pose, float(scale) if self.similarity else 1.0

    def add_keyframe(self, key: int, map_from_body: Array, scale: float = 1.0) -> None:
        """The first keyframe, or the first after odometry was lost: it begins a segment.

        A segment stays where it was begun, as a guess, until loops join it to another; then all of
        it moves there at once. Keyframes that odometry reaches come by `add_odometry` alone: their
        first place follows from it.

        Args:
            key: larger than all before.
            map_from_body: (4, 4) rigid.
            scale: of this keyframe's units on the map; 1 in a metric graph.

        Raises:
            GeometryError: not a new key, or not a pose.
        """
        self._check_new(key)
        self._check(f'keyframe {key}', map_from_body, scale)
        self._graph.begin(with_scale(map_from_body, scale))
        self._keys.append(key)
        self._since += 1

    def add_odometry(
        self, a: int, b: int, a_from_b: Array, covariance: Array, scale: float = 1.0
    ) -> None:
        """Keyframe `b`, seen from the newest one `a`; it takes its place in the map from there.

        Args:
            a, b: keys.
            a_from_b: (4, 4) rigid, in the units of `a`.
            covariance: (6, 6); without metric scale the drift of the scale over one step,
                `mapping.pose_graph.log_scale_sigma`, comes on top. Or (7, 7), which says it all.
            scale: units of `b` in units of `a`; odometry itself keeps it.

        Raises:
            GeometryError: `a` is not the newest keyframe, `b` is not new, or a pose or covariance
                is none.
        """
        name = f'odometry {a} -> {b}'
        if not self._keys or a != self._keys[-1]:
            newest = self._keys[-1] if self._keys else 'none'
            raise GeometryError(f'{name}: the newest keyframe is {newest}')
        self._check_new(b)
        self._check(name, a_from_b, scale)
        size = self._algebra.size
        if np.shape(covariance) != (7, 7):
            whole = np.diag([0.0] * 6 + [self._settings.log_scale_sigma**2])
            whole[:6, :6] = check_covariance(name, covariance, 6)
            covariance = whole
        covariance = check_covariance(name, covariance[:size, :size], size)
        self._graph.extend(with_scale(a_from_b, scale), covariance)
        self._keys.append(b)
        self._since += 1

    def _check_new(self, key: int) -> None:
        if self._keys and key <= self._keys[-1]:
            raise GeometryError(
                f'keyframe {key}: keys must increase, the last is {self._keys[-1]}'
            )

    def _check(self, name: str, pose: Array, scale: float) -> None:
        check_pose(name, pose, scale)
        if scale != 1.0 and not self.similarity:
            raise GeometryError(f'{name}: a metric graph has no scale, got {scale:g}')

    def add_loops(self, loops: Sequence[Loop], trusted: bool = False) -> tuple[bool, ...]:
        """Weigh loops; those that are believed take effect with `update`.

        A loop that is not believed waits, and may be taken when others agree with it; one that is
        may be dropped again. `GraphUpdate` says so.

        Args:
            loops: in the order in which they were found.
            trusted: believe them without asking, e.g. those of a graph that was saved.

        Returns:
            Of each, whether it is believed now.

        Raises:
            GeometryError: unknown keyframe, wrong covariance, or a scale in a metric graph.
        """
        links = [self._link(loop) for loop in loops]
        numbers = [self._loops.add(link, trusted) for link in links]
        return tuple(n in self._loops.believed for n in numbers)

    def _link(self, loop: Loop) -> Link:
        """The loop between numbers, the earlier keyframe first."""
        name = f'loop {loop.a} -> {loop.b}'
        a, b = self._number(loop.a), self._number(loop.b)
        self._check(name, loop.a_from_b, loop.scale)
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

    def update(self, now: bool = False) -> GraphUpdate:
        """Work in what was added since.

        Loops that the graph hardly disagrees with wait for company
        (`mapping.pose_graph.waiting_keyframes`): each optimisation touches a good part of the
        graph, however small the correction.

        Args:
            now: do not wait.
        """
        if not (self._pending() and (now or self._due())):
            return self._report(self._graph.poses, False)
        before = self._graph.poses.copy()
        for _ in range(MOST_ROUNDS):
            self._work_in()
            self._reconsider()
            if not self._pending():
                break
        return self._report(before, True)

    def _pending(self) -> bool:
        return self._graph.links.keys() != self._loops.believed

    def _due(self) -> bool:
        """Whether loops cannot wait: it is time, one was dropped, or one is off by much."""
        believed = self._loops.believed
        if self._since >= self._settings.waiting_keyframes:
            return True
        if self._graph.links.keys() - believed:
            return True
        new = sorted(believed - self._graph.links.keys() - self._patient)
        self._patient.update(new)  # the graph stays as it is until they are worked in
        far = self._graph.misfits([self._loops.link(n) for n in new])
        return bool((far > self._algebra.size * self._settings.urgent**2).any())

    def _work_in(self) -> None:
        self._graph.work_in({n: self._loops.link(n) for n in sorted(self._loops.believed)})
        self._since = 0
        self._patient.clear()

    def _reconsider(self) -> None:
        """Look again at loops that wait, and at the one that all others disagree with most."""
        self._loops.reconsider(RECONSIDERED)
        believed = sorted(self._loops.believed)
        misfits = self._graph.misfits([self._loops.link(n) for n in believed])
        if len(misfits) and misfits.max() > self._loops.contradiction:
            self._loops.drop(believed[int(misfits.argmax())])

    def _report(self, before: Array, optimised: bool) -> GraphUpdate:
        believed, reported = self._loops.believed, self._reported
        taken = {n: self._loops.link(n).loop for n in sorted(believed - reported.keys())}
        dropped = {n: reported[n] for n in sorted(reported.keys() - believed)}
        reported.update(taken)
        for n in dropped:
            del reported[n]
        after = self._graph.poses
        moved = np.zeros(0, dtype=np.int64)
        if optimised:
            moved = np.flatnonzero(moved_enough(before, after, self._settings))
        return GraphUpdate(
            optimised,
            np.array(self._keys)[moved] if len(moved) else moved,
            *split_scale(before[moved]),
            *split_scale(after[moved]),
            tuple(taken.values()),
            tuple(dropped.values()),
        )

    def optimise_fully(self) -> float:
        """Levenberg-Marquardt over every keyframe, for offline use; returns the cost.

        Beside what incremental steps leave undone it takes away the small error of `hubs`.
        """
        self.update(now=True)
        cost = self._graph.optimise_fully()
        for _ in range(MOST_ROUNDS):
            self._reconsider()
            if not self._pending():
                break
            self._work_in()
            cost = self._graph.optimise_fully()
        return cost

    def cost(self) -> float:
        """Half the sum of squared whitened residuals of all that is worked in."""
        return self._graph.cost()

    def poses(self) -> tuple[NDArray[np.int64], Array, Array]:
        """Keys (N,), rigid map_from_body (N, 4, 4) and scales (N,) of all keyframes."""
        return np.array(self._keys, dtype=np.int64), *split_scale(self._graph.poses)

    def pose(self, key: int) -> tuple[Array, float]:
        """Rigid map_from_body (4, 4) and scale of one keyframe.

        Raises:
            GeometryError: unknown key.
        """
        rigid, scale = split_scale(self._graph.poses[self._number(key)])
        return rigid, float(scale)

    def joined(self, key: int) -> bool:
        """Whether a keyframe hangs together with the origin; else its place is a guess.

        Raises:
            GeometryError: unknown key.
        """
        segment, group = self._graph.chain.segment, self._graph.group
        return group[segment[self._number(key)]] == group[segment[self._graph.origin]]

    def marginal(self, key: int) -> Array:
        """Covariance of a keyframe's pose on the map, given all that is worked in.

        Returns:
            (6, 6), or (7, 7) with the log scale; that of a keyframe that is not `joined` is large.

        Raises:
            GeometryError: unknown key.
        """
        return self._graph.covariance(self._number(key))

    def relative_covariance(self, a: int, b: int) -> Array:
        """Covariance of `a_from_b`, (6, 6) or (7, 7), a perturbation on the right.

        Exact to first order, for which up to four keyframes are marginalised: milliseconds, and
        some tens where they are far apart in a large graph. Loops are not judged by it but by the
        tightest single way (`loop_cycles`): that one names the loops it rests on, and does not
        become ever surer where many loops share an error.

        Raises:
            GeometryError: unknown key.
        """
        return self._graph.relative_covariance(self._number(a), self._number(b))

    def fix_origin(self, key: int, map_from_body: Array, scale: float = 1.0) -> None:
        """Hold this keyframe, at this pose, instead of the first; what hangs on it moves along.

        Raises:
            GeometryError: unknown key, or not a pose.
        """
        number = self._number(key)
        self._check(f'keyframe {key}', map_from_body, scale)
        self.update(now=True)
        self._graph.hold(number, with_scale(map_from_body, scale))

    def measurements(self) -> list[Loop]:
        """Every step of odometry and every believed loop, by keys."""
        keys = self._keys
        odometry = []
        for k, step, covariance in self._graph.steps():
            pose, scale = self._parts(step)
            odometry.append(Loop(keys[k - 1], keys[k], pose, covariance, scale))
        return [*odometry, *self.loops]
