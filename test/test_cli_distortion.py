# SPDX-License-Identifier: Apache-2.0
"""`run` on a recording whose calibration has radial distortion left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli.distortion_watch import looked_at
from mv_matcher_ros.cli.fault_files import write_folder
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.options import settings_from
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.trajectory import write_tum
from mv_matcher_ros.odometry.distortion_check import Distortion, corrected
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = pytest.mark.slow

LEFT = 0.04
SMALL = [
    '--set', 'detector.max_keypoints=400', '--set', 'keyframes.parallax_px=15',
    '--set', 'distortion_check.keyframes=8', '--set', 'distortion_check.sure=3',
]  # fmt: skip


def test_it_begins_again_with_the_corrected_camera(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = Clip.of(room_loop('mono', 200, (320, 240)))
    wrong = corrected(clip.rig.cameras[0], Distortion(-LEFT, 0.001, 3, 1.0))
    assert clip.truth is not None
    folder = write_folder(
        replace(clip, rig=replace(clip.rig, cameras=(wrong,))), tmp_path / 'wrong'
    )
    write_tum(folder / 'groundtruth.txt', clip.truth)
    words = ['run', str(folder), '--sensor', 'mono', *SMALL, '--json']
    said = []
    for name, more in (('on', []), ('off', ['--set', 'distortion_check.enabled=false'])):
        capsys.readouterr()
        assert cli.exit_code([*words, '--out', str(tmp_path / name), *more]) == 0
        out, err = capsys.readouterr()
        said.append((json.loads(out), err))
    (on, loud), (off, quiet) = said
    assert 'radial distortion that the calibration does not know' in loud
    assert 'radial' not in quiet
    assert on['run']['calibration']['stretch'] == pytest.approx(LEFT, abs=0.01)
    assert off['run']['calibration'] == {}
    assert on['run']['frames'] == off['run']['frames'] == 200
    # What is adapted sees the corrected camera, too, and keeps the frames.
    settings = settings_from(None, SMALL[1::2], 'mono')
    source = looked_at(open_source(folder, 'mono'), settings)
    camera = source.rig.cameras[0]
    assert camera.model == 'radtan'
    assert camera.distortion[0] == pytest.approx(on['run']['calibration']['distortion'][0])
    assert len(source) == 200
    assert 'it is used from here on' in capsys.readouterr().err
    assert on['evaluation']['ate_rmse_m'] < 0.7 * off['evaluation']['ate_rmse_m']
