# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.matching_error import (
    NO_POSE,
    PairResult,
    PoseError,
    epipolar_correct,
    pose_auc,
    pose_error,
    summarise_pairs,
    symmetric_epipolar_distance,
)


@pytest.fixture
def two_views(se3_exp):
    """Points seen by two cameras: normalised points in both, and b_from_a."""
    b_from_a = se3_exp(np.array([0.5, -0.1, 0.2, 0.05, -0.2, 0.1]))
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -2, 3], [2, 2, 8], (500, 3))
    moved = points @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    return points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:], b_from_a


def test_true_matches_have_no_epipolar_distance(two_views):
    a, b, pose = two_views
    assert symmetric_epipolar_distance(a, b, pose).max() < 1e-25
    assert epipolar_correct(a, b, pose).all()


def test_distance_is_that_from_the_epipolar_lines(two_views):
    a, b, pose = two_views
    wrong = b + np.random.default_rng(1).normal(0, 0.02, b.shape)
    found = symmetric_epipolar_distance(a, wrong, pose)
    for k in range(0, 500, 50):
        # The epipolar line in an image: through the projections of two points on the other's ray.
        lines = []
        for own, transform in ((a[k], pose), (wrong[k], np.linalg.inv(pose))):
            ray = np.array([*own, 1.0])
            ends = [transform[:3, :3] @ (depth * ray) + transform[:3, 3] for depth in (2.0, 9.0)]
            lines.append([end[:2] / end[2] for end in ends])
        distances = []
        for (start, end), point in zip(lines, (wrong[k], a[k]), strict=True):
            along = (end - start) / np.linalg.norm(end - start)
            offset = point - start
            distances.append((along[0] * offset[1] - along[1] * offset[0]) ** 2)
        assert found[k] == pytest.approx(sum(distances), rel=1e-6)


def test_threshold_is_squared_and_independent_of_the_baselines_length(two_views):
    a, b, pose = two_views
    far = pose.copy()
    far[:3, 3] *= 100.0
    wrong = b + np.random.default_rng(1).normal(0, 0.01, b.shape)
    here = symmetric_epipolar_distance(a, wrong, pose)
    np.testing.assert_allclose(here, symmetric_epipolar_distance(a, wrong, far), rtol=1e-9)
    assert epipolar_correct(a, wrong, pose).sum() == (here < 1e-4).sum()
    assert 0 < (here < 1e-4).sum() < 500


def test_degenerate_matches_and_views(two_views):
    _, _, pose = two_views
    assert symmetric_epipolar_distance(np.zeros((0, 2)), np.zeros((0, 2)), pose).shape == (0,)
    still = np.eye(4)
    with pytest.raises(EvaluationError, match='no epipolar lines'):
        symmetric_epipolar_distance(np.zeros((1, 2)), np.zeros((1, 2)), still)
    forward = np.eye(4)
    forward[2, 3] = 1.0  # the epipole is the image centre
    assert np.isinf(symmetric_epipolar_distance(np.zeros((1, 2)), np.ones((1, 2)), forward))[0]
    with pytest.raises(EvaluationError, match=r'two \(N, 2\) arrays'):
        symmetric_epipolar_distance(np.zeros((2, 2)), np.zeros((3, 2)), pose)


@pytest.mark.parametrize('angle_deg', [0.0, 1e-6, 0.5, 30.0, 90.0, 180.0])
def test_rotation_error_is_the_angle(se3_exp, angle_deg):
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    truth = se3_exp(np.array([0.3, 0.1, -0.5, 0.4, 0.3, 0.2]))
    turned = truth.copy()
    turn = se3_exp(np.concatenate([np.zeros(3), np.deg2rad(angle_deg) * axis]))
    turned[:3, :3] = turn[:3, :3] @ truth[:3, :3]
    error = pose_error(turned, truth)
    assert error.rotation_deg == pytest.approx(angle_deg, abs=1e-9)
    assert error.translation_deg == pytest.approx(0.0, abs=1e-9)


def test_translation_error_ignores_length_and_unless_asked_sign():
    truth, found = np.eye(4), np.eye(4)
    truth[:3, 3] = [2.0, 0, 0]
    found[:3, 3] = 0.3 * np.array([np.cos(np.deg2rad(170)), np.sin(np.deg2rad(170)), 0])
    assert pose_error(found, truth).translation_deg == pytest.approx(10.0)
    assert pose_error(found, truth, signed=True).translation_deg == pytest.approx(170.0)
    assert pose_error(found, truth).pose_deg == pytest.approx(10.0)


def test_missing_poses_and_directions_are_errors_not_zero():
    truth = np.eye(4)
    truth[0, 3] = 1.0
    assert pose_error(None, truth) == NO_POSE
    assert pose_error(np.full((4, 4), np.nan), truth) == NO_POSE
    assert pose_error(np.eye(4), truth).translation_deg == 90.0
    assert pose_error(truth, np.eye(4)).translation_deg == 0.0  # no true direction


def test_auc_of_known_curves():
    # One of two pairs at error 0, the other never: recall is 1/2 everywhere.
    assert pose_auc([0.0, np.inf], 5.0) == pytest.approx(50.0)
    # Errors spread evenly over the threshold: recall rises straight to 1.
    errors = np.linspace(0, 10, 10_001)[1:]
    assert pose_auc(errors, 10.0) == pytest.approx(50.0, abs=0.01)
    # By hand: points (0, 0) (1, 1/2) (3, 1) (4, 1): 0.25 + 1.5 + 1 over 4.
    assert pose_auc([3.0, 1.0], 4.0) == pytest.approx(100 * 2.75 / 4)
    # Beyond the threshold nothing counts.
    assert pose_auc([6.0, 7.0], 5.0) == 0.0


@pytest.mark.parametrize('errors', [[], [1.0, np.nan]])
def test_auc_of_nothing_is_refused(errors):
    with pytest.raises(EvaluationError, match='no AUC'):
        pose_auc(errors, 5.0)


def test_summary_has_the_promised_keys_and_values():
    results = [
        PairResult(('a', 'b'), PoseError(1.0, 2.0), matches=100, correct=80, keypoints=400),
        PairResult(('a', 'c'), PoseError(3.0, 1.0), matches=50, correct=10, keypoints=200),
        PairResult(('a', 'd'), NO_POSE, matches=0, correct=0, keypoints=0),
    ]
    content = summarise_pairs(results, 'poselib').to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert list(content['auc']) == ['5', '10', '20']
    # (0, 0) (2, 1/3) (3, 2/3) and level to 5.
    assert content['auc']['5'] == pytest.approx(100 * (1 / 3 + 1 / 2 + 4 / 3) / 5)
    assert content['precision'] == pytest.approx((80 + 20 + 0) / 3)
    assert content['matching_score'] == pytest.approx((20 + 5 + 0) / 3)
    assert content['matches'] == 50.0
    assert (content['pairs'], content['failed'], content['solver']) == (3, 1, 'poselib')
    assert content['rotation_deg']['median'] == 2.0
    assert content['wrong'] == 0
    wrong = PairResult(('a', 'e'), PoseError(1.0, 21.0), matches=9, correct=0, keypoints=9)
    assert summarise_pairs([*results, wrong], 'poselib').wrong == 1
    with pytest.raises(EvaluationError, match='no pairs'):
        summarise_pairs([], 'poselib')


def test_a_summary_without_any_pose_has_no_numbers_for_them():
    content = summarise_pairs([PairResult(('a', 'b'), NO_POSE, 0, 0, 10)], 'x').to_json()
    assert content['rotation_deg'] == {'mean': None, 'median': None, 'p90': None}
    assert content['auc'] == {'5': 0.0, '10': 0.0, '20': 0.0}
