# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import (
    associate,
    coverage_of_frames,
    coverage_of_truth,
    path_distances,
)

MS = 1_000_000


def straight(stamps_ns, speed=1.0):
    """Along x at `speed` m/s, at the origin at time 0."""
    stamps = np.asarray(stamps_ns, dtype=np.int64)
    poses = np.tile(np.eye(4), (len(stamps), 1, 1))
    poses[:, 0, 3] = speed * stamps * 1e-9
    return Trajectory(stamps, poses)


def test_nearest_pose_in_time_is_found_and_the_difference_said():
    truth = straight(np.arange(0, 1000, 5) * MS)
    estimate = straight(np.array([101, 202, 304, 400]) * MS)
    pairs = associate(estimate, truth)
    assert (pairs.truth[:, 0, 3] * 1000).round().tolist() == [100, 200, 305, 400]
    assert pairs.max_difference_s == pytest.approx(0.002)
    assert pairs.method == 'nearest'


def test_no_pose_is_used_twice_when_the_truth_is_sparser():
    truth = straight(np.arange(4) * 1000 * MS)
    estimate = straight(np.arange(0, 3500, 4) * MS)
    pairs = associate(estimate, truth)
    assert len(pairs) == 4
    assert pairs.stamps_ns.tolist() == truth.stamps_ns.tolist()


def test_poses_beyond_the_limit_are_left_out():
    truth = straight(np.arange(10) * 100 * MS)
    estimate = straight(np.arange(10) * 100 * MS + 15 * MS)
    with pytest.raises(EvaluationError, match=r'no poses in common within 0\.01 s'):
        associate(estimate, truth)
    assert len(associate(estimate, truth, max_difference_s=0.02)) == 10


def test_interpolated_truth_is_exact_on_a_steady_motion(path, se3_exp):
    twist = np.array([0.4, 0.1, 0.0, 0.02, -0.1, 0.3])
    stamps = np.arange(20) * 100 * MS
    truth = Trajectory(stamps, np.array([se3_exp(twist * k) for k in range(20)]))
    between = np.array([0.25, 3.5, 7.125, 18.9])
    estimate = Trajectory(
        np.rint(between * 100 * MS).astype(np.int64),
        np.array([se3_exp(twist * k) for k in between]),
    )
    pairs = associate(estimate, truth, interpolate=True, max_gap_s=0.11)
    assert len(pairs) == 4
    np.testing.assert_allclose(pairs.truth, pairs.estimate, atol=1e-12)
    nearest = associate(estimate, truth, max_difference_s=0.05)
    assert np.abs(nearest.truth - nearest.estimate).max() > 0.1


def test_truth_is_not_interpolated_over_gaps_but_exact_stamps_count():
    stamps = np.concatenate([np.arange(5), np.arange(20, 25)]) * 100 * MS
    truth = straight(stamps)
    estimate = straight(np.array([50, 150, 400, 1000, 1500, 2000, 2350, 2500]) * MS)
    pairs = associate(estimate, truth, interpolate=True, max_gap_s=0.11)
    assert (pairs.stamps_ns // MS).tolist() == [50, 150, 400, 2000, 2350]


def test_disjoint_times_name_both_spans():
    with pytest.raises(EvaluationError, match=r'estimate: 5 poses, 0.000 to 0.004 s; truth: 5'):
        associate(straight(np.arange(5) * MS), straight(np.arange(5) * MS + 10**12))


@pytest.mark.parametrize('count', [1, 2])
def test_fewer_than_three_poses_are_refused(count):
    with pytest.raises(EvaluationError, match=f'only {count} of at least 3'):
        associate(straight(np.arange(count) * MS), straight(np.arange(count) * MS))


def test_empty_and_unsorted_trajectories_are_refused_by_name():
    good = straight(np.arange(5) * MS)
    with pytest.raises(EvaluationError, match='the estimate holds no poses'):
        associate(straight([]), good)
    with pytest.raises(EvaluationError, match='truth: stamps must increase, but pose 2'):
        associate(good, straight(np.array([0, 2, 1, 3]) * MS))
    with pytest.raises(EvaluationError, match='5 stamps but poses of shape'):
        associate(Trajectory(good.stamps_ns, good.world_from_body[:4]), good)


def test_poses_that_are_not_finite_are_left_out_and_counted():
    truth, estimate = straight(np.arange(9) * MS), straight(np.arange(9) * MS)
    truth.world_from_body[2, 0, 3] = np.nan
    estimate.world_from_body[[4, 5], 1, 1] = np.inf
    pairs = associate(estimate, truth, max_difference_s=1e-4)
    assert (pairs.stamps_ns // MS).tolist() == [0, 1, 3, 6, 7, 8]
    assert pairs.ignored == {
        'estimate poses that are not finite': 2,
        'truth poses that are not finite': 1,
    }


def test_coverage_counts_the_frames_with_truth_that_have_a_pose():
    frames = np.arange(20) * 100 * MS
    truth = straight(frames[5:])  # the first five frames have no truth
    posed = np.concatenate([frames[2:10], frames[13:]])
    share, of = coverage_of_frames(frames, straight(posed), truth, max_gap_s=0.05)
    assert of == 15
    assert share == pytest.approx(12 / 15)


def test_coverage_is_zero_without_truth_at_the_frames():
    assert coverage_of_frames(
        np.arange(5) * MS, straight([0]), straight(np.arange(5) * MS + 10**12)
    ) == (0.0, 0)


def test_coverage_without_frames_compares_with_the_truths_times():
    truth = straight(np.arange(0, 10_000, 10) * MS)
    whole = straight(np.arange(0, 10_000, 100) * MS)
    assert coverage_of_truth(whole, truth) == pytest.approx(1.0, abs=0.01)
    half = Trajectory(whole.stamps_ns[:50], whole.world_from_body[:50])
    assert coverage_of_truth(half, truth) == pytest.approx(0.5, abs=0.01)
    gap = np.r_[0:30, 60:100]
    holed = Trajectory(whole.stamps_ns[gap], whole.world_from_body[gap])
    assert coverage_of_truth(holed, truth) == pytest.approx(0.7, abs=0.02)


def test_scaling_scales_lengths_and_their_covariance():
    estimate = straight(np.arange(5) * MS)
    covariances = np.tile(np.ones((6, 6)), (5, 1, 1))
    estimate = Trajectory(estimate.stamps_ns, estimate.world_from_body, covariances)
    pairs = associate(estimate, straight(np.arange(5) * MS)).scaled(3.0)
    np.testing.assert_allclose(path_distances(pairs.estimate), 3 * path_distances(pairs.truth))
    assert pairs.covariances is not None
    assert pairs.covariances[0, 0, 0] == 9.0
    assert pairs.covariances[0, 0, 5] == 3.0
    assert pairs.covariances[0, 5, 5] == 1.0
