# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import associate
from mv_matcher_ros.evaluation.consistency import (
    chi_square_quantile,
    consistency,
    covariance_in_body,
    relative_motion_covariance,
)
from mv_matcher_ros.evaluation.poses import adjoint, invert, with_exact_rotations

SIGMA = np.array([0.02, 0.01, 0.03, 2e-3, 1e-3, 3e-3])


@pytest.fixture
def dead_reckoning(path, se3_exp):
    """Odometry whose steps have exactly the stated noise, and the covariance it accumulates."""

    def make(count: int, stated: float = 1.0, seed: int = 0):
        truth = path(count)
        rng = np.random.default_rng(seed)
        world = truth.world_from_body
        noise = se3_exp(-SIGMA * rng.normal(size=(count - 1, 6)))
        steps = with_exact_rotations(invert(world[:-1]) @ world[1:] @ noise)
        poses, covariances = [world[0]], [np.zeros((6, 6))]
        in_body = np.zeros((6, 6))
        for step, transport in zip(steps, adjoint(invert(steps)), strict=True):
            poses.append(poses[-1] @ step)
            in_body = transport @ in_body @ transport.T + np.diag((stated * SIGMA) ** 2)
            turn = np.kron(np.eye(2), poses[-1][:3, :3])
            covariances.append(turn @ in_body @ turn.T)
        return truth, Trajectory(truth.stamps_ns, np.array(poses), np.array(covariances))

    return make


@pytest.mark.parametrize('dof', [1, 2, 3, 6, 30, 600, 60_000])
@pytest.mark.parametrize('probability', [1e-6, 0.025, 0.5, 0.975, 1 - 1e-9])
def test_chi_square_quantile_is_scipys(dof, probability):
    expected = stats.chi2.ppf(probability, dof)
    assert chi_square_quantile(probability, dof) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(('probability', 'dof'), [(0.0, 6), (1.0, 6), (0.5, 0), (np.nan, 6)])
def test_quantiles_that_do_not_exist_are_refused(probability, dof):
    with pytest.raises(EvaluationError, match='no chi-square quantile'):
        chi_square_quantile(probability, dof)


def test_motion_covariance_is_recovered_from_the_accumulated_ones(dead_reckoning):
    _, estimate = dead_reckoning(200)
    assert estimate.covariances is not None
    first, last = np.array([0, 50, 198]), np.array([1, 51, 199])
    found = relative_motion_covariance(
        estimate.world_from_body[first],
        estimate.world_from_body[last],
        estimate.covariances[first],
        estimate.covariances[last],
    )
    for matrix in found:
        np.testing.assert_allclose(matrix, np.diag(SIGMA**2), atol=1e-12)


def test_body_covariance_is_what_samples_show(se3_exp):
    pose = se3_exp(np.array([5.0, -3.0, 2.0, 0.5, 1.2, -0.7]))
    rng = np.random.default_rng(2)
    turn = np.kron(np.eye(2), pose[:3, :3])
    in_odom = turn @ np.diag(SIGMA**2) @ turn.T
    # Errors in odom's axes: the position moves, the attitude turns about the body's own origin.
    errors = rng.multivariate_normal(np.zeros(6), in_odom, 20_000)
    np.testing.assert_allclose(
        covariance_in_body(pose[None], in_odom[None])[0], np.diag(SIGMA**2), atol=1e-15
    )
    in_body = errors @ turn
    np.testing.assert_allclose(np.cov(in_body.T), np.diag(SIGMA**2), atol=3e-2 * SIGMA.max() ** 2)


@pytest.mark.parametrize('delta', [1, 10])
def test_honest_covariance_is_consistent(dead_reckoning, delta):
    truth, estimate = dead_reckoning(3000)
    found = consistency(associate(estimate, truth), delta)
    assert found.verdict == 'consistent'
    assert found.bounds_per_dof[0] < found.nees_per_dof < found.bounds_per_dof[1]
    assert found.share_inside == pytest.approx(0.95, abs=0.04)
    assert found.translation_per_dof == pytest.approx(1.0, abs=0.15)
    assert found.rotation_per_dof == pytest.approx(1.0, abs=0.15)
    assert found.unusable == 0
    assert len(found.nees) == len(range(0, 3000 - delta, delta))


@pytest.mark.parametrize(('stated', 'verdict'), [(0.5, 'optimistic'), (2.0, 'conservative')])
def test_wrong_covariance_is_told_with_its_factor(dead_reckoning, stated, verdict):
    truth, estimate = dead_reckoning(2000, stated)
    found = consistency(associate(estimate, truth))
    assert found.verdict == verdict
    assert found.nees_per_dof == pytest.approx(1 / stated**2, rel=0.15)
    assert found.share_inside < 0.7


def test_alignment_of_the_world_does_not_matter(dead_reckoning, se3_exp):
    truth, estimate = dead_reckoning(300)
    moved = Trajectory(
        truth.stamps_ns, se3_exp(np.array([1.0, 2, 3, 0.4, -0.5, 0.6])) @ truth.world_from_body
    )
    here, there = (consistency(associate(estimate, t)).nees for t in (truth, moved))
    np.testing.assert_allclose(here, there, rtol=1e-6)


def test_motions_without_a_usable_covariance_are_counted(dead_reckoning):
    truth, estimate = dead_reckoning(301)
    assert estimate.covariances is not None
    estimate.covariances[100] = np.nan  # ends one motion and begins the next
    estimate.covariances[200] *= 50.0  # shrinks afterwards: the next motion has none
    found = consistency(associate(estimate, truth))
    assert found.unusable == 3
    assert len(found.nees) == 27


def test_no_covariance_and_a_constant_one_are_refused_with_the_reason(dead_reckoning):
    truth, estimate = dead_reckoning(50)
    bare = Trajectory(estimate.stamps_ns, estimate.world_from_body)
    with pytest.raises(EvaluationError, match='has no covariances'):
        consistency(associate(bare, truth))
    constant = np.tile(np.diag([0.1] * 3 + [0.01] * 3), (50, 1, 1))
    still = Trajectory(estimate.stamps_ns, estimate.world_from_body, constant)
    with pytest.raises(EvaluationError, match='must grow'):
        consistency(associate(still, truth))


def test_coverage_and_likelihood_of_an_honest_covariance(dead_reckoning):
    truth, estimate = dead_reckoning(3000)
    found = consistency(associate(estimate, truth), 1)
    for row, true in zip(found.coverage, (0.6827, 0.9545, 0.9973), strict=True):
        np.testing.assert_allclose(row, true, atol=0.03)
    # Steps of one noise: one constant covariance explains them as well, fitted a little better.
    assert found.nll_constant == pytest.approx(found.nll, abs=0.02)
    expected = stats.multivariate_normal(np.zeros(6), np.diag(SIGMA**2))
    errors = np.random.default_rng(1).normal(size=(20_000, 6)) * SIGMA
    assert found.nll == pytest.approx(-expected.logpdf(errors).mean(), abs=0.1)


@pytest.mark.parametrize('stated', [0.5, 2.0])
def test_coverage_and_likelihood_of_a_wrong_covariance(dead_reckoning, stated):
    truth, estimate = dead_reckoning(2000, stated)
    found = consistency(associate(estimate, truth), 1)
    np.testing.assert_allclose(found.coverage[0], stats.chi2.cdf(stated**2, 1), atol=0.05)
    assert found.gain < 0


def test_a_covariance_that_changes_beats_a_constant_one(se3_exp):
    rng = np.random.default_rng(0)
    factor = rng.choice([0.3, 3.0], 1000)  # stated for each step, as it is
    noise = se3_exp(-factor[:, None] * SIGMA * rng.normal(size=(1000, 6)))
    poses = np.concatenate([np.eye(4)[None], np.array(noise)])
    for k in range(1, len(poses)):
        poses[k] = poses[k - 1] @ poses[k]
    in_body = np.zeros((6, 6))
    covariances = [in_body]
    for k, step in enumerate(noise):
        transport = adjoint(invert(step[None]))[0]
        in_body = transport @ in_body @ transport.T + factor[k] ** 2 * np.diag(SIGMA**2)
        turn = np.kron(np.eye(2), poses[k + 1, :3, :3])
        covariances.append(turn @ in_body @ turn.T)
    stamps = np.arange(1001) * 10_000_000
    still = Trajectory(stamps, np.tile(np.eye(4), (1001, 1, 1)))
    found = consistency(associate(Trajectory(stamps, poses, np.array(covariances)), still), 1)
    assert found.verdict == 'consistent'
    assert found.gain > 0


def test_few_motions_fit_no_constant(dead_reckoning):
    truth, estimate = dead_reckoning(50)
    assert consistency(associate(estimate, truth), 10).nll_constant is None
