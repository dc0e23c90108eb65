# SPDX-License-Identifier: Apache-2.0
"""`bench places` on a tiny rendered loop and a recording, and walks through a mesh world."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from cli_cases import fails_in_one_line

from mv_matcher_ros import cli
from mv_matcher_ros.cli.bench_places import answers_of
from mv_matcher_ros.cli.place_baselines import time_search
from mv_matcher_ros.cli.place_sources import open_places
from mv_matcher_ros.config import Settings

pytestmark = pytest.mark.slow

SETTINGS = ['mapping.places.min_keypoints=5', 'mapping.places.consecutive=1',
            'detector.max_keypoints=200']  # fmt: skip
SMALL = ['--width', '200', '--every', '2', '--index', '0']
SMALL += [word for one in SETTINGS for word in ('--set', one)]


def test_a_rendered_loop_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = torch.nn.functional.normalize(torch.randn(8, 128), dim=1).numpy()
    np.savez(tmp_path / 'words.npz', words=words, weights=np.ones(8, np.float32))
    command = ['bench', 'places', 'room_loop', *SMALL, '--words', str(tmp_path / 'words.npz')]
    assert cli.exit_code([*command, '--json']) == 0
    found = json.loads(capsys.readouterr().out)['places']
    one = found['sources']['room_loop']
    assert set(one['ways']) == {'place descriptor', 'mean of descriptors', 'bag of words'}
    assert one['ways']['place descriptor']['revisits'] >= 1
    assert one['ways']['place descriptor']['recall']['10'] > 50.0
    assert one['told']['queries'] == one['keyframes']


def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'no such file' in fails_in_one_line(['bench', 'places', str(tmp_path / 'x')], capsys)
    empty = tmp_path / 'words.npz'
    empty.write_bytes(b'nothing')
    line = fails_in_one_line(
        ['bench', 'places', 'room_loop', *SMALL, '--words', str(empty)], capsys
    )
    assert 'no words of `train places`' in line


def test_the_search_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert time_search(500, 16, 3)['median'] > 0.0
    assert cli.exit_code(['bench', 'places', '--index', '300']) == 0
    assert 'Exact search' in capsys.readouterr().out


def test_keyframes_of_elsewhere_may_be_told_wrongly() -> None:
    settings = Settings.model_validate({'mapping': {'places': {'consecutive': 1}}})
    rows = np.eye(6, dtype=np.float32)
    rows[5] = rows[0]
    stamps = np.arange(6, dtype=np.int64) * 20 * 10**9
    answers, _ = answers_of(rows, stamps, [], settings)
    assert answers == [None] * 5 + [0]
    other = rows[[2, 3]] + 0.01 * rows[[0]]
    answers, _ = answers_of(rows[:5], stamps[:5], [other], settings)
    assert answers == [None, None, -1, -1, None]


def test_a_loop_goes_round_twice() -> None:
    source = open_places('room_loop', 1.0, (80, 60), None, 0)
    assert source.count == len(source.world_from_camera)
    half = source.count // 2
    places = source.world_from_camera[:, :3, 3]
    nearest = np.linalg.norm(places[half:, None] - places[None, :half], axis=2).min(1)
    assert nearest.max() < 1.5
    frame = next(source.frames)
    assert frame.views[0].image.shape == (60, 80)
    assert frame.views[0].depth is not None
