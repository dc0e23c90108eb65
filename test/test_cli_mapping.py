# SPDX-License-Identifier: Apache-2.0
"""`run --mapping` and `localize` on a small synthetic flight that sees everything twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

from mv_matcher_ros import cli
from mv_matcher_ros.cli.fault_files import write_folder
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.files.trajectory import read_tum, write_tum
from mv_matcher_ros.mapping.g2o import read_g2o
from mv_matcher_ros.mapping.map_folder import load_map, save_map
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = pytest.mark.slow

FRAMES = 40
EAGER = [
    '--set', 'detector.max_keypoints=300', '--set', 'keyframes.parallax_px=25',
    '--set', 'keyframes.map_lag=2', '--set', 'mapping.places.gap_s=1',
    '--set', 'mapping.places.consecutive=1', '--set', 'mapping.loops.min_inliers=15',
]  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """There and back again, as an image folder with its truth."""
    clip = Clip.of(room_loop('stereo', FRAMES, (320, 240)))
    truth = clip.truth
    assert truth is not None
    step = int(truth.stamps_ns[1] - truth.stamps_ns[0])
    back = [
        replace(f, stamp_ns=int(truth.stamps_ns[-1]) + step * (1 + number), index=FRAMES + number)
        for number, f in enumerate(reversed(clip.frames))
    ]
    whole = replace(
        clip,
        frames=[*clip.frames, *back],
        truth=Trajectory(
            np.concatenate([truth.stamps_ns, [f.stamp_ns for f in back]]),
            np.concatenate([truth.world_from_body, truth.world_from_body[::-1]]),
        ),
    )
    path = write_folder(whole, tmp_path_factory.mktemp('flights') / 'there_and_back')
    assert whole.truth is not None
    write_tum(path / 'groundtruth.txt', whole.truth)
    return path


@pytest.fixture(scope='module')
def mapped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('runs') / 'run'
    words = ['run', str(folder), '--out', str(out), '--sensor', 'stereo', '--mapping']
    assert cli.exit_code([*words, '--save-map', str(out / 'map'), *EAGER]) == 0
    return out


def test_loops_are_closed_and_the_map_is_saved(mapped: Path) -> None:
    said = json.loads((mapped / 'map.json').read_text())
    assert said['loops']
    assert said['verified'] >= len(said['loops'])
    world = load_map(mapped / 'map')
    assert len(world) == said['keyframes']
    assert sum(edge.loop for edge in world.edges) == len(said['loops'])
    for early, late in said['loops']:
        assert abs(late - early) >= 10**9
    graph = read_g2o(mapped / 'graph.g2o')
    assert set(world.keyframes) <= set(graph.poses)
    assert len(graph.edges) >= len(graph.poses) - 1 + len(said['loops'])
    trajectory = read_tum(mapped / 'map.tum')
    published = read_tum(mapped / 'odometry.tum')
    assert len(trajectory) >= 0.9 * len(published)


def test_poses_on_the_map_are_true(
    mapped: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = str(folder / 'groundtruth.txt')
    ate = []
    for name in ('odometry.tum', 'map.tum'):
        assert cli.exit_code(['eval', str(mapped / name), '--truth', truth, '--json']) == 0
        ate.append(json.loads(capsys.readouterr().out)['ate_rmse_m'])
    assert ate[1] < 0.02
    assert ate[1] < 1.2 * ate[0]


def test_a_second_run_extends_the_map(mapped: Path, folder: Path, tmp_path: Path) -> None:
    words = ['run', str(folder), '--out', str(tmp_path / 'again'), '--sensor', 'stereo']
    more = ['--mapping', '--load-map', str(mapped / 'map'), '--save-map', str(tmp_path / 'map')]
    assert cli.exit_code([*words, *more, '--end', '30', *EAGER]) == 0
    first, both = load_map(mapped / 'map'), load_map(tmp_path / 'map')
    assert len(both) > len(first)
    assert {k.segment for k in both.keyframes.values()} == {0, 1}
    # The two parts were joined: where the second run was, the first one's frame says.
    joined = [e for e in both.edges if e.loop and both.keyframes[e.b].segment == 1]
    assert any(both.keyframes[e.a].segment == 0 for e in joined)
    truth = read_tum(folder / 'groundtruth.txt')
    true = dict(zip(truth.stamps_ns.tolist(), truth.world_from_body, strict=True))
    start = first.pose[0] @ np.linalg.inv(true[first.keyframes[0].stamp_ns])
    for key, keyframe in both.keyframes.items():
        if keyframe.segment == 1:
            there = start @ true[keyframe.stamp_ns]
            assert np.abs(there[:3, 3] - both.pose[key][:3, 3]).max() < 0.1


def test_frames_are_found_on_the_map(
    mapped: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['localize', str(mapped / 'map'), str(folder), '--out', str(tmp_path / 'located')]
    more = ['--sensor', 'stereo', '--start', '3', '--stride', '8', '--json']
    assert cli.exit_code([*words, *more, *EAGER]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said['frames'] == 10
    assert said['found'] >= 9
    assert said['within_percent_of_frames']['5 cm 5 deg'] >= 90.0
    assert len(read_tum(tmp_path / 'located' / 'localized.tum')) == said['found']


def test_a_map_brings_its_camera(
    mapped: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = load_map(mapped / 'map')
    left, right = world.rig.cameras
    left = replace(left, model='radtan', distortion=(0.03, 0.0, 0.0, 0.0, 0.0))
    world.rig = replace(world.rig, cameras=(left, right))
    save_map(world, tmp_path / 'map')
    words = ['run', str(folder), '--sensor', 'stereo', '--mapping', *EAGER, '--end', '6']
    more = ['--load-map', str(tmp_path / 'map'), '--save-map', str(tmp_path / 'again')]
    assert cli.exit_code([*words, *more, '--out', str(tmp_path / 'run')]) == 0
    assert load_map(tmp_path / 'again').rig.cameras[0].distortion == left.distortion
    assert 'knows its camera better' in capsys.readouterr().err


def test_map_options_without_a_map(folder: Path, tmp_path: Path) -> None:
    words = ['run', str(folder), '--out', str(tmp_path / 'run'), '--save-map', str(tmp_path / 'm')]
    assert cli.exit_code(words) == 2


def test_a_map_of_another_detector_is_refused(
    mapped: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['localize', str(mapped / 'map'), str(folder), '--out', str(tmp_path / 'located')]
    assert cli.exit_code([*words, '--set', 'detector.name=sift']) == 2
    assert 'detector' in capsys.readouterr().err
