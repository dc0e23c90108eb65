# SPDX-License-Identifier: Apache-2.0
"""`bench covariance` on small rendered loops."""

from __future__ import annotations

import json

import pytest

from mv_matcher_ros import cli

SMALL = [
    '--seeds', '1', '--frames', '60', '--width', '320', '--delta', '5',
    '--set', 'detector.max_keypoints=300', '--set', 'keyframes.parallax_px=25',
]  # fmt: skip


@pytest.mark.slow
def test_runs_are_judged_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = ['bench', 'covariance', 'room_loop', 'street_drive', '--sensor', 'rgbd', *SMALL]
    assert cli.exit_code([*words, '--json']) == 0
    found = json.loads(capsys.readouterr().out)['covariance']
    assert set(found) == {'room_loop, rgbd', 'street_drive, rgbd', 'all together'}
    together = found.pop('all together')
    assert together['motions'] == sum(each['motions'] for each in found.values())
    assert set(together['coverage_sigma']) == {'1', '2', '3'}
    assert 0.05 < together['nees_per_dof'] < 20.0
    assert together['nll_constant'] is not None


def test_a_source_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(['bench', 'covariance', '/nowhere/at/all', '--sensor', 'mono']) == 2
    assert '/nowhere/at/all' in capsys.readouterr().err
