# SPDX-License-Identifier: Apache-2.0
"""The commands around the detector's training: faults are one line, figures are printed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros import cli

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'train' / 'detector_light.yaml'


def teacher(path: Path) -> Path:
    """A file of random weights."""
    network = pytest.importorskip(
        'kornia.feature', reason='kornia with ALIKED needs Python 3.11'
    ).ALIKED('aliked-n16')
    tensors = {n: v for n, v in network.state_dict().items() if n != 'dkd.hw_grid'}
    torch.save(tensors, path)
    return path


def photos(folder: Path) -> Path:
    """Eight pictures, the last one held out."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        noise = rng.integers(0, 255, (30, 40)).astype(np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), cv2.resize(noise, (240, 180)))
    return folder


SMALL = ['--set', 'validation.width=96', '--set', 'validation.pairs=2',
         '--set', 'validation.keypoints=50']  # fmt: skip


def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ['train', 'detector', str(CONFIG), '--out', str(tmp_path / 'out')]
    assert cli.exit_code([*common, '--teacher', str(tmp_path / 'none.pth')]) == 2
    assert 'name --photos, --tuples' in capsys.readouterr().err
    pictures = ['--photos', str(photos(tmp_path / 'photos'))]
    assert cli.exit_code([*common, *pictures, '--teacher', str(tmp_path / 'none.pth')]) == 2
    assert 'none.pth: no such checkpoint' in capsys.readouterr().err


def test_training_goes_on_and_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ['--photos', str(photos(tmp_path / 'photos')),
            '--teacher', str(teacher(tmp_path / 'teacher.pth')), *SMALL]  # fmt: skip
    command = ['train', 'detector', str(CONFIG), *said, '--out', str(tmp_path / 'out'),
               '--device', 'cpu', '--set', 'width=96', '--set', 'photo_variants=1',
               '--set', 'stages=[{steps: 3, warm_up: 0}]']  # fmt: skip
    assert cli.exit_code([*command, '--steps', '2']) == 0
    assert 'step 2 of 3, to be continued' in capsys.readouterr().err
    assert cli.exit_code(command) == 0
    assert 'step 3 of 3' in capsys.readouterr().err
    weights = tmp_path / 'out' / 'best.safetensors'
    figures = ['train', 'detector-figures', str(CONFIG), *said, '--weights', str(weights),
               '--taught', str(tmp_path / 'taught')]  # fmt: skip
    assert cli.exit_code([*figures, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {str(weights), 'sift', 'teacher'}
    assert 0 <= found['sift']['photos']['accuracy_3'] <= 100
    assert cli.exit_code(figures) == 0
    assert 'matching score' in capsys.readouterr().out
