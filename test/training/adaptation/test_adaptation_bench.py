# SPDX-License-Identifier: Apache-2.0
"""The figures of adaptation: against the truth of a recording, and what its gradient costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli import bench_gradient

WAYS = """
- name: network
  settings: {detector.max_keypoints: 200, matching.matcher: multiview}
- name: nearest
  settings: {detector.max_keypoints: 200, matching.matcher: nearest}
  seeds: [{}, {matching.ratio: 0.99}]
"""


@pytest.mark.slow
def test_ways_on_a_recording(
    flight_bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = tmp_path / 'ways.yaml'
    ways.write_text(WAYS)
    words = ['bench', 'recording', str(flight_bag), '--ways', str(ways), '--most', '3', '--json']
    assert cli.exit_code([*words, '--no-odometry']) == 0
    content = json.loads(capsys.readouterr().out)['recording']
    assert content['clips'] == 3
    network, nearest = (content['ways'][name] for name in ('network', 'nearest'))
    assert network['precision']['value'] > 90.0
    assert network['exact']['value'] <= network['precision']['value']
    assert min(way['right']['value'] for way in (network, nearest)) > 80.0
    assert network['points']['value'] > 60.0
    assert 2.0 < network['views']['value'] <= 5.0
    assert network['ate_m'] == []


@pytest.mark.slow
def test_odometry_takes_part(
    flight_bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = tmp_path / 'ways.yaml'
    ways.write_text('- {name: network, settings: {detector.max_keypoints: 200}}\n')
    words = ['bench', 'recording', str(flight_bag), '--ways', str(ways), '--most', '2', '--json']
    assert cli.exit_code(words) == 0
    (error,) = json.loads(capsys.readouterr().out)['recording']['ways']['network']['ate_m']
    assert 0.0 < error < 0.2


def test_a_recording_without_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sequences: Path
) -> None:
    ways = tmp_path / 'ways.yaml'
    ways.write_text(WAYS)
    images = tmp_path / 'images'
    images.mkdir()
    for path in sorted((sequences / 'kitti_07' / 'image_0').glob('*.png'))[:3]:
        (images / path.name).symlink_to(path)
    (images / 'calibration.yaml').write_text(
        'width: 1226\nheight: 370\nintrinsics: [707, 707, 601, 183]\n'
    )
    assert cli.exit_code(['bench', 'recording', str(images), '--ways', str(ways)]) == 2
    assert 'no ground truth' in capsys.readouterr().err


def test_the_gradient_costs_nothing_beside_unrolling(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_gradient, 'SIZES', ((5, 60),))
    monkeypatch.setattr(bench_gradient, 'ITERATIONS', (4, 60))
    assert cli.exit_code(['bench', 'gradient', '--repeats', '1', '--json']) == 0
    few, many = json.loads(capsys.readouterr().out)['gradient']
    assert many['apart'] < 0.01
    assert many['unrolled_ms'] > 5.0 * many['held_ms']
    assert many['held_kib'] == few['held_kib']
    assert many['unrolled_kib'] > 2.0 * few['unrolled_kib']
