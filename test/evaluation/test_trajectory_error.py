# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import PosePairs, associate
from mv_matcher_ros.evaluation.drift import drift_over_segments, short_segment_lengths
from mv_matcher_ros.evaluation.trajectory_error import (
    ErrorStatistics,
    absolute_error,
    relative_error,
)


def moved(trajectory: Trajectory, world_from_odom: np.ndarray, scale: float = 1.0) -> Trajectory:
    """The trajectory as seen from another world frame, in units of 1 / scale metres."""
    poses = np.linalg.inv(world_from_odom) @ trajectory.world_from_body
    poses[:, :3, 3] /= scale
    return Trajectory(trajectory.stamps_ns, poses)


def both(estimate: Trajectory, truth: Trajectory) -> PosePairs:
    return associate(estimate, truth)


@pytest.fixture
def transform(se3_exp):
    return se3_exp(np.array([10.0, -4.0, 2.0, 0.7, -1.1, 2.0]))


def test_a_moved_copy_has_no_error_and_the_transform_is_found(path, transform):
    truth = path(60)
    for alignment in ('se3', 'sim3', 'origin'):
        error = absolute_error(both(moved(truth, transform), truth), alignment)
        assert error.translation_m.max < 1e-9
        assert error.rotation_deg.max < 1e-6
        assert error.scale == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(error.truth_from_odom, transform, atol=1e-9)


def test_scale_of_a_scaled_copy_is_recovered(path, transform):
    truth = path(60)
    pairs = both(moved(truth, transform, scale=7.5), truth)
    error = absolute_error(pairs, 'sim3')
    assert error.scale == pytest.approx(7.5, rel=1e-12)
    assert error.translation_m.max < 1e-9
    assert absolute_error(pairs, 'se3').translation_m.rmse > 1.0


def test_noise_of_known_size_gives_that_rmse(path, transform):
    truth = path(4000, step_m=0.1)
    rng = np.random.default_rng(3)
    noisy = moved(truth, transform)
    noisy.world_from_body[:, :3, 3] += rng.normal(0.0, 0.05, (4000, 3))
    error = absolute_error(both(noisy, truth), 'se3').translation_m
    # RMSE of a 3-vector of standard deviation 0.05 each; its own spread is 0.6 % at N = 4000.
    assert error.rmse == pytest.approx(0.05 * np.sqrt(3), rel=0.03)
    # The norm is chi-distributed with 3 degrees of freedom.
    assert error.mean == pytest.approx(0.05 * 2 * np.sqrt(2 / np.pi), rel=0.03)
    assert error.count == 4000
    assert error.rmse**2 == pytest.approx(error.mean**2 + error.std**2)


def test_alignment_at_the_origin_shows_drift_that_least_squares_hides(path, se3_exp):
    truth = path(200)
    turned = moved(truth, np.eye(4))
    turn = se3_exp(np.array([0.0, 0, 0, 0, 0, np.deg2rad(1.0)]))
    first = truth.world_from_body[0]
    # The start leaves one degree wrong: everything after it is turned about the first pose.
    turned.world_from_body[1:] = first @ turn @ np.linalg.inv(first) @ truth.world_from_body[1:]
    pairs = both(turned, truth)
    origin, fitted = absolute_error(pairs, 'origin'), absolute_error(pairs, 'se3')
    distance = np.linalg.norm(truth.world_from_body[-1, :3, 3] - first[:3, 3])
    assert origin.translation_errors_m[-1] == pytest.approx(distance * np.deg2rad(1.0), rel=0.4)
    assert origin.attitude_errors_deg[-1] == pytest.approx(1.0, abs=1e-6)
    assert fitted.translation_m.rmse < 0.02 * origin.translation_m.rmse


def test_error_of_one_pose_stands_at_its_time(path):
    truth = path(50)
    wrong = moved(truth, np.eye(4))
    wrong.world_from_body[30, 2, 3] += 2.0
    error = absolute_error(both(wrong, truth), 'se3')
    assert int(np.argmax(error.translation_errors_m)) == 30
    assert error.stamps_ns[30] == truth.stamps_ns[30]


def test_a_straight_line_leaves_the_turn_about_it_open():
    poses = np.tile(np.eye(4), (30, 1, 1))
    poses[:, 0, 3] = np.arange(30)
    truth = Trajectory(np.arange(30) * 10**8, poses)
    error = absolute_error(both(truth, truth), 'se3')
    assert error.loose_deg == 90.0
    assert error.translation_m.max < 1e-9
    assert absolute_error(both(truth, truth), 'origin').loose_deg == 0.0


def test_attitudes_are_aligned_by_themselves_where_positions_cannot(se3_exp):
    """A drive of 60 m that is straight to 5 cm, with 5 cm of noise: KITTI's, for one."""
    rng = np.random.default_rng(4)
    tangents = np.column_stack([np.zeros((60, 3)), rng.normal(0, np.deg2rad(2.0), (60, 3))])
    poses = se3_exp(tangents)
    poses[:, :3, 3] = np.column_stack([np.arange(60), rng.normal(0, 0.05, (60, 2))])
    truth = Trajectory(np.arange(60) * 10**8, poses)
    noisy = poses.copy()
    noisy[:, :3, 3] += rng.normal(0, 0.05, (60, 3))
    noisy = noisy @ se3_exp(np.column_stack([np.zeros((60, 3)), rng.normal(0, 2e-3, (60, 3))]))
    error = absolute_error(both(Trajectory(truth.stamps_ns, noisy), truth), 'se3')
    assert error.rotation_deg.rmse > 5.0
    assert error.rotation_deg.rmse < 2 * error.loose_deg
    # Three independent angles of 2 mrad.
    assert error.attitude_deg.rmse == pytest.approx(np.rad2deg(2e-3 * np.sqrt(3)), rel=0.2)


def test_the_alignment_of_attitudes_undoes_a_turn_of_the_world(path, transform):
    truth = path(60)
    for alignment in ('se3', 'sim3'):
        error = absolute_error(both(moved(truth, transform), truth), alignment)
        assert error.attitude_deg.max < 1e-6
        assert error.loose_deg < 1e-6


def test_standing_still_has_no_scale_but_an_error():
    poses = np.tile(np.eye(4), (10, 1, 1))
    truth = Trajectory(np.arange(10) * 10**8, poses)
    pairs = both(truth, truth)
    with pytest.raises(EvaluationError, match='estimate does not move'):
        absolute_error(pairs, 'sim3')
    assert absolute_error(pairs, 'se3').translation_m.max < 1e-12
    assert absolute_error(pairs, 'origin').translation_m.max < 1e-12


def test_relative_error_of_a_scaled_copy_is_the_missing_length(path):
    truth = path(100)
    pairs = both(moved(truth, np.eye(4), scale=1 / 0.98), truth)
    step = float(np.linalg.norm(np.diff(truth.world_from_body[:, :3, 3], axis=0), axis=1).mean())
    error = relative_error(pairs, 1)
    assert error.translation_m.rmse == pytest.approx(0.02 * step, rel=1e-3)
    assert error.rotation_deg.max < 1e-6
    assert error.translation_m.count == 99


def test_relative_error_of_a_constant_turn_is_that_turn(path, se3_exp):
    truth = path(80)
    drift = se3_exp(np.array([0, 0, 0, 0, 0, np.deg2rad(0.3)]))
    poses = [truth.world_from_body[0]]
    for a, b in zip(truth.world_from_body[:-1], truth.world_from_body[1:], strict=True):
        poses.append(poses[-1] @ np.linalg.inv(a) @ b @ drift)
    error = relative_error(both(Trajectory(truth.stamps_ns, np.array(poses)), truth), 1)
    np.testing.assert_allclose(
        [error.rotation_deg.min, error.rotation_deg.max], [0.3, 0.3], atol=1e-9
    )
    assert error.translation_m.max < 1e-9


def test_pairs_over_gaps_are_left_out_and_counted(path):
    truth = path(100)
    kept = np.r_[0:40, 55:100]
    estimate = Trajectory(truth.stamps_ns[kept], truth.world_from_body[kept].copy())
    estimate.world_from_body[40:, 0, 3] += 5.0  # a jump while nobody looked
    pairs = both(estimate, truth)
    error = relative_error(pairs, 1)
    assert error.skipped == 1
    assert error.translation_m.max < 1e-9
    assert relative_error(pairs, 5).skipped == 5
    assert relative_error(pairs, 1, max_duration_ratio=np.inf).translation_m.max > 4.0


def test_relative_error_by_metres_uses_the_truths_path(path):
    truth = path(100, step_m=0.5)
    pairs = both(moved(truth, np.eye(4), scale=2.0), truth)
    error = relative_error(pairs, 10.0, 'm')
    assert error.translation_m.median == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize(('delta', 'unit'), [(0, 'frames'), (1.5, 'frames'), (-1, 'm')])
def test_distances_that_are_none_are_refused(path, delta, unit):
    truth = path(20)
    with pytest.raises(EvaluationError, match='not a positive distance'):
        relative_error(both(truth, truth), delta, unit)


def test_distances_longer_than_the_path_are_refused(path):
    truth = path(20)
    for delta, unit in ((20, 'frames'), (500.0, 'm')):
        with pytest.raises(EvaluationError, match='no two of 20 poses'):
            relative_error(both(truth, truth), delta, unit)


def test_drift_of_a_scaled_copy_is_its_scale_error(path):
    truth = path(1200)
    drift = drift_over_segments(both(moved(truth, np.eye(4), scale=1 / 0.99), truth))
    assert [s.length_m for s in drift.segments] == [100, 200, 300, 400, 500, 600, 700, 800]
    for segment in drift.segments:
        # Chord over arc length: at most the 1 %, near it on a path as straight as this one.
        assert 0.5 < segment.t_rel_percent <= 1.02
    assert drift.r_rel_deg_per_100m == pytest.approx(0.0, abs=1e-6)
    weights = [s.count for s in drift.segments]
    expected = np.average([s.t_rel_percent for s in drift.segments], weights=weights)
    assert drift.t_rel_percent == pytest.approx(expected)


def test_short_paths_say_so_instead_of_inventing_a_number(path):
    truth = path(60)
    drift = drift_over_segments(both(truth, truth))
    assert drift.t_rel_percent is None
    assert drift.r_rel_deg_per_100m is None
    assert drift.note.startswith('too short: the path is 59')
    short = drift_over_segments(both(truth, truth), short_segment_lengths(59.0), 1)
    assert [s.length_m for s in short.segments] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert short.note == ''


def test_short_lengths_fit_into_the_path():
    for path_m in (2.0, 3.7, 59.0, 99.9):
        lengths = short_segment_lengths(path_m)
        assert 0 < min(lengths) < max(lengths) < path_m
    for path_m in (0.0, 0.4, 1.9):  # figures per distance travelled would be absurd
        assert short_segment_lengths(path_m) == ()
    with pytest.raises(EvaluationError, match='positive'):
        drift_over_segments(associate_line(), lengths_m=(0.0,))


def associate_line() -> PosePairs:
    poses = np.tile(np.eye(4), (5, 1, 1))
    poses[:, 0, 3] = np.arange(5)
    line = Trajectory(np.arange(5) * 10**8, poses)
    return associate(line, line)


def test_statistics_refuse_what_is_no_number():
    with pytest.raises(EvaluationError):
        ErrorStatistics.of(np.array([]))
    with pytest.raises(EvaluationError):
        ErrorStatistics.of(np.array([1.0, np.nan]))
