# SPDX-License-Identifier: Apache-2.0
"""The pose graph on trajectories with a known answer: drift, loops, false loops, segments."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('gtsam')

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.pose_algebra import SE3, SIM3, split_scale, with_scale
from mv_matcher_ros.mapping.pose_graph import PoseGraph

SIGMA = 0.01


def circle(count: int = 60, rounds: float = 2.0, radius: float = 5.0) -> Array:
    """(N, 4, 4) a body that goes round, looking ahead."""
    angle = np.linspace(0, 2 * np.pi * rounds, count)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = np.cos(angle)
    poses[:, 1, 0], poses[:, 0, 1] = np.sin(angle), -np.sin(angle)
    poses[:, 0, 3], poses[:, 1, 3] = radius * np.sin(angle), radius * (1 - np.cos(angle))
    return poses


def drifted(true: Array, seed: int = 0, scale_drift: float = 0.0) -> Array:
    """Steps of the odometry with noise of `SIGMA`; for Sim(3) lengths grow by a share a step."""
    rng = np.random.default_rng(seed)
    steps = []
    for number in range(len(true) - 1):
        step = np.linalg.inv(true[number]) @ true[number + 1] @ SE3.exp(SIGMA * rng.normal(size=6))
        step[:3, 3] *= (1.0 + scale_drift) ** number
        steps.append(step)
    return np.stack(steps)


def grown(graph: PoseGraph, steps: Array, start: Array | None = None) -> None:
    graph.add_keyframe(0, np.eye(4) if start is None else start)
    for number, step in enumerate(steps):
        graph.add_odometry(number, number + 1, step, SIGMA**2 * np.eye(6))


def loop_of(true: Array, a: int, b: int, similarity: bool = False, scale: float = 1.0) -> Loop:
    size = 7 if similarity else 6
    return Loop(a, b, np.linalg.inv(true[a]) @ true[b], 1e-4 * np.eye(size), scale)


def ate(graph: PoseGraph, true: Array) -> float:
    _, poses, _ = graph.poses()
    return float(np.sqrt(np.square(poses[:, :3, 3] - true[:, :3, 3]).sum(1).mean()))


def revisits(true: Array, every: int = 4) -> list[Loop]:
    half = len(true) // 2
    return [loop_of(true, n, n + half) for n in range(0, half - 1, every)]


def test_loops_take_the_drift_away() -> None:
    true = circle(61)
    graph = PoseGraph(PoseGraphSettings())
    grown(graph, drifted(true))
    before = ate(graph, true)
    loops = [loop_of(true, n, n + 30) for n in range(0, 30, 4)]
    graph.add_loops(loops)
    update = graph.update(now=True)
    assert update.optimised
    assert len(update.taken) == len(loops)
    assert ate(graph, true) < 0.5 * before
    moved = dict(zip(update.keys.tolist(), update.new, strict=True))
    for key, pose in moved.items():
        np.testing.assert_allclose(graph.pose(key)[0], pose)
    np.testing.assert_allclose(graph.pose(0)[0], np.eye(4), atol=1e-6)


def test_a_scale_that_drifts_is_found() -> None:
    true = circle(61)
    graph = PoseGraph(PoseGraphSettings(log_scale_sigma=0.02), similarity=True)
    steps = drifted(true, scale_drift=0.01)
    grown(graph, steps)
    before = ate(graph, true)
    loops = []
    for n in range(0, 30, 3):
        # Units of a later keyframe are smaller: its odometry says larger numbers.
        a_from_b = np.linalg.inv(true[n]) @ true[n + 30]
        a_from_b[:3, 3] *= 1.01**n
        loops.append(Loop(n, n + 30, a_from_b, 1e-4 * np.eye(7), 1.01**-30))
    graph.add_loops(loops)
    graph.update(now=True)
    assert ate(graph, true) < 0.25 * before
    _, scale = graph.pose(60)
    assert scale == pytest.approx(1.01**-60, rel=0.1)


@pytest.mark.parametrize('seed', range(3))
def test_false_loops_do_no_harm(seed: int) -> None:
    true = circle(121)
    rng = np.random.default_rng(seed)
    steps = drifted(true, seed)
    loops = [loop_of(true, n, n + 60) for n in range(0, 60, 4)]
    clean = PoseGraph(PoseGraphSettings())
    grown(clean, steps)
    clean.add_loops(loops)
    clean.update(now=True)
    false = [
        Loop(a, b, SE3.exp(rng.normal(size=6)), 1e-4 * np.eye(6))
        for a, b in rng.integers(0, 121, (len(loops), 2)).tolist()
        if abs(a - b) > 20
    ]
    mixed = PoseGraph(PoseGraphSettings())
    grown(mixed, steps)
    every = [*loops, *false]
    for number in rng.permutation(len(every)):
        mixed.add_loops([every[number]])
        mixed.update()
    mixed.update(now=True)
    assert ate(mixed, true) < 1.2 * ate(clean, true) + 1e-3


def test_a_segment_is_carried_to_where_loops_say() -> None:
    true = circle(61)
    graph = PoseGraph(PoseGraphSettings())
    steps = drifted(true)
    graph.add_keyframe(0, np.eye(4))
    for number in range(30):
        graph.add_odometry(number, number + 1, steps[number], SIGMA**2 * np.eye(6))
    elsewhere = np.eye(4)
    elsewhere[:3, 3] = 40.0, -20.0, 3.0
    graph.add_keyframe(31, elsewhere)
    for number in range(31, 60):
        graph.add_odometry(number, number + 1, steps[number], SIGMA**2 * np.eye(6))
    assert not graph.joined(40)
    graph.add_loops([loop_of(true, n, n + 30) for n in range(2, 26, 4)])
    graph.update(now=True)
    assert graph.joined(40)
    assert ate(graph, true) < 0.6  # what it had drifted by itself


def test_a_long_open_chain_is_no_trouble() -> None:
    count = 3000
    graph = PoseGraph(PoseGraphSettings())
    step = SE3.exp(np.array([1.0, 0, 0, 0, 0, 0.001]))
    grown(graph, np.tile(step, (count, 1, 1)))
    _, poses, _ = graph.poses()
    loop = np.linalg.inv(poses[10]) @ poses[count - 10]
    graph.add_loops([
        Loop(10, count - 10, loop, 1e-4 * np.eye(6)),
        Loop(12, count - 8, np.linalg.inv(poses[12]) @ poses[count - 8], 1e-4 * np.eye(6)),
    ])  # fmt: skip
    graph.update(now=True)
    np.testing.assert_allclose(graph.poses()[1], poses, atol=1e-3)


def test_what_is_no_pose_or_no_keyframe_is_refused() -> None:
    graph = PoseGraph(PoseGraphSettings())
    graph.add_keyframe(3, np.eye(4))
    with pytest.raises(GeometryError, match='keys must increase'):
        graph.add_keyframe(3, np.eye(4))
    with pytest.raises(GeometryError, match='the newest keyframe is 3'):
        graph.add_odometry(1, 4, np.eye(4), np.eye(6))
    with pytest.raises(GeometryError, match='not finite'):
        graph.add_odometry(3, 4, np.full((4, 4), np.nan), np.eye(6))
    with pytest.raises(GeometryError, match='positive definite'):
        graph.add_odometry(3, 4, np.eye(4), np.zeros((6, 6)))
    with pytest.raises(GeometryError, match='not in the graph'):
        graph.add_loops([Loop(3, 9, np.eye(4), np.eye(6))])
    with pytest.raises(GeometryError, match='no scale'):
        graph.add_keyframe(5, np.eye(4), 2.0)
    assert not graph.update(now=True).optimised


@pytest.mark.parametrize('algebra', [SE3, SIM3])
def test_perturbations_are_on_the_right(algebra: object) -> None:
    rng = np.random.default_rng(0)
    size = algebra.size  # type: ignore[attr-defined]
    pose, step = (algebra.exp(rng.normal(size=size)) for _ in range(2))  # type: ignore[attr-defined]
    small = 1e-6 * rng.normal(size=size)
    moved = pose @ algebra.exp(small) @ step  # type: ignore[attr-defined]
    seen = algebra.adjoint(algebra.inverse(step)) @ small  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        moved,
        pose @ step @ algebra.exp(seen),
        atol=1e-10,  # type: ignore[attr-defined]
    )
    rigid, scale = split_scale(with_scale(SE3.exp(rng.normal(size=6)), 2.5))
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-12)
