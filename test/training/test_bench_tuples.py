# SPDX-License-Identifier: Apache-2.0
"""`bench tuples`: matches and poses of rendered tuples, several trainings taken together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cli_cases import fails_in_one_line, prints_json

from mv_matcher_ros import cli
from mv_matcher_ros.cli.ways import read_ways
from mv_matcher_ros.evaluation.matching_error import pose_auc
from mv_matcher_ros.evaluation.pair_comparison import TupleResult, compare_tuples
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.models.weights import save_matcher


def ways(folder: Path) -> Path:
    profile = MatcherProfile(width=16, attention_size=8, blocks=1, encoder=(8,))
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_matcher(folder / f'{seed}.safetensors', MatcherNetwork(profile))
    seeds = [{'matching.weights': str(folder / f'{seed}.safetensors')} for seed in (0, 1)]
    graph = {'matching.matcher': 'multiview', 'detector.max_keypoints': 100}
    path = folder / 'ways.yaml'
    path.write_text(json.dumps([
        {'name': 'SIFT', 'settings': {'detector.max_keypoints': 100}},
        {'name': 'graph', 'settings': graph, 'seeds': seeds},
        {'name': 'pairs', 'settings': graph, 'seeds': seeds[:1], 'pairwise': True},
    ]))  # fmt: skip
    return path


def test_ways_are_measured_on_the_same_tuples(
    tuples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['bench', 'tuples', str(tuples / 'train'), '--ways', str(ways(tmp_path))]
    found = prints_json([*words, '--json'], capsys)['tuples']
    assert found['count'] == 4
    assert list(found['ways']) == ['SIFT', 'graph', 'pairs']
    assert [row['seeds'] for row in found['ways'].values()] == [1, 2, 1]
    sift = found['ways']['SIFT']
    assert sift['precision']['value'] > 60.0
    assert sift['matches']['value'] > 20.0
    assert sift['R auc@5']['difference'] == 0.0
    assert cli.exit_code([*words, '--most', '1', '--thresholds-deg', '3']) == 0
    assert 't auc@3' in capsys.readouterr().out
    line = fails_in_one_line([*words, '--world', 'moon'], capsys)
    assert "whose name begins with 'moon'" in line
    line = fails_in_one_line(
        ['bench', 'homographies', str(tmp_path), '--ways', str(tmp_path / 'ways.yaml')], capsys
    )
    assert 'layout of HPatches' in line


def test_a_way_may_take_more_sinkhorn_iterations(tmp_path: Path) -> None:
    listed = json.loads(ways(tmp_path).read_text())[1]
    (tmp_path / 'more.yaml').write_text(
        json.dumps([listed, {**listed, 'name': 'more', 'iterations': 50}])
    )
    for way, expected in zip(read_ways(tmp_path / 'more.yaml'), (10, 50), strict=True):
        for variant in way.seeds:
            _, matcher = variant.make()
            assert matcher.network.profile.iterations == expected


def test_figures_are_means_over_seeds_and_tuples_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0, 20, (2, 7))
    result = TupleResult(
        errors, errors[::-1], np.array([0, 0, 1, 1, 2, 3, 3]), np.full((2, 4), 6.0),
        np.array([[8.0, 8, 8, 0], [12, 12, 12, 12]]), np.zeros(4),
    )  # fmt: skip
    row = compare_tuples({'one': result}, [10.0])['one']
    expected = np.mean([pose_auc(line, 10.0) for line in errors])
    assert row['R auc@10'].value == pytest.approx(expected)
    assert row['t auc@10'].value == pytest.approx(expected)
    assert row['precision'].value == pytest.approx(0.5 * (100 * 24 / 24 + 100 * 24 / 48))
    assert row['matches'].value == pytest.approx(0.5 * (6 + 12))
    low, high = row['R auc@10'].interval
    assert low < expected < high
