# SPDX-License-Identifier: Apache-2.0
"""Conventions on the way to GTSAM and back, each pinned by a numerical perturbation."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.mapping.pose_algebra import SE3, SIM3, Algebra, split_scale, with_scale
from mv_matcher_ros.mapping.pose_graph import PoseGraph
from mv_matcher_ros.mapping.pose_graph_solver import Between, Prior, Solver

BOTH = pytest.mark.parametrize('algebra', [SE3, SIM3], ids=['SE3', 'Sim3'])


@pytest.fixture(autouse=True)
def _needs_gtsam(request: pytest.FixtureRequest) -> None:
    if 'without_gtsam' not in request.node.name:
        pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')


def some_covariance(size: int, seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(size, size))
    return 1e-2 * (root @ root.T + np.eye(size))


def some_pose(algebra: Algebra, seed: int = 0) -> np.ndarray:
    return algebra.exp(np.random.default_rng(seed).normal(0.0, 0.7, algebra.size))


@BOTH
def test_cost_of_a_perturbation_is_the_one_its_covariance_says(algebra: Algebra) -> None:
    """T exp(xi) costs xi^T S^-1 xi / 2 in each direction: order, side and units of the tangent."""
    solver, covariance = Solver(algebra), some_covariance(algebra.size)
    place, step = some_pose(algebra, 1), some_pose(algebra, 2)
    information = np.linalg.inv(covariance)
    for direction in np.eye(algebra.size):
        xi = 1e-4 * direction
        moved = np.stack([place, place @ step @ algebra.exp(xi)])
        cost = solver.cost(moved, [Between(0, 1, step, covariance)])
        assert cost == pytest.approx(0.5 * xi @ information @ xi, rel=1e-3)
        cost = solver.cost(moved[1:], [Prior(0, place @ step, covariance)])
        assert cost == pytest.approx(0.5 * xi @ information @ xi, rel=1e-3)


@BOTH
def test_poses_come_back_as_they_went(algebra: Algebra) -> None:
    solver, poses = Solver(algebra), np.stack([some_pose(algebra, k) for k in range(3)])
    priors = [Prior(k, pose, some_covariance(algebra.size)) for k, pose in enumerate(poses)]
    np.testing.assert_allclose(solver.optimum(poses, priors)[0], poses, atol=1e-9)
    for k, prior in enumerate(priors):
        solver.add_variable(k, poses[k])
        solver.add(prior)
    solver.update(0)
    np.testing.assert_allclose(solver.poses(), poses, atol=1e-9)


@BOTH
def test_covariances_come_back_as_they_went(algebra: Algebra) -> None:
    """Also jointly, in the order asked for."""
    solver, size = Solver(algebra), algebra.size
    first, second = some_covariance(size, 1), some_covariance(size, 2)
    for k, covariance in ((0, first), (1, second)):
        solver.add_variable(k, some_pose(algebra, k))
        solver.add(Prior(k, some_pose(algebra, k), covariance))
    solver.update(0)
    np.testing.assert_allclose(solver.joint([0]), first, rtol=1e-6, atol=1e-12)
    nothing = np.zeros((size, size))
    for order, blocks in (([0, 1], (first, second)), ([1, 0], (second, first))):
        expected = np.block([[blocks[0], nothing], [nothing, blocks[1]]])
        np.testing.assert_allclose(solver.joint(order), expected, rtol=1e-6, atol=1e-9)


def test_a_similarity_does_to_points_what_gtsams_does() -> None:
    gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    pose, point = some_pose(SIM3), np.array([1.0, -2.0, 0.5])
    rigid, scale = split_scale(pose)
    theirs = Solver(SIM3)._pose(pose)
    assert isinstance(theirs, gtsam.Similarity3)
    assert theirs.scale() == pytest.approx(float(scale))
    expected = scale * rigid[:3, :3] @ point + pose[:3, 3]
    np.testing.assert_allclose(theirs.transformFrom(point), expected, atol=1e-12)
    np.testing.assert_allclose(with_scale(rigid, scale), pose, atol=1e-12)


def test_qr_holds_a_long_open_chain() -> None:
    solver, covariance = Solver(SE3), np.diag([1e-4, 1e-4, 1e-4, 1e-6, 1e-6, 1e-6])
    step = np.eye(4)
    step[0, 3] = 1.0
    solver.add_variable(0, np.eye(4))
    solver.add(Prior(0, np.eye(4), 1e-10 * np.eye(6)))
    pose = np.eye(4)
    for k in range(1, 5000):
        pose = pose @ step
        solver.add_variable(k, pose)
        solver.add(Between(k - 1, k, step, covariance))
    solver.update(2)
    np.testing.assert_allclose(solver.poses()[-1], pose, atol=1e-6)
    spread = solver.joint([4999])
    assert spread[0, 0] == pytest.approx(4999e-4, rel=1e-6)  # along the way nothing is amplified
    assert spread[1, 1] == pytest.approx(4999e-4 + 1e-6 * 4998 * 4999 * 9997 / 6, rel=1e-6)


def test_removed_factors_are_gone() -> None:
    solver, tight, shifted = Solver(SE3), 1e-4 * np.eye(6), np.eye(4)
    shifted[0, 3] = 2.0
    solver.add_variable(0, np.eye(4))
    solver.add(Prior(0, np.eye(4), tight))
    wrong, unsent = (solver.add(Prior(0, shifted, tight)) for _ in range(2))
    solver.remove(unsent)
    solver.update(3)
    assert solver.poses()[0, 0, 3] == pytest.approx(1.0)
    solver.remove(wrong)
    solver.update(3)
    assert solver.poses()[0, 0, 3] == pytest.approx(0.0, abs=1e-9)


def test_a_wrong_factor_counts_less_with_a_robust_kernel() -> None:
    places = []
    for kernel in (None, 3.0):
        solver, far = Solver(SE3), np.eye(4)
        far[0, 3] = 10.0
        for k in (0, 1):
            solver.add_variable(k, np.eye(4))
            solver.add(Prior(k, np.eye(4), 0.01 * np.eye(6)))
        solver.add(Between(0, 1, far, 0.01 * np.eye(6), kernel))
        solver.update(10)
        places.append(abs(solver.poses()[:, 0, 3]).max())
    assert places[0] > 3.0
    assert places[1] < 0.1


def test_without_gtsam_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'gtsam', None)
    with pytest.raises(MissingDependencyError, match=r'pip install "mv_matcher_ros\[mapping\]"'):
        PoseGraph(PoseGraphSettings())
