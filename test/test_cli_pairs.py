# SPDX-License-Identifier: Apache-2.0
"""`pairs`: accuracy on pairs with known pose, and what half precision changes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from cli_cases import fails_in_one_line, pairs_file, prints_json

from mv_matcher_ros import cli
from mv_matcher_ros.cli.pair_matching import MatchedPair
from mv_matcher_ros.cli.pair_precision import (
    HalfPrecision,
    PrecisionChange,
    jaccard,
    precision_comparer,
    same_keypoints,
    summarise_changes,
)
from mv_matcher_ros.cli.pair_solvers import PairSolver, Solver
from mv_matcher_ros.config import PoseEstimatorSettings, read_settings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.evaluation.pairs_file import read_pairs
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.models.weights import save_matcher


def test_pairs_gives_the_keys_scripts_rely_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pairs_file(tmp_path)
    found = prints_json(['pairs', str(file), '--json', '--per-pair'], capsys)
    assert set(found['auc']) == {'5', '10', '20'}
    assert {'precision', 'matching_score', 'matches', 'pairs', 'solver'} <= set(found)
    assert found['solver'] == 'opencv-usac-magsac-1px'
    assert found['pairs'] == 1
    assert found['precision'] > 90.0
    assert found['matches'] > 100
    assert found['detector']['name'] == 'learned'
    assert found['results'][0]['names'] == ['a.png', 'b.png']
    orb = prints_json(
        ['pairs', str(file), '--json', '--solver', 'ransac', '--set', 'detector.name=orb'], capsys
    )
    assert (orb['detector']['name'], orb['solver']) == ('orb', 'opencv-ransac-1px')
    assert cli.exit_code(['pairs', str(file)]) == 0
    assert 'pose AUC@5°' in capsys.readouterr().out


def test_faults_of_pairs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pairs_file(tmp_path)
    line = fails_in_one_line(['pairs', str(file), '--set', 'detector.max_keypoint=9'], capsys)
    assert 'did you mean "detector.max_keypoints"' in line
    (tmp_path / 'b.png').unlink()
    assert 'b.png' in fails_in_one_line(['pairs', str(file)], capsys)
    file.write_text('a.png b.png 0 0 1 2\n')
    assert 'pairs.txt:1' in fails_in_one_line(['pairs', str(file)], capsys)


@pytest.mark.data
def test_classical_matching_on_real_pairs(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data_root / 'pairs' / 'strecha' / 'pairs_with_gt.txt'
    found = prints_json(
        ['pairs', str(file), '--limit', '8', '--json', '--set', 'detector.name=sift'], capsys
    )
    assert found['pairs'] == 8
    assert found['auc']['5'] > 60.0


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Setting of an untrained matcher of SIFT."""
    torch.manual_seed(0)
    profile = MatcherProfile(
        descriptor_size=128, width=32, attention_size=32, blocks=1, encoder=(8,)
    )
    save_matcher(tmp_path / 'm.safetensors', MatcherNetwork(profile))
    return f'matching.weights={tmp_path / "m.safetensors"}'


def network(weights: str) -> list[str]:
    """Options that name the network and take every match that it finds."""
    given = ('detector.name=sift', weights, 'matching.min_confidence=0')
    return [word for value in given for word in ('--set', value)]


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision_is_compared_with_single(
    precision: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['pairs', str(pairs_file(tmp_path)), '--compare-precision', precision]
    words += [*network(weights), '--solver', 'estimator', '--set', 'runtime.device=cpu']
    found = prints_json([*words, '--json', '--per-pair'], capsys)
    assert found['compared'] == f'matcher cpu {precision} against matcher cpu fp32'
    assert found['pairs'] == 1
    assert found['matches'] > 100
    assert 0.9 < found['jaccard']['lowest'] <= found['jaccard']['mean'] <= 1.0
    assert found['rotation_deg']['median'] < 0.1
    assert found['translation_deg']['p90'] < 1.0
    assert (found['pose_in_one_only'], found['without_pose']) == (0, 0)
    assert found['results'][0]['names'] == ['a.png', 'b.png']
    assert cli.exit_code(words) == 0
    text = capsys.readouterr().out
    assert 'Jaccard of the match sets, mean' in text
    assert precision in text


def test_a_detector_in_half_precision_is_compared_too(tmp_path: Path) -> None:
    """Its keypoints move a little: those that stay within a pixel are the same."""
    settings = read_settings({
        'detector.name': 'learned', 'detector.max_keypoints': 200, 'runtime.device': 'cpu',
        'matching.matcher': 'nearest', 'matching.ratio': 1.0,
    })  # fmt: skip
    solver = PairSolver(Solver.magsac, 1.0, PoseEstimatorSettings())
    compare, places = precision_comparer(settings, solver, HalfPrecision.fp16)
    assert places == 'detector cpu fp16 against detector cpu fp32'
    change = compare(read_pairs(pairs_file(tmp_path))[0])
    assert min(change.matches) > 100
    assert 0.9 < change.jaccard <= 1.0
    assert change.rotation_deg < 0.5


def test_without_a_network_there_is_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['pairs', str(pairs_file(tmp_path)), '--compare-precision', 'fp16']
    words += ['--set', 'detector.name=sift']
    assert 'the settings name none' in fails_in_one_line(words, capsys)


def test_jaccard_of_match_sets() -> None:
    assert jaccard([], []) == 1.0
    assert jaccard([(0, 0)], []) == 0.0
    assert jaccard([(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 1), (2, 3)]) == 0.5
    assert jaccard([(0, 0)], [(0, 0), (-1, 4)]) == 0.5


def test_keypoints_of_both_precisions_are_told_by_their_place() -> None:
    def at(*xy: tuple[float, float]) -> Features:
        count = len(xy)
        places = torch.tensor(xy, dtype=torch.float32).reshape(-1, 2)
        return Features(
            places, torch.zeros(count, 4), torch.zeros(count), torch.ones(count), (64, 48)
        )

    single = at((10.0, 10.0), (20.0, 20.0))
    assert same_keypoints(single, single).tolist() == [0, 1]
    assert same_keypoints(single, at((20.5, 20.0), (15.0, 15.0))).tolist() == [1, -1]
    assert same_keypoints(at(), single).tolist() == [-1, -1]
    assert same_keypoints(single, at()).tolist() == []


def test_pairs_without_a_pose_have_no_change_of_pose() -> None:
    none = PrecisionChange(('a', 'b'), (0, 0), 1.0, (False, False), None, None)
    one = PrecisionChange(('a', 'b'), (9, 8), 0.8, (True, False), None, None)
    found = summarise_changes([none, one])
    assert (found['pose_in_one_only'], found['without_pose']) == (1, 1)
    assert found['jaccard'] == {'mean': 0.9, 'lowest': 0.8}
    assert found['rotation_deg'] == {'median': None, 'p90': None}


def test_every_nth_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pairs_file(tmp_path)
    line = file.read_text().splitlines()[1]
    file.write_text('\n'.join([line] * 5))
    assert prints_json(['pairs', str(file), '--every', '2', '--json'], capsys)['pairs'] == 3
    words = ['pairs', str(file), '--every', '2', '--limit', '2', '--json']
    assert prints_json(words, capsys)['pairs'] == 2


def test_settings_of_the_estimator_count() -> None:
    """60 matches of which a third is wrong: a pose for whoever does not ask for more of them."""
    random = np.random.default_rng(0)
    points = random.uniform([-2, -2, 4], [2, 2, 8], (60, 3))
    first = points[:, :2] / points[:, 2:]
    moved = points + np.array([0.5, 0.1, 0.0])
    second = moved[:, :2] / moved[:, 2:]
    second[:20] = random.uniform(-0.5, 0.5, (20, 2))
    number = torch.arange(60)
    matched = MatchedPair(
        torch.stack([number, number], 1), np.ones(60, np.float32), (first, second), 500.0
    )
    found = PairSolver(Solver.estimator, 1.0, PoseEstimatorSettings())(matched)
    assert found is not None
    np.testing.assert_allclose(found[:2, 3] / found[0, 3], [1.0, 0.2], atol=0.01)
    strict = PoseEstimatorSettings(min_robust_share=0.9, min_inlier_share=0.9)
    assert PairSolver(Solver.estimator, 1.0, strict)(matched) is None


# ------------------------------------------------------------- ways side by side

WAYS = """
- name: SIFT
  settings: {detector.name: sift}
- name: ORB
  settings: {detector.name: orb, matching.ratio: 0.9}
"""


def test_ways_are_measured_on_the_same_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, ways = pairs_file(tmp_path), tmp_path / 'ways.yaml'
    ways.write_text(WAYS)
    common = ['bench', 'pairs', str(file), '--ways', str(ways), '--shuffles', '2']
    names = ('magsac', 'loransac', 'estimator', 'eight_point', 'robust')
    solvers = [word for name in names for word in ('--solver', name)]
    found = prints_json([*common, *solvers, '--json'], capsys)['pairs']
    assert found['count'] == 1
    names = [f'{way}, {s}' for way in ('SIFT', 'ORB') for s in solvers[1::2]]
    assert list(found['ways']) == names
    first = found['ways']['SIFT, magsac']
    assert first['precision']['value'] > 90.0
    assert first['precision']['difference'] == 0.0
    assert found['ways']['SIFT, loransac']['precision']['difference'] == 0.0
    assert max(row['auc@20']['value'] for row in found['ways'].values()) > 90.0
    assert all(row['solver_ms'] > 0.0 for row in found['ways'].values())
    single = prints_json(['pairs', str(file), '--json', '--set', 'detector.name=sift'], capsys)
    assert first['precision']['value'] == pytest.approx(single['precision'])
    assert first['matching_score']['value'] == pytest.approx(single['matching_score'])
    assert cli.exit_code([*common, '--thresholds-deg', '1,3']) == 0
    assert 'auc@3' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('name: SIFT', 'a list of ways is expected'),
        ('- settings: {}', 'way 1 has other keys than'),
        ('- {name: SIFT}\n- {name: SIFT}', 'two ways are named SIFT'),
        ('- {name: SIFT, solver: magsac}', 'way 1 has other keys than'),
        ('- {name: SIFT, settings: {detector.nam: sift}}', 'did you mean "detector.name"'),
        (
            '- {name: X, iterations: 20, settings: {matching.matcher: nearest}}',
            'iterations 20: 1 or more, of a graph network',
        ),
        ('- {name: X, aliked: nowhere.pth}', 'nowhere.pth: no such checkpoint|kornia'),
    ],
)
def test_faults_of_ways_are_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = tmp_path / 'ways.yaml'
    ways.write_text(text)
    arguments = ['bench', 'pairs', str(pairs_file(tmp_path)), '--ways', str(ways)]
    assert re.search(message, fails_in_one_line(arguments, capsys))
    line = fails_in_one_line([*arguments, '--thresholds-deg', 'five'], capsys)
    assert '--thresholds-deg five: write positive numbers' in line


def test_poselib_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mv_matcher_ros.odometry.robust_pose.has_poselib', lambda: False)
    file = pairs_file(tmp_path)
    line = fails_in_one_line(['pairs', str(file), '--solver', 'loransac'], capsys)
    assert 'poselib' in line
    assert '[robust]' in line
