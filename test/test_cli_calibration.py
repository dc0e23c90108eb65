# SPDX-License-Identifier: Apache-2.0
"""`run` on recordings whose cameras are not as they were calibrated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli.calibration_watch import looked_at
from mv_matcher_ros.cli.fault_files import write_folder
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.options import settings_from
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.trajectory import write_tum
from mv_matcher_ros.odometry.distortion_check import Distortion, corrected
from mv_matcher_ros.worlds.presets import room_loop, street_drive

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


def test_it_begins_again_with_what_a_pair_is_off_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = Clip.of(street_drive('stereo', 30, (320, 240)))
    first, second = clip.rig.cameras
    yaw = float(np.arctan(0.8 / first.focal_px))
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    told = replace(second, body_from_camera=second.body_from_camera @ turn)
    assert clip.truth is not None
    folder = write_folder(
        replace(clip, rig=replace(clip.rig, cameras=(first, told))), tmp_path / 'turned'
    )
    write_tum(folder / 'groundtruth.txt', clip.truth)
    words = ['run', str(folder), '--sensor', 'stereo', '--set', 'detector.name=sift', '--json']
    said = {}
    for name, more in (
        ('on', []),
        ('off', ['--set', 'stereo.self_calibration=false']),
        ('known', ['--set', 'stereo.disparity_error_px=-0.8,0,0']),
    ):
        capsys.readouterr()
        assert cli.exit_code([*words, '--out', str(tmp_path / name), *more]) == 0
        out, err = capsys.readouterr()
        said[name] = json.loads(out), err
    on, loud = said['on']
    off, quiet = said['off']
    known, again = said['known']
    found = on['run']['calibration']['disparity_error_px']
    assert f'begun again with stereo.disparity_error_px={found}' in loud
    # Short of it: matches that a wrong map agrees with are found more often.
    assert [float(part) for part in found.split(',')] == pytest.approx([-0.6, 0, 0], abs=0.25)
    assert 'calibration is off' not in quiet
    assert off['run']['calibration'] == {}
    assert 'begun again' not in again
    assert on['run']['frames'] == known['run']['frames'] == 30
    scales = [abs(run['evaluation']['scale'] - 1.0) for run in (on, known, off)]
    assert scales[0] < 0.6 * scales[2]
    assert scales[1] < 0.2 * scales[2]
