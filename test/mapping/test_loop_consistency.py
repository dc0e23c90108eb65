# SPDX-License-Identifier: Apache-2.0
"""False loops do no harm: single ones, runs of them, before and after true ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.mapping import graph_worlds
from mv_matcher_ros.mapping.graph_worlds import GraphWorld
from mv_matcher_ros.mapping.loop_consistency import MOST_WAITING, LoopConsistency
from mv_matcher_ros.mapping.loop_cycles import Link, Paths, pair_misfit
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.odometry_chain import OdometryChain
from mv_matcher_ros.mapping.pose_algebra import SE3, SIM3, Algebra
from mv_matcher_ros.mapping.pose_graph import PoseGraph

Driven = Callable[..., PoseGraph]
Off = Callable[[PoseGraph, GraphWorld], float]
SIGMA = np.array([0.02, 0.02, 0.02, 0.002, 0.002, 0.002])


def at(x: float, y: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


def straight(count: int, sigma: np.ndarray = SIGMA) -> OdometryChain:
    """Keyframes a metre apart along x."""
    chain = OdometryChain(SE3)
    chain.begin()
    for _ in range(count - 1):
        chain.extend(at(1.0), np.diag(sigma**2))
    return chain


def link(a: int, b: int, pose: np.ndarray) -> Link:
    covariance = np.diag([1e-4] * 3 + [1e-6] * 3)
    return Link(a, b, pose, covariance, Loop(a, b, pose, covariance))


def judge(chain: OdometryChain, **settings: Any) -> LoopConsistency:
    return LoopConsistency(chain, PoseGraphSettings(**settings), lambda _: 50.0)


@pytest.mark.slow
@pytest.mark.parametrize('algebra', [SE3, SIM3], ids=['SE3', 'Sim3'])
def test_misfits_of_true_cycles_are_chi_squared(algebra: Algebra) -> None:
    """Mean and spread over many noisy worlds: covariances are carried round correctly."""
    rng = np.random.default_rng(0)
    size = algebra.size
    step = algebra.exp(np.array([1.0, 0.1, 0.0, 0.0, 0.02, 0.1, 0.0])[:size])
    sigma = np.array([0.02, 0.03, 0.01, 0.002, 0.001, 0.004, 0.003])[:size]
    loop_sigma = np.array([0.05, 0.03, 0.05, 0.004, 0.008, 0.005, 0.01])[:size]

    def noisy(pose: np.ndarray, spread: np.ndarray) -> np.ndarray:
        return pose @ algebra.exp(rng.normal(size=size) * spread)

    truth = [np.eye(4)]
    for _ in range(30):
        truth.append(truth[-1] @ step)
    ends = ((2, 25), (5, 29), (4, 22))
    pairs, ways = [], []
    for _ in range(250):
        chain = OdometryChain(algebra)
        chain.begin()
        for _ in range(30):
            chain.extend(noisy(step, sigma), np.diag(sigma**2))
        links = []
        for a, b in ends:
            exact = algebra.inverse(truth[a]) @ truth[b]
            covariance = np.diag(loop_sigma**2)
            loop = Loop(a, b, np.eye(4), covariance)
            links.append(Link(a, b, noisy(exact, loop_sigma), covariance, loop))
        pairs.append(pair_misfit(chain, links[0], links[1:]).squared)
        paths = Paths(chain)
        paths.add(0, links[1])
        steps = paths.tightest(links[0].b, links[0].a)
        assert steps is not None
        ways.append(paths.misfit(links[0], steps).squared[0])
    for squared in (*np.array(pairs).T, np.array(ways)):
        assert squared.mean() == pytest.approx(size, rel=0.12)
        assert squared.var() == pytest.approx(2 * size, rel=0.35)


def test_relative_covariances_do_not_depend_on_where_the_segment_began() -> None:
    """Sums from the start minus each other are what summing in between gives, far away too."""
    chain, covariance = straight(3000), np.diag(SIGMA**2)
    pose, found = chain.relative(np.array([2900, 2990]), np.array([2990, 2900]))
    short = straight(91)
    near, expected = short.relative(np.array([0, 90]), np.array([90, 0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(pose, near, atol=1e-9)
    forward = SE3.adjoint(near[1])
    np.testing.assert_allclose(forward @ expected[1] @ forward.T, expected[0], atol=1e-9)
    assert expected[0][0, 0] == pytest.approx(90 * covariance[0, 0])


def test_the_tightest_way_takes_loops_where_they_are_shorter() -> None:
    chain = straight(400)
    paths = Paths(chain)
    paths.add(7, link(10, 390, at(380.0)))
    assert paths.tightest(399, 0) == [(399, 390, None), (390, 10, 7), (10, 0, None)]
    assert paths.tightest(30, 20) == [(30, 20, None)]
    paths.remove(7)
    assert paths.tightest(399, 0) == [(399, 0, None)]
    chain.begin()
    assert paths.tightest(400, 0) is None
    paths.add(8, link(3, 400, at(1.0)))
    assert paths.tightest(400, 0) == [(400, 3, 8), (3, 0, None)]


def test_a_loop_that_agrees_with_odometry_is_believed_alone() -> None:
    loops = judge(straight(60))
    assert loops.add(link(0, 50, at(50.1))) in loops.believed


def test_a_loop_that_might_agree_by_chance_waits_for_another_image() -> None:
    loops = judge(straight(1500))  # half a kilometre of uncertainty on a map of fifty metres
    first = loops.add(link(3, 1200, at(1192.0, 4.0)))
    same_image = loops.add(link(6, 1200, at(1189.0, 4.0)))
    assert not loops.believed
    second = loops.add(link(5, 1202, at(1192.0, 4.0)))
    assert loops.believed == {first, same_image, second}


def test_a_loop_that_contradicts_waits_until_more_agree_with_it() -> None:
    loops = judge(straight(60), overconfidence=1.0)
    wrong = loops.add(link(0, 40, at(40.4)))
    assert wrong in loops.believed
    one = loops.add(link(4, 46, at(42.0)))
    assert loops.believed == {wrong}
    two = loops.add(link(5, 47, at(42.0)))
    assert loops.believed == {one, two}
    # Exchanged only for more: with the one that was dropped two against two change nothing.
    third = loops.add(link(6, 47, at(41.4)))
    assert loops.believed == {one, two}
    fourth = loops.add(link(8, 49, at(41.4)))
    assert loops.believed == {wrong, third, fourth}


def test_no_number_of_loops_outweighs_odometry() -> None:
    """A street that looks like another gives as many agreeing loops as one likes."""
    loops = judge(straight(200))
    for k in range(30):
        loops.add(link(10 + k, 150 + k, at(1.0)))
    assert not loops.believed


def test_what_was_believed_in_doubt_is_dropped_once_odometry_proves_honest() -> None:
    loops = judge(straight(400), overconfidence=3.0)
    doubtful = {loops.add(link(k, 100 + k, at(100.0, 8.0))) for k in range(2)}
    assert loops.believed == doubtful
    honest = {loops.add(link(k, k + 60, at(60.0))) for k in (150, 230, 310)}
    assert loops.believed == honest


@pytest.mark.slow
def test_waiting_loops_are_forgotten_in_the_end() -> None:
    loops = judge(straight(60))
    for _ in range(MOST_WAITING // 4):
        loops.add(link(0, 50, at(1.0)))
    before = len(loops._candidates)
    for k in range(MOST_WAITING):
        loops.add(link(k % 7, 50 - k % 5, at(1.0 + k % 3)))
    assert before == MOST_WAITING // 4
    assert len(loops._candidates) == MOST_WAITING
    assert not loops.believed


def believed_of(graph: PoseGraph, loops: tuple[Loop, ...]) -> int:
    taken = {id(loop) for loop in graph.loops}
    return sum(id(loop) in taken for loop in loops)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['random', 'runs of 8', 'runs of 25'])
@pytest.mark.parametrize('mono', [False, True], ids=['metric', 'mono'])
def test_as_many_false_loops_as_true_ones(driven: Driven, off: Off, kind: str, mono: bool) -> None:
    world = graph_worlds.manhattan(700, blocks=5, seed=1, every=2)
    if mono:
        world = graph_worlds.without_metric_scale(world)
    count = len(world.loops)
    if kind == 'random':
        false = graph_worlds.random_false_loops(world, count, seed=1)
    else:
        length = int(kind.split()[-1])
        false = graph_worlds.clustered_false_loops(world, count, length, seed=1)
    assert len(false) == count > 40
    clean, attacked = driven(world), driven(world, false)
    assert off(attacked, world) < 1.05 * off(clean, world)
    assert believed_of(attacked, false) == 0
    assert believed_of(attacked, world.loops) > 0.95 * count


def test_odometry_that_is_surer_than_it_should_be(driven: Driven, off: Off) -> None:
    """Standard deviations half as large as they are: true loops are believed all the same."""
    world = graph_worlds.manhattan(700, blocks=5, seed=2, every=2)
    world = replace(
        world,
        step_covariance=world.step_covariance / 4,
        loops=tuple(replace(loop, covariance=loop.covariance / 4) for loop in world.loops),
    )
    false = graph_worlds.clustered_false_loops(world, len(world.loops), seed=2)
    clean, attacked = driven(world), driven(world, false)
    assert believed_of(clean, world.loops) > 0.9 * len(world.loops)
    assert off(attacked, world) < 1.2 * off(clean, world)
