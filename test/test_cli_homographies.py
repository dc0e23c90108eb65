# SPDX-License-Identifier: Apache-2.0
"""`bench homographies`: a plane that was shifted and turned is measured as it was made."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cli_cases import fails_in_one_line, prints_json, texture

from mv_matcher_ros import cli

WAYS = """
- name: SIFT
  settings: {detector.name: sift}
- name: ORB
  settings: {detector.name: orb, matching.ratio: 0.9}
"""


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Image 1, and image 2: 1 turned by a few degrees and shifted."""
    first = texture()
    angle = np.deg2rad(4.0)
    matrix = np.array([
        [np.cos(angle), -np.sin(angle), 12.3], [np.sin(angle), np.cos(angle), -7.7], [0, 0, 1]
    ])  # fmt: skip
    folder = tmp_path / 'planes' / 'poster'
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / '1.png'), first)
    cv2.imwrite(str(folder / '2.png'), cv2.warpPerspective(first, matrix, (400, 300)))
    np.savetxt(folder / 'H_1_2', -3.0 * matrix)
    return folder


def test_a_plane_is_measured(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = scene / 'ways.yaml'
    ways.write_text(WAYS)
    for folder in (scene, scene.parent):
        words = ['bench', 'homographies', str(folder), '--ways', str(ways)]
        found = prints_json([*words, '--json'], capsys)['homographies']
        assert found['pairs'] == 1
        assert list(found['ways']) == ['SIFT', 'ORB']
        sift = found['ways']['SIFT']
        assert sift['accuracy_1'] > 90.0
        assert sift['repeatability_3'] > 50.0
        assert sift['matched_px'] < 0.6
    assert cli.exit_code(words) == 0
    assert 'repeatability' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda scene: (scene / 'H_1_2').unlink(), 'layout of HPatches'),
        (lambda scene: (scene / 'H_1_2').write_text('1 2\n3 4\n'), '3 x 3 finite numbers'),
        (lambda scene: (scene / 'H_1_2').write_text('no'), 'not a matrix of numbers'),
        (lambda scene: (scene / '2.png').unlink(), 'no image 2 beside it'),
    ],
)
def test_broken_folders_are_said(
    scene: Path, damage: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(scene)  # type: ignore[operator]
    ways = scene / 'ways.yaml'
    ways.write_text(WAYS)
    line = fails_in_one_line(['bench', 'homographies', str(scene), '--ways', str(ways)], capsys)
    assert message in line
