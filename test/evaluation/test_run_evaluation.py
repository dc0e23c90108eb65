# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import EvaluationError, SourceError
from mv_matcher_ros.evaluation.run_data import load_run
from mv_matcher_ros.evaluation.run_evaluation import (
    evaluate_run,
    evaluate_trajectory,
    table_row,
)
from mv_matcher_ros.files.trajectory import write_tum


@pytest.fixture
def noisy(path):
    """Truth of 120 poses, and an estimate in half its units with 5 cm of noise and a
    covariance."""
    truth = path(120)
    rng = np.random.default_rng(1)
    poses = truth.world_from_body.copy()
    poses[:, :3, 3] = 0.5 * (poses[:, :3, 3] + rng.normal(0, 0.05, (120, 3)))
    growing = np.arange(1, 121)[:, None, None] * np.diag([0.01] * 3 + [1e-8] * 3)
    return truth, Trajectory(truth.stamps_ns, poses, growing)


def test_a_run_folder_is_read_as_it_was_written(noisy, make_run, tmp_path):
    _, estimate = noisy
    run = load_run(make_run(tmp_path / 'run', estimate, lost=range(40, 50)))
    assert run.name == 'walk <1>'
    assert (run.sensor, run.metric, run.has_frames) == ('stereo', True, True)
    assert len(run.stamps_ns) == 120
    assert len(run.trajectory) == 110
    assert run.status[39:41] == ('TRACKING', 'LOST')
    assert run.messages[40] == 'too <dark>'
    assert run.frame_index.tolist() == list(range(120))
    assert np.flatnonzero(run.keyframe).tolist() == list(range(0, 120, 5))
    assert run.counts['inliers'].tolist() == list(range(100, 220))
    assert run.trajectory.covariances is not None
    assert estimate.covariances is not None
    np.testing.assert_array_equal(run.trajectory.covariances[60], estimate.covariances[70])


def test_the_promised_keys_hold_the_promised_numbers(noisy, make_run, tmp_path):
    truth, estimate = noisy
    folder = make_run(tmp_path / 'run', estimate, lost=range(40, 52), metric=False)
    write_tum(tmp_path / 'truth.txt', truth)
    result = evaluate_run(folder, tmp_path / 'truth.txt')
    content = result.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content['align'] == 'sim3'  # the run is monocular
    assert content['ate_rmse_m'] == pytest.approx(0.05 * np.sqrt(3), rel=0.15)
    assert content['ate_rmse_m'] == content['ate']['sim3']['translation_m']['rmse']
    assert content['scale'] == pytest.approx(2.0, rel=1e-3)
    assert content['coverage'] == pytest.approx(108 / 120)
    assert content['t_rel_percent'] is not None
    assert content['r_rel_deg_per_100m'] == pytest.approx(0.0, abs=1e-4)
    assert set(content['rpe']) == {'1_frames', '10_frames', '10_m'}
    # Two independent errors of 5 cm in three directions.
    expected = 0.05 * np.sqrt(6)
    assert content['rpe']['1_frames']['translation_rmse_m'] == pytest.approx(expected, rel=0.15)
    assert content['rpe']['1_frames']['skipped'] == 1
    assert content['nees']['motions'] > 5
    assert content['path_m'] == pytest.approx(119, rel=0.05)


def test_metric_runs_are_aligned_rigidly_unless_asked(noisy, make_run, tmp_path):
    truth, estimate = noisy
    folder = make_run(tmp_path / 'run', estimate)
    rigid = evaluate_run(folder, truth)
    assert rigid.align == 'se3'
    assert rigid.ate.translation_m.rmse > 5.0
    assert any('scale is off by 100%' in note for note in rigid.notes)
    scaled = evaluate_run(folder, truth, 'sim3')
    assert scaled.ate.translation_m.rmse < 0.2
    assert scaled.scale == rigid.scale


def test_a_single_trajectory_file_is_enough(noisy, tmp_path):
    truth, estimate = noisy
    write_tum(tmp_path / 'estimate.tum', estimate)
    result = evaluate_run(tmp_path / 'estimate.tum', truth, 'sim3')
    assert result.scale == pytest.approx(2.0, rel=1e-3)
    assert result.coverage == 1.0
    assert result.nees is None


def test_short_paths_have_no_kitti_numbers_and_say_why(path):
    truth = path(30)
    result = evaluate_trajectory(truth, truth)
    content = result.to_json()
    assert content['t_rel_percent'] is None
    assert content['drift']['note'].startswith('too short')
    assert content['drift_short']['t_rel_percent'] == pytest.approx(0.0, abs=1e-6)
    assert content['nees'] is None


def test_a_standing_camera_is_evaluated_without_scale(path):
    poses = np.tile(np.eye(4), (20, 1, 1))
    still = Trajectory(np.arange(20) * 10**8, poses)
    result = evaluate_trajectory(still, still)
    assert result.scale is None
    assert result.ate.translation_m.max < 1e-12
    assert any('does not move' in note for note in result.notes)
    assert json.dumps(result.to_json(), allow_nan=False)
    with pytest.raises(EvaluationError, match='does not move'):
        evaluate_trajectory(still, still, 'sim3')


def resting(path, seed):
    """A camera that stands for 1 s while its positions tremble by a tenth of a millimetre."""
    truth = path(10, step_m=0.0)
    poses = truth.world_from_body.copy()
    poses[:] = poses[0]
    poses[:, :3, 3] += np.random.default_rng(seed).normal(0.0, 1e-4, (10, 3))
    return Trajectory(truth.stamps_ns, poses)


def test_at_rest_nothing_is_divided_by_the_distance(path):
    result = evaluate_trajectory(resting(path, 1), resting(path, 2))
    assert result.scale is None
    assert result.sim3 is None
    assert result.drift_short is None
    assert result.percent_of_path is None
    assert any(note.startswith('no scale: after a Sim(3)') for note in result.notes)
    assert not any('body frames' in note for note in result.notes)
    assert result.ate.attitude_deg.max < 1e-6
    row = table_row('rest', result)
    assert row.scale is None
    assert row.notes == result.notes


def test_a_short_path_keeps_its_scale_but_has_no_drift(path):
    truth = path(20, step_m=0.02)
    half = truth.world_from_body.copy()
    half[:, :3, 3] *= 0.5
    result = evaluate_trajectory(Trajectory(truth.stamps_ns, half), truth)
    assert 0.3 < result.path_m < 2.0
    assert result.scale == pytest.approx(2.0)
    assert result.drift_short is None
    assert result.percent_of_path is None


def test_a_path_too_straight_for_its_turn_is_said(path, se3_exp):
    truth = path(60)
    poses = truth.world_from_body.copy()
    poses[:, :3, 3] = np.random.default_rng(5).normal(0.0, 0.03, (60, 3))
    poses[:, 0, 3] += np.arange(60)
    truth = Trajectory(truth.stamps_ns, poses)
    noisy = poses.copy()
    noisy[:, :3, 3] += np.random.default_rng(6).normal(0.0, 0.03, (60, 3))
    result = evaluate_trajectory(Trajectory(truth.stamps_ns, noisy), truth)
    assert result.to_json()['ate']['se3']['attitude_deg']['rmse'] < 1e-6
    assert result.turned_deg is not None
    assert result.turned_deg == result.ate.rotation_deg.rmse > 1.0
    assert result.notes == ()


def test_another_body_frame_is_noticed(path, se3_exp):
    truth = path(80)
    optical = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    other = Trajectory(truth.stamps_ns, truth.world_from_body @ optical)
    assert any('different body frames' in n for n in evaluate_trajectory(other, truth).notes)
    assert evaluate_trajectory(truth, truth).notes == ()
    assert evaluate_trajectory(truth, truth).turned_deg is None
    # Ten degrees of mounting on a robot that turns about that axis only: no other figure has them.
    turns = se3_exp(np.column_stack([np.zeros((80, 5)), np.linspace(0.0, 2.0, 80)]))
    turns[:, :2, 3] = 5.0 * turns[:, :2, 1]
    flat = Trajectory(truth.stamps_ns, turns)
    mounted = Trajectory(truth.stamps_ns, turns @ se3_exp(np.array([0, 0, 0, 0, 0, 0.17])))
    result = evaluate_trajectory(mounted, flat)
    assert result.ate.attitude_deg.max < 1e-6
    assert any('may be of different body frames' in note for note in result.notes)


def test_a_run_without_poses_and_a_folder_that_is_none(path, make_run, tmp_path):
    truth = path(10)
    folder = make_run(tmp_path / 'run', truth, lost=range(10))
    with pytest.raises(EvaluationError, match=r'no poses; 1 of 10 frames say "too <dark>" .*csv'):
        evaluate_run(folder, truth)
    with pytest.raises(SourceError, match='not a run folder'):
        evaluate_run(tmp_path / 'nothing', truth)


def test_damaged_counts_are_named_with_their_line(path, make_run, tmp_path):
    folder = make_run(tmp_path / 'run', path(10))
    file = folder / 'status.csv'
    file.write_text(file.read_text().replace('inliers=104', 'inliers=many'))
    with pytest.raises(SourceError, match=r'status.csv:6: "inliers=many" is not name=number'):
        load_run(folder)


def test_the_table_row_of_a_run(noisy, make_run, tmp_path):
    truth, estimate = noisy
    folder = make_run(tmp_path / 'run', estimate, metric=False)
    result = evaluate_run(folder, truth)
    row = table_row('walk', result, load_run(folder))
    assert (row.sequence, row.sensor, row.frames, row.coverage) == ('walk', 'mono', 120, 1.0)
    assert row.ate_se3_m is None  # no metric scale, no rigid error
    assert row.ate_sim3_m == result.ate.translation_m.rmse
    assert row.scale == result.scale
