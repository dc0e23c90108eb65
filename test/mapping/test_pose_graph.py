# SPDX-License-Identifier: Apache-2.0
"""Graphs with known answers: drift that loops take away, scales, segments, covariances, faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.mapping import graph_worlds
from mv_matcher_ros.mapping.g2o import write_g2o
from mv_matcher_ros.mapping.graph_files import file_from_graph
from mv_matcher_ros.mapping.graph_worlds import GraphWorld
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.pose_algebra import SE3, SIM3, split_scale, with_scale
from mv_matcher_ros.mapping.pose_graph import PoseGraph

gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

STEP = np.diag([4e-4, 4e-4, 4e-4, 4e-6, 4e-6, 4e-6])
TIGHT = np.diag([1e-4] * 3 + [1e-6] * 3)
Driven = Callable[..., PoseGraph]
Off = Callable[[PoseGraph, GraphWorld], float]


def moved(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:2, 3] = x, y
    return pose


def line(count: int, similarity: bool = False, **settings: float) -> PoseGraph:
    """Keyframes 0, 1, … a metre apart along x."""
    graph = PoseGraph(PoseGraphSettings(**settings), similarity)
    graph.add_keyframe(0, np.eye(4))
    for k in range(1, count):
        graph.add_odometry(k - 1, k, moved(1.0), STEP)
    return graph


def test_a_square_with_drift_closes() -> None:
    graph = PoseGraph(PoseGraphSettings())
    graph.add_keyframe(0, np.eye(4))
    for k in range(1, 41):  # each corner is turned by three degrees too much
        corner = k % 10 == 0
        step = moved(1.0, 0.0, np.pi / 2 + np.radians(3.0) if corner else 0.0)
        turn = np.diag([4e-4] * 3 + [4e-6, 4e-6, 2.5e-3 if corner else 4e-6])
        graph.add_odometry(k - 1, k, step, turn)
    open_end, _ = graph.pose(40)
    assert np.linalg.norm(open_end[:2, 3]) > 0.5
    assert graph.add_loops([Loop(0, 40, moved(0.0, 0.0, 0.0), TIGHT)]) == (True,)
    update = graph.update(now=True)
    assert update.optimised
    assert [loop.b for loop in update.taken] == [40]
    closed, _ = graph.pose(40)
    np.testing.assert_allclose(closed, np.eye(4), atol=0.01)
    # The corners are where a square has them.
    for k, place in ((10, (10, 0)), (20, (10, 10)), (30, (0, 10))):
        np.testing.assert_allclose(graph.pose(k)[0][:2, 3], place, atol=0.05)
    assert set(update.keys) >= {20, 30, 40}
    at = update.keys.tolist().index(40)
    np.testing.assert_allclose(update.old[at], open_end)
    np.testing.assert_allclose(update.new[at], closed)


def test_nothing_moves_without_loops() -> None:
    graph = line(5)
    update = graph.update(now=True)
    assert not update.optimised
    assert len(update.keys) == len(update.old) == 0
    np.testing.assert_allclose(graph.pose(4)[0], moved(4.0), atol=1e-12)


def test_loops_that_change_little_wait_and_others_do_not() -> None:
    graph = line(60, waiting_keyframes=100, urgent=5.0)
    assert graph.add_loops([Loop(0, 50, moved(50.01), TIGHT)]) == (True,)
    assert not graph.update().optimised
    assert graph.add_loops([Loop(1, 51, moved(50.15), TIGHT)]) == (True,)
    assert graph.update().optimised
    assert graph.add_loops([Loop(2, 52, moved(50.1), TIGHT)]) == (True,)
    for k in range(60, 160):
        assert not graph.update().optimised
        graph.add_odometry(k - 1, k, moved(1.0), STEP)
    assert graph.update().optimised


def test_scale_drift_is_recovered() -> None:
    """Round a circle the unit shrinks by a third; one loop gives shape and scales back."""
    count, radius = 100, 10.0
    angle = 2.0 * np.pi * np.arange(count + 1) / count
    truth = np.stack([moved(radius * np.sin(a), radius * (1 - np.cos(a)), a) for a in angle])
    unit = np.exp(-0.4 * np.arange(count + 1) / count)
    graph = PoseGraph(PoseGraphSettings(log_scale_sigma=0.01), similarity=True)
    graph.add_keyframe(0, truth[0])
    for k in range(count):
        step = SE3.inverse(truth[k]) @ truth[k + 1]
        step[:3, 3] /= unit[k]
        graph.add_odometry(k, k + 1, step, 1e-6 * np.eye(6))
    assert np.linalg.norm(graph.pose(count)[0][:3, 3]) > 2.0
    loop = Loop(0, count, np.eye(4), 1e-6 * np.eye(7), scale=float(unit[-1]))
    assert graph.add_loops([loop]) == (True,)
    update = graph.update(now=True)
    assert graph.add_loops([]) == ()
    assert update.new_scale[-1] == pytest.approx(unit[-1], rel=0.01)
    assert update.old_scale[-1] == pytest.approx(1.0)
    graph.optimise_fully()
    _, poses, scale = graph.poses()
    np.testing.assert_allclose(scale, unit, rtol=0.02)
    np.testing.assert_allclose(poses[:, :3, 3], truth[:, :3, 3], atol=0.15)


@pytest.mark.parametrize('mono', [False, True], ids=['metric', 'mono'])
def test_drift_of_a_long_walk_is_taken_away(driven: Driven, off: Off, mono: bool) -> None:
    world = graph_worlds.manhattan(800, blocks=5)
    if mono:
        world = graph_worlds.without_metric_scale(world)
    drift = np.linalg.norm(world.dead_reckoning()[:, :3, 3] - world.truth[:, :3, 3], axis=1)
    graph = driven(world)
    assert len(graph.loops) == len(world.loops)
    assert off(graph, world) < 0.3 * np.sqrt((drift**2).mean())
    if mono:
        np.testing.assert_allclose(graph.poses()[2], world.scale, rtol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize(
    'world',
    [
        graph_worlds.sphere(8, 20),
        graph_worlds.garage(2),
        graph_worlds.manhattan(800, blocks=5),
    ],
    ids=lambda world: world.name,
)
def test_same_cost_as_gtsam_in_one_batch(
    world: GraphWorld, driven: Driven, tmp_path: object
) -> None:
    """GTSAM reads the graph from a file and solves all of it from where odometry left it."""
    graph = driven(world, kernel_width=0.0)
    assert len(graph.loops) >= 0.99 * len(world.loops)  # noise may look like a mistake
    path = f'{tmp_path}/graph.g2o'
    write_g2o(path, file_from_graph(graph))
    factors, ours = gtsam.readG2o(path, True)
    held = gtsam.noiseModel.Isotropic.Sigma(6, 1e-5)
    factors.add(gtsam.PriorFactorPose3(0, ours.atPose3(0), held))
    start = gtsam.Values()
    for k, pose in enumerate(world.dead_reckoning()):
        start.insert(k, gtsam.Pose3(pose))
    best = gtsam.LevenbergMarquardtOptimizer(factors, start).optimize()
    assert factors.error(ours) == pytest.approx(factors.error(best), rel=1e-3)
    assert graph.optimise_fully() == pytest.approx(factors.error(best), rel=1e-5)
    assert graph.cost() == pytest.approx(factors.error(best), rel=1e-5)


@pytest.mark.parametrize('mono', [False, True], ids=['metric', 'mono'])
def test_covariances_are_those_of_one_batch(driven: Driven, mono: bool) -> None:
    """Of hubs, of keyframes between them and behind the last one; single and relative."""
    world = graph_worlds.manhattan(400, blocks=4)
    if mono:
        world = graph_worlds.without_metric_scale(world)
    graph = driven(world)
    graph.optimise_fully()
    solver, inner = graph._graph._solver, graph._graph
    factors = solver._graph(inner.factors())
    batch = gtsam.Marginals(factors, solver._values(dict(enumerate(inner.poses))))
    order, size = solver._order, inner._algebra.size

    def joint(i: int, j: int) -> np.ndarray:
        theirs = batch.jointMarginalCovariance([i, j])
        return np.block([[theirs.at(p, q)[order] for q in (i, j)] for p in (i, j)])

    hubs = inner._hubs.numbers
    for k in (0, 3, 120, 250, hubs[4], 399):
        expected = batch.marginalCovariance(k)[order]
        np.testing.assert_allclose(graph.marginal(k), expected, atol=0.03 * expected.max())
    gap = max(range(len(hubs) - 1), key=lambda h: hubs[h + 1] - hubs[h])
    together = (hubs[gap] + 2, hubs[gap] + 5)  # between the same hubs
    for i, j in ((1, 2), (3, 260), (260, 3), together, together[::-1], (hubs[2], hubs[7])):
        pose = inner._algebra.inverse(inner.poses[j]) @ inner.poses[i]
        moves = np.hstack([-inner._algebra.adjoint(pose), np.eye(size)])
        expected = moves @ joint(i, j) @ moves.T
        found = graph.relative_covariance(i, j)
        np.testing.assert_allclose(found, expected, atol=0.03 * expected.max())
    np.testing.assert_array_equal(graph.relative_covariance(5, 5), 0.0)


def test_covariance_of_open_odometry_is_the_spread_of_what_it_says() -> None:
    """Composed in closed form; against walks at random."""
    rng = np.random.default_rng(0)
    turn = moved(1.0, 0.0, 0.1)
    covariance = np.diag([1e-4, 4e-4, 1e-4, 1e-5, 1e-5, 4e-5])
    graph = PoseGraph(PoseGraphSettings())
    graph.add_keyframe(0, np.eye(4))
    for k in range(20):
        graph.add_odometry(k, k + 1, turn, covariance)
    walks = np.tile(np.eye(4), (4000, 1, 1))
    for _ in range(20):
        noise = rng.normal(size=(4000, 6)) * np.sqrt(np.diag(covariance))
        walks = walks @ turn @ SE3.exp(noise)
    spread = SE3.log(SE3.inverse(graph.pose(20)[0]) @ walks)
    expected = np.cov(spread.T)
    found = graph.marginal(20)
    np.testing.assert_allclose(found, expected, atol=0.08 * expected.max())
    np.testing.assert_allclose(graph.relative_covariance(0, 20), found, atol=1e-6)


def two_segments(similarity: bool, guess: np.ndarray, scale: float) -> PoseGraph:
    """Twenty keyframes along x, odometry lost, and the same way again in other units."""
    graph = line(20, similarity)
    graph.add_keyframe(100, guess, scale)
    for k in range(101, 120):
        graph.add_odometry(k - 1, k, moved(0.5 if similarity else 1.0), STEP)
    return graph


def across(a: int, similarity: bool, off_y: float = 0.3) -> Loop:
    """Keyframe 100 + a of the second segment lies beside keyframe a of the first."""
    size = 7 if similarity else 6
    covariance = np.diag([1e-4] * 3 + [1e-6] * (size - 3))
    return Loop(a, 100 + a, moved(0.0, off_y), covariance, 2.0 if similarity else 1.0)


@pytest.mark.parametrize('similarity', [False, True], ids=['metric', 'mono'])
def test_a_segment_is_joined_as_a_whole(similarity: bool) -> None:
    graph = two_segments(similarity, moved(-70.0, 40.0, 2.8), 7.0 if similarity else 1.0)
    assert graph.joined(19)
    assert not graph.joined(110)
    assert graph.marginal(110)[0, 0] > 1e4
    assert graph.add_loops([across(5, similarity)]) == (False,)  # one alone could be mistaken
    assert not graph.update(now=True).optimised
    assert graph.add_loops([across(8, similarity)]) == (True,)
    update = graph.update(now=True)
    assert len(update.taken) == 2
    assert graph.joined(110)
    assert set(update.keys) >= set(range(100, 120))
    for k in range(20):
        pose, scale = graph.pose(100 + k)
        np.testing.assert_allclose(pose, moved(float(k), 0.3), atol=0.02)
        assert scale == pytest.approx(2.0 if similarity else 1.0, rel=0.02)
    assert graph.marginal(110)[0, 0] < 0.1


def test_a_segment_moves_again_when_more_loops_say_otherwise() -> None:
    """Two loops of one mistake join it wrongly; three true ones contradict them and win."""
    graph = two_segments(False, moved(0.0, -9.0, 1.0), 1.0)
    mistaken = [replace(across(k, False), a=k + 9, b=100 + k) for k in (3, 6)]
    assert graph.add_loops(mistaken)[1]
    graph.update(now=True)
    assert graph.pose(110)[0][0, 3] == pytest.approx(19.0, abs=0.1)
    assert graph.add_loops([across(k, False) for k in (2, 7)]) == (False, False)
    assert graph.add_loops([across(12, False)]) == (True,)
    update = graph.update(now=True)
    assert {loop.a for loop in update.dropped} == {12, 15}
    assert {loop.a for loop in update.taken} == {2, 7, 12}
    np.testing.assert_allclose(graph.pose(110)[0], moved(10.0, 0.3), atol=0.02)


def test_three_segments_find_each_other_in_any_order() -> None:
    graph = two_segments(False, moved(0.0, 50.0), 1.0)
    graph.add_keyframe(200, moved(0.0, -50.0, 2.0))
    for k in range(201, 220):
        graph.add_odometry(k - 1, k, moved(1.0), STEP)
    later = [replace(across(k, False), a=100 + k, b=200 + k) for k in (4, 9)]
    graph.add_loops(later)
    graph.update(now=True)
    assert not graph.joined(210)  # the two hang together, and nowhere else
    np.testing.assert_allclose(graph.pose(210)[0], moved(10.0, 50.3), atol=0.02)
    graph.add_loops([across(k, False) for k in (4, 9)])
    graph.update(now=True)
    assert graph.joined(210)
    np.testing.assert_allclose(graph.pose(210)[0], moved(10.0, 0.6), atol=0.02)


def test_the_origin_can_be_another_keyframe() -> None:
    graph = two_segments(False, moved(0.0, 5.0), 1.0)
    graph.add_loops([Loop(0, 19, moved(19.2), TIGHT)], trusted=True)
    before = graph.update(now=True)
    assert before.optimised
    relative = SE3.inverse(graph.pose(7)[0]) @ graph.pose(15)[0]
    graph.fix_origin(7, moved(3.0, 4.0, 0.5))
    assert graph.origin == 7
    np.testing.assert_allclose(graph.pose(7)[0], moved(3.0, 4.0, 0.5), atol=1e-9)
    found = SE3.inverse(graph.pose(7)[0]) @ graph.pose(15)[0]
    np.testing.assert_allclose(found, relative, atol=1e-9)
    np.testing.assert_allclose(graph.pose(110)[0], moved(10.0, 5.0), atol=1e-9)  # not along
    assert graph.marginal(7).max() < 1e-8
    assert graph.marginal(0)[0, 0] > 1e-4


def test_keys_may_have_gaps_and_loops_either_direction() -> None:
    graph = PoseGraph(PoseGraphSettings())
    graph.add_keyframe(10, np.eye(4))
    for a, b in ((10, 12), (12, 30), (30, 31)):
        graph.add_odometry(a, b, moved(1.0), STEP)
    graph.add_loops([Loop(31, 10, moved(-3.1), TIGHT)], trusted=True)
    graph.update(now=True)
    assert graph.pose(31)[0][0, 3] == pytest.approx(3.1, abs=0.02)
    assert graph.poses()[0].tolist() == [10, 12, 30, 31]
    assert [(m.a, m.b) for m in graph.measurements()] == [(10, 12), (12, 30), (30, 31), (31, 10)]


def test_an_empty_graph_and_one_keyframe() -> None:
    graph = PoseGraph(PoseGraphSettings())
    assert len(graph) == 0
    assert not graph.update(now=True).optimised
    keys, poses, scale = graph.poses()
    assert (len(keys), poses.shape, scale.shape) == (0, (0, 4, 4), (0,))
    with pytest.raises(GeometryError, match='empty'):
        _ = graph.origin
    graph.add_keyframe(3, moved(1.0))
    graph.update(now=True)
    assert graph.origin == 3
    assert graph.optimise_fully() == pytest.approx(0.0)
    np.testing.assert_allclose(graph.marginal(3), 1e-10 * np.eye(6), atol=1e-12)


NOT_A_NUMBER = np.full((4, 4), np.nan)


@pytest.mark.parametrize(
    ('fault', 'what'),
    [
        (lambda g: g.add_keyframe(4, np.eye(4)), 'keyframe 4: keys must increase, the last is 4'),
        (lambda g: g.add_keyframe(5, NOT_A_NUMBER), 'keyframe 5: a number of the pose'),
        (lambda g: g.add_keyframe(5, np.eye(3)), r'pose must be \(4, 4\)'),
        (lambda g: g.add_keyframe(5, 2.0 * np.eye(4)), 'not a rotation'),
        (lambda g: g.add_keyframe(5, np.eye(4), 2.0), 'a metric graph has no scale, got 2'),
        (lambda g: g.add_odometry(3, 5, np.eye(4), STEP), 'odometry 3 -> 5: the newest keyframe'),
        (lambda g: g.add_odometry(4, 2, np.eye(4), STEP), 'keys must increase'),
        (lambda g: g.add_odometry(4, 5, NOT_A_NUMBER, STEP), 'odometry 4 -> 5: a number'),
        (lambda g: g.add_odometry(4, 5, np.eye(4), -STEP), 'not positive definite'),
        (lambda g: g.add_odometry(4, 5, np.eye(4), STEP[:3, :3]), r'must be \(6, 6\)'),
        (lambda g: g.add_odometry(4, 5, np.eye(4), np.nan * STEP), 'covariance is not finite'),
        (lambda g: g.add_loops([Loop(0, 9, np.eye(4), TIGHT)]), 'keyframe 9 is not in the graph'),
        (lambda g: g.add_loops([Loop(0, 4, np.eye(4), np.eye(7))]), r'must be \(6, 6\)'),
        (lambda g: g.add_loops([Loop(0, 4, np.eye(4), TIGHT, 1.5)]), 'no scale, got 1.5'),
        (lambda g: Loop(4, 4, np.eye(4), TIGHT), 'cannot close a loop alone'),
        (lambda g: Loop(0, 4, NOT_A_NUMBER, TIGHT), 'loop 0 -> 4: a number'),
        (lambda g: Loop(0, 4, np.eye(4), TIGHT, -1.0), 'scale -1 is not a positive number'),
        (lambda g: Loop(0, 4, np.eye(4), np.eye(3)), r'\(6, 6\) or \(7, 7\)'),
        (lambda g: g.pose(9), 'keyframe 9 is not in the graph'),
        (lambda g: g.marginal(-1), 'keyframe -1 is not in the graph'),
        (lambda g: g.relative_covariance(0, 9), 'keyframe 9'),
        (lambda g: g.fix_origin(9, np.eye(4)), 'keyframe 9'),
        (lambda g: g.joined(9), 'keyframe 9'),
    ],
)  # fmt: skip
def test_faults_are_one_line_and_leave_the_graph_as_it_was(
    fault: Callable[[PoseGraph], object], what: str
) -> None:
    graph = line(5)
    with pytest.raises(GeometryError, match=what):
        fault(graph)
    graph.add_odometry(4, 5, moved(1.0), STEP)
    graph.add_loops([Loop(0, 5, moved(5.0), TIGHT)])
    assert graph.update(now=True).optimised
    assert len(graph) == 6


def test_first_odometry_needs_a_keyframe() -> None:
    with pytest.raises(GeometryError, match='the newest keyframe is none'):
        PoseGraph(PoseGraphSettings()).add_odometry(0, 1, np.eye(4), STEP)


def test_a_similarity_maps_points_as_it_says() -> None:
    """map_from_body with scale s maps p to s R p + t; odometry is in the units of its keyframe."""
    graph = PoseGraph(PoseGraphSettings(), similarity=True)
    graph.add_keyframe(0, moved(1.0, 2.0, 0.5), 3.0)
    graph.add_odometry(0, 1, moved(1.0, 0.0, 0.2), STEP)
    pose, scale = graph.pose(1)
    assert scale == pytest.approx(3.0)
    expected = with_scale(moved(1.0, 2.0, 0.5), 3.0) @ moved(1.0, 0.0, 0.2)
    np.testing.assert_allclose(with_scale(pose, scale), expected, atol=1e-12)
    np.testing.assert_allclose(SIM3.inverse(expected) @ expected, np.eye(4), atol=1e-12)


def driven_line(similarity: bool) -> tuple[PoseGraph, np.ndarray]:
    """Keyframes 0 … 20 there and 21 … 41 back, four loops, and their true poses."""
    scale = 1.3 if similarity else 1.0
    rng = np.random.default_rng(0)
    poses = [moved(float(k), 0.1 * k, 0.05 * k) for k in range(21)]
    poses += [pose @ moved(0.2, 0.1, 0.02) for pose in reversed(poses)]
    truth = with_scale(np.stack(poses), np.where(np.arange(42) < 21, 1.0, scale))
    size = 7 if similarity else 6
    algebra = SIM3 if similarity else SE3
    steps = [np.linalg.inv(a) @ b for a, b in pairwise(truth)]
    graph = PoseGraph(PoseGraphSettings(), similarity)
    graph.add_keyframe(0, truth[0])
    for k, step in enumerate(steps, 1):
        pose, unit = split_scale(step)
        graph.add_odometry(k - 1, k, pose, np.eye(7) * 1e-6, round(float(unit), 9))
    for a, b in ((3, 38), (4, 37), (10, 31), (18, 24)):
        off = algebra.exp(rng.normal(0.0, 1e-4, size))
        pose, unit = split_scale(np.linalg.inv(truth[a]) @ truth[b] @ off)
        graph.add_loops(
            [Loop(a, b, pose, 1e-6 * np.eye(size), round(float(unit), 9))], trusted=True
        )
    graph.update(now=True)
    return graph, truth


@pytest.mark.parametrize('similarity', [False, True])
def test_loops_of_keyframes_that_go_are_those_of_their_neighbours(similarity: bool) -> None:
    graph, truth = driven_line(similarity)
    every = graph.loops_among(list(range(42)))
    assert [(loop.a, loop.b) for loop in every] == [(3, 38), (4, 37), (10, 31), (18, 24)]
    np.testing.assert_allclose(every[2].a_from_b, graph.loops[2].a_from_b, atol=1e-12)
    np.testing.assert_allclose(every[2].covariance, graph.loops[2].covariance, atol=1e-18)
    kept = [0, 5, 11, 20, 25, 30, 36, 41]
    carried = graph.loops_among(kept)
    # Two of them lay between the same two: the tighter one is left.
    assert [(loop.a, loop.b) for loop in carried] == [(5, 36), (11, 30), (20, 25)]
    for loop, (a, b) in zip(carried, ((4, 37), (10, 31), (18, 24)), strict=True):
        true, unit = split_scale(np.linalg.inv(truth[loop.a]) @ truth[loop.b])
        np.testing.assert_allclose(loop.a_from_b, true, atol=5e-3)
        assert loop.scale == pytest.approx(float(unit), rel=1e-3)
        steps = abs(loop.a - a) + abs(loop.b - b)
        least = np.linalg.eigvalsh(loop.covariance)[0]
        assert 1e-6 < least < (1 + steps) * 1e-6
        assert np.linalg.eigvalsh(loop.covariance)[-1] >= (1 + steps) * 1e-6
    assert graph.loops_among([7]) == []
    assert graph.loops_among([]) == []


def test_the_covariance_of_a_carried_loop_is_the_spread_of_what_it_says() -> None:
    rng = np.random.default_rng(1)
    spread = np.diag([1e-4, 4e-4, 1e-4, 1e-5, 1e-5, 4e-5])
    true = [moved(float(k), 0.3 * k, 0.2 * k) for k in range(12)]
    root, said = np.linalg.cholesky(spread), []
    for _ in range(400):
        graph = PoseGraph(PoseGraphSettings())
        graph.add_keyframe(0, true[0])

        def seen(a: int, b: int) -> np.ndarray:
            return np.linalg.inv(true[a]) @ true[b] @ SE3.exp(root @ rng.normal(size=6))

        for k in range(1, 12):
            graph.add_odometry(k - 1, k, seen(k - 1, k), spread)
        graph.add_loops([Loop(3, 9, seen(3, 9), spread)], trusted=True)
        (loop,) = graph.loops_among([0, 4, 8, 11])
        exact = np.linalg.inv(true[4]) @ true[8]
        said.append(SE3.log(np.linalg.inv(exact) @ loop.a_from_b))
    assert (loop.a, loop.b) == (4, 8)
    whitened = np.linalg.solve(np.linalg.cholesky(loop.covariance), np.stack(said).T)
    np.testing.assert_allclose(whitened @ whitened.T / len(said), np.eye(6), atol=0.25)
