# SPDX-License-Identifier: Apache-2.0
"""Pose graphs of our own making with a known truth, for tests and the benchmark.

Three ways through three places, odometry that drifts, loops wherever a place is seen again, and
false loops of two kinds. Everything follows from a seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.graph_update import GraphUpdate
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.pose_algebra import SE3, Algebra, chain, split_scale, with_scale
from mv_matcher_ros.mapping.pose_graph import PoseGraph

# Standard deviations of one step of a metre and of a loop: a good visual odometry, whose drift is
# about one percent of the way.
STEP_SIGMA = np.array([0.02, 0.02, 0.02, 0.002, 0.002, 0.002])
LOOP_SIGMA = np.array([0.05, 0.05, 0.05, 0.01, 0.01, 0.01])
# Drift of log scale a step without metric scale, and how well a loop measures it.
STEP_LOG_SCALE = 0.003
LOOP_LOG_SCALE = 0.01
# A place is seen again from so near, looking so much the same way, so many keyframes later.
SEEN_WITHIN_M = 1.5
SEEN_WITHIN_RAD = 0.6
LEAST_GAP = 40


@dataclass(frozen=True)
class GraphWorld:
    """A way, what odometry says of it, and its loops.

    Attributes:
        name: of the place.
        truth: (N, 4, 4) map_from_body, metres.
        scale: (N,) units of each keyframe in metres; ones for a metric sensor.
        steps: (N - 1, 4, 4) measured `a_from_b` of neighbours, in units of the first of the two.
        step_covariance: (6, 6) of each, as `PoseGraph.add_odometry` takes it.
        loops: true ones, in order of their later keyframe.
    """

    name: str
    truth: Array
    scale: Array
    steps: Array
    step_covariance: Array
    loops: tuple[Loop, ...]

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def similarity(self) -> bool:
        """Whether the scale drifts."""
        return bool(np.ptp(self.scale) > 0.0)

    def dead_reckoning(self) -> Array:
        """(N, 4, 4) rigid poses by odometry alone, in the units of the first keyframe."""
        return chain(self.truth[0], self.steps)

    def drive(
        self, graph: PoseGraph, false_loops: Sequence[Loop] = (), trusted: bool = False
    ) -> Iterator[GraphUpdate]:
        """Feed a graph keyframe by keyframe, keys from 0; loops come with their later keyframe.

        The last update works in all that is still waiting for its turn.
        """
        arriving: defaultdict[int, list[Loop]] = defaultdict(list)
        for loop in (*self.loops, *false_loops):
            arriving[max(loop.a, loop.b)].append(loop)
        for k in range(len(self)):
            if k == 0:
                graph.add_keyframe(0, self.truth[0], float(self.scale[0]))
            else:
                graph.add_odometry(k - 1, k, self.steps[k - 1], self.step_covariance)
            if k in arriving:
                graph.add_loops(arriving[k], trusted)
            yield graph.update(now=k == len(self) - 1)


def sphere(turns: int = 50, per_turn: int = 50, seed: int = 0) -> GraphWorld:
    """A spiral from pole to pole of a sphere; each turn sees the one before."""
    count = turns * per_turn
    share = (np.arange(count) + 0.5) / count
    polar = np.pi * (0.05 + 0.9 * share)
    azimuth = 2.0 * np.pi * np.arange(count) / per_turn
    up = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], 1
    )
    position = per_turn / (2.0 * np.pi) * up  # steps of a metre at the equator
    later = np.arange(per_turn, count)
    pairs = [(int(k) - per_turn, int(k)) for k in later]
    return _measured('sphere', _looking_ahead(position, up), pairs, seed)


def garage(storeys: int = 5, rounds: int = 2, seed: int = 0) -> GraphWorld:
    """Rounds on every storey of a car park, up by a ramp, and the same way again from below."""
    corners = np.array([(0.0, 0.0), (40.0, 0.0), (40.0, 20.0), (0.0, 20.0)])
    ground: list[Array] = []
    for storey in range(storeys):
        for turn in range(rounds):
            last = turn == rounds - 1 and storey < storeys - 1
            for side in range(4):
                begin, end = corners[side], corners[(side + 1) % 4]
                steps = round(float(np.linalg.norm(end - begin)))
                along = np.arange(steps)[:, None] / steps
                climb = 3.0 * along if last and side == 3 else 0.0 * along
                ground.append(np.hstack([begin + along * (end - begin), 3.0 * storey + climb]))
    once = np.vstack(ground)
    # Down again by a stair of its own, which sees nothing that was seen before.
    down = np.linspace(once[-1], once[0] + (0.0, -30.0, 0.0), 40)[1:]
    back = np.linspace(once[0] + (0.0, -30.0, 0.0), once[0], 30)[1:-1]
    position = np.vstack([once, down, back, once])
    poses = _looking_ahead(_smoothed(position), np.tile((0.0, 0.0, 1.0), (len(position), 1)))
    return _measured('garage', poses, _revisits(poses, 2), seed)


def manhattan(
    count: int = 10_000, blocks: int = 14, seed: int = 0, every: int = 4, block_m: int = 10
) -> GraphWorld:
    """A walk at random through the streets of a hilly city.

    Args:
        count: poses.
        blocks: streets each way.
        seed: of the walk and the noise.
        every: one place seen again in so many closes a loop.
        block_m: length of a block.
    """
    rng = np.random.default_rng(seed)
    at, heading = np.array([blocks // 2, blocks // 2]), np.array([1, 0])
    crossings = [at]
    while (len(crossings) - 1) * block_m < count + block_m:
        left = np.array([-heading[1], heading[0]])
        ways = [way for way in (heading, heading, left, -left) if _inside(at + way, blocks)]
        heading = ways[rng.integers(len(ways))]
        at = at + heading
        crossings.append(at)
    corners = block_m * np.array(crossings, dtype=np.float64)
    metres = np.arange(count, dtype=np.float64)
    place = np.arange(len(corners)) * float(block_m)
    flat = np.stack([np.interp(metres, place, corners[:, i]) for i in range(2)], 1)
    flat = _smoothed(flat)
    hills = 4.0 * np.sin(flat[:, 0] / 31.0) * np.cos(flat[:, 1] / 23.0)
    position = np.column_stack([flat, hills])
    poses = _looking_ahead(position, np.tile((0.0, 0.0, 1.0), (count, 1)))
    return _measured('manhattan', poses, _revisits(poses, every), seed)


def without_metric_scale(world: GraphWorld, seed: int = 0) -> GraphWorld:
    """The same way seen by one camera: the unit of length drifts from keyframe to keyframe."""
    rng = np.random.default_rng([seed, 7])
    drift = rng.normal(0.0, STEP_LOG_SCALE, len(world) - 1)
    scale = np.exp(np.concatenate([[0.0], np.cumsum(drift)]))
    steps = world.steps.copy()
    steps[:, :3, 3] /= scale[:-1, None]
    loops = []
    for loop in world.loops:
        covariance = np.zeros((7, 7))
        unit = np.repeat([1.0 / scale[loop.b], 1.0], 3)  # perturbed in the axes and units of b
        covariance[:6, :6] = loop.covariance * np.outer(unit, unit)
        covariance[6, 6] = LOOP_LOG_SCALE**2
        a_from_b = np.array(loop.a_from_b)
        a_from_b[:3, 3] /= scale[loop.a]
        ratio = scale[loop.b] / scale[loop.a] * np.exp(rng.normal(0.0, LOOP_LOG_SCALE))
        loops.append(Loop(loop.a, loop.b, a_from_b, covariance, float(ratio)))
    return replace(world, scale=scale, steps=steps, loops=tuple(loops))


def random_false_loops(world: GraphWorld, count: int, seed: int = 0) -> tuple[Loop, ...]:
    """Loops between keyframes far apart that look like true ones: single images mistaken.

    The relative pose is that of a true loop and not one of the whole map: a matcher that mistakes
    one place for another believes to be near it.
    """
    rng = np.random.default_rng([seed, 11])
    found: list[Loop] = []
    while len(found) < count:
        a, b = sorted(int(k) for k in rng.integers(0, len(world), 2))
        if not _far(world, a, b):
            continue
        like = world.loops[rng.integers(len(world.loops))]
        unit = world.scale[like.a] / world.scale[a]
        a_from_b = _moved(like.a_from_b, unit)
        turned = a_from_b @ SE3.exp(rng.normal(0.0, (0.5, 0.5, 0.2, 0.05, 0.05, 0.3)))
        found.append(replace(like, a=a, b=b, a_from_b=turned))
    return tuple(sorted(found, key=lambda loop: loop.b))


def clustered_false_loops(
    world: GraphWorld, count: int, length: int = 8, seed: int = 0
) -> tuple[Loop, ...]:
    """Runs of `length` neighbouring keyframes that all take one wrong street for another.

    Within a run all loops agree with each other and with the odometry along both streets: the
    wrong street is laid over the right one by one and the same transform.
    """
    rng = np.random.default_rng([seed, 13])
    found: list[Loop] = []
    while len(found) < count:
        a, b = sorted(int(k) for k in rng.integers(0, len(world) - length, 2))
        if not _far(world, a, b) or b - a < 2 * length:
            continue
        size = min(length, count - len(found))
        like = world.loops[rng.integers(len(world.loops))]
        algebra = Algebra(world.similarity)
        place = with_scale(world.truth, world.scale)
        a_from_b = with_scale(
            _moved(like.a_from_b, world.scale[like.a] / world.scale[a]), like.scale
        )
        right_from_wrong = place[a] @ a_from_b @ algebra.inverse(place[b])
        for i in range(size):
            exact = algebra.inverse(place[a + i]) @ right_from_wrong @ place[b + i]
            noise = rng.multivariate_normal(np.zeros(algebra.size), like.covariance)
            rigid, scale = split_scale(exact @ algebra.exp(noise))
            unit = float(scale) if world.similarity else 1.0
            found.append(Loop(a + i, b + i, rigid, like.covariance, unit))
    return tuple(sorted(found, key=lambda loop: loop.b))


def _inside(crossing: Array, blocks: int) -> bool:
    return bool((crossing >= 0).all() and (crossing < blocks).all())


def _far(world: GraphWorld, a: int, b: int) -> bool:
    """Far enough apart that no view of the one shows the other."""
    apart = np.linalg.norm(world.truth[a, :3, 3] - world.truth[b, :3, 3])
    return b - a >= LEAST_GAP and bool(apart > 4.0 * SEEN_WITHIN_M)


def _moved(rigid: Array, unit: float) -> Array:
    """A rigid transform with its translation in other units."""
    moved = np.array(rigid)
    moved[:3, 3] *= unit
    return moved


def _smoothed(position: Array) -> Array:
    """Corners rounded off, so that headings turn over a few steps."""
    kernel = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
    padded = np.vstack([position[:1]] * 2 + [position] + [position[-1:]] * 2)
    columns = [np.convolve(column, kernel, 'valid') for column in padded.T]
    return np.stack(columns, 1)


def _looking_ahead(position: Array, up: Array) -> Array:
    """(N, 4, 4) poses with x along the way and z as near to `up` (N, 3) as that allows."""
    forward = np.gradient(position, axis=0)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    left = np.cross(up, forward)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    poses[:, :3, :3] = np.stack([forward, left, np.cross(forward, left)], 2)
    poses[:, :3, 3] = position
    return poses


def _revisits(poses: Array, every: int) -> list[tuple[int, int]]:
    """Pairs (earlier, later) that see the same place; one in `every` of the later ones."""
    cells: dict[tuple[int, ...], list[int]] = defaultdict(list)
    pairs = []
    for later, pose in enumerate(poses):
        cell = np.floor(pose[:3, 3] / SEEN_WITHIN_M).astype(int)
        if later % every == 0:
            near = [
                k
                for shift in np.ndindex(3, 3, 3)
                for k in cells.get(tuple(cell + shift - 1), ())
                if later - k >= LEAST_GAP
            ]
            earlier = _most_alike(poses, near, pose)
            if earlier is not None:
                pairs.append((earlier, later))
        cells[tuple(cell)].append(later)
    return pairs


def _most_alike(poses: Array, near: list[int], pose: Array) -> int | None:
    """The nearest of the keyframes `near` that see what `pose` sees."""
    if not near:
        return None
    others = poses[near]
    apart = np.linalg.norm(others[:, :3, 3] - pose[:3, 3], axis=1)
    cosine = 0.5 * (np.einsum('nij,ij->n', others[:, :3, :3], pose[:3, :3]) - 1.0)
    seen = (apart < SEEN_WITHIN_M) & (cosine > np.cos(SEEN_WITHIN_RAD))
    if not seen.any():
        return None
    return near[int(np.argmin(np.where(seen, apart, np.inf)))]


def _measured(name: str, truth: Array, pairs: list[tuple[int, int]], seed: int) -> GraphWorld:
    """Odometry and loops with noise, on exact poses."""
    rng = np.random.default_rng([seed, 3])
    steps = SE3.inverse(truth[:-1]) @ truth[1:]
    steps = steps @ SE3.exp(rng.normal(size=(len(steps), 6)) * STEP_SIGMA)
    earlier, later = np.array(pairs, dtype=int).reshape(-1, 2).T
    relative = SE3.inverse(truth[earlier]) @ truth[later]
    relative = relative @ SE3.exp(rng.normal(size=(len(pairs), 6)) * LOOP_SIGMA)
    covariance = np.diag(LOOP_SIGMA**2)
    loops = tuple(
        Loop(a, b, pose, covariance) for (a, b), pose in zip(pairs, relative, strict=True)
    )
    return GraphWorld(name, truth, np.ones(len(truth)), steps, np.diag(STEP_SIGMA**2), loops)
