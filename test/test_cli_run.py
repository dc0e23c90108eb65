# SPDX-License-Identifier: Apache-2.0
"""`run`, `eval`, `dataset`, `demo`, `stress` and `bench` on small synthetic recordings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli import ba_bench, fault_frames, faults
from mv_matcher_ros.cli import demo as demo_module
from mv_matcher_ros.cli.fault_files import write_folder
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.files.trajectory import read_tum, write_tum

FRAMES = 14
RUN_KEYS = {'frames', 'keyframes', 'lost', 'fps', 'latency_ms', 'settings', 'versions', 'faults'}
EVAL_KEYS = {'ate_rmse_m', 'scale', 'coverage', 'rpe', 't_rel_percent', 'r_rel_deg_per_100m'}


@pytest.fixture(scope='module')
def clip() -> Clip:
    from mv_matcher_ros.worlds.presets import room_loop

    return Clip.of(room_loop('stereo', FRAMES, (320, 240)))


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    """The clip as an image folder with its truth."""
    path = write_folder(clip, tmp_path / 'recording')
    assert clip.truth is not None
    write_tum(path / 'groundtruth.txt', clip.truth)
    return path


@pytest.fixture(scope='module')
def bag(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_module.record(clip, tmp_path_factory.mktemp('bags') / 'flight')


def succeeds(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = cli.exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_run_on_a_bag_leaves_poses_summary_and_report(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'run'
    text = succeeds(['run', str(bag), '--out', str(out)], capsys)
    assert 'ATE after SE(3)' in text
    info = json.loads((out / 'run.json').read_text())
    assert set(info) >= RUN_KEYS
    assert (info['frames'], info['sensor'], info['lost']) == (FRAMES, 'stereo', 0)
    assert info['settings']['sensor'] == 'stereo'
    assert set(info['latency_ms']['total']) == {'p50', 'p95'}
    assert len((out / 'odometry.tum').read_text().splitlines()) == FRAMES
    assert '<html' in (out / 'report.html').read_text()
    found = json.loads(succeeds(['run', str(bag), '--out', str(out), '--json'], capsys))
    assert set(found['evaluation']) >= EVAL_KEYS
    assert found['evaluation']['coverage'] == 1.0
    assert found['evaluation']['ate_rmse_m'] < 0.02


def test_a_run_says_which_networks_ran(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from mv_matcher_ros.models.matcher import MatcherNetwork
    from mv_matcher_ros.models.profiles import MatcherProfile
    from mv_matcher_ros.models.weights import save_matcher

    torch.manual_seed(0)
    profile = MatcherProfile(descriptor_size=128, width=32, attention_size=32, blocks=1)
    sha256 = save_matcher(tmp_path / 'm.safetensors', MatcherNetwork(profile))
    words = ['run', str(folder), '--out', str(tmp_path / 'run'), '--json', '--end', '4',
             '--set', 'detector.name=sift']  # fmt: skip
    assert json.loads(succeeds(words, capsys))['run']['networks'] == {}
    words += ['--set', 'runtime.device=cpu']
    words += ['--set', f'matching.weights={tmp_path / "m.safetensors"}']
    used = {'place': 'cpu fp32', 'weights': 'm.safetensors', 'sha256': sha256, 'describes': sha256}
    assert json.loads(succeeds(words, capsys))['run']['networks'] == {'matcher': used}


def test_part_of_a_recording_with_settings_from_everywhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / 'robot.yaml'
    config.write_text('/**:\n  ros__parameters:\n    detector:\n      max_keypoints: 400\n')
    words = ['run', str(folder), '--out', str(tmp_path / 'run'), '--config', str(config),
             '--set', 'keyframes.window=6', '--sensor', 'mono',
             '--start', '1', '--end', '12', '--stride', '2', '--json']  # fmt: skip
    found = json.loads(succeeds(words, capsys))
    assert found['run']['frames'] == 6
    assert found['run']['sensor'] == 'mono'
    settings = found['run']['settings']
    assert settings['detector']['max_keypoints'] == 400
    assert settings['keyframes']['window'] == 6
    assert settings['sensor'] == 'mono'


def test_eval_against_a_file_and_against_the_sequence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / 'run'
    succeeds(['run', str(folder), '--out', str(run)], capsys)
    results = []
    for truth in (folder / 'groundtruth.txt', folder):
        words = ['eval', str(run), '--truth', str(truth), '--json', '--no-report']
        results.append(json.loads(succeeds(words, capsys)))
    assert results[0] == results[1]
    assert set(results[0]) >= EVAL_KEYS
    text = succeeds(['eval', str(run), '--truth', str(folder), '--align', 'sim3'], capsys)
    assert 'ATE after Sim(3)' in text
    assert (run / 'report.html').is_file()


def test_eval_against_the_bag_that_was_run(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'run'
    ran = json.loads(succeeds(['run', str(bag), '--out', str(out), '--json'], capsys))
    words = ['eval', str(out), '--truth', str(bag), '--json', '--no-report']
    assert json.loads(succeeds(words, capsys)) == ran['evaluation']
    based = json.loads(succeeds([*words, '--body-frame', 'base_link'], capsys))
    assert based != ran['evaluation']
    assert 'no topic of poses "/gt"' in fails([*words, '--topic', 'truth=/gt'], capsys)


def test_notes_are_printed_with_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read_tum(folder / 'groundtruth.txt')
    twice = truth.world_from_body.copy()
    twice[:, :3, 3] *= 2.0
    write_tum(folder / 'groundtruth.txt', Trajectory(truth.stamps_ns, twice))
    out = tmp_path / 'run'
    text = succeeds(['run', str(folder), '--out', str(out)], capsys)
    note = 'the scale is off by'
    assert f'note: {note}' in text
    assert f'note: {note}' in succeeds(['eval', str(out), '--truth', str(folder)], capsys)
    table = tmp_path / 'table'
    text = succeeds(['dataset', str(folder), '--out', str(table)], capsys)
    assert f'note: recording: {note}' in text
    assert f'- recording: {note}' in (table / 'table.md').read_text()


def test_short_paths_have_no_figures_per_distance(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = succeeds(['run', str(folder), '--out', str(tmp_path / 'run')], capsys)
    assert 'none: the path is below 2 m' in text
    for figure in ('% of path', 't_rel', 'r_rel'):
        assert figure not in text


def test_a_run_without_a_pose_says_why(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in folder.glob('view*/*.png'):
        cv2.imwrite(str(image), np.full((240, 320), 90, np.uint8))
    out = tmp_path / 'run'
    assert cli.exit_code(['run', str(folder), '--out', str(out)]) == 0
    printed = capsys.readouterr()
    said = f'the run has no poses; {FRAMES} of {FRAMES} frames say "'
    assert f'warning: {said}' in printed.out
    assert str(out / 'status.csv') in printed.out
    assert 'odometry.tum' not in printed.err
    assert cli.exit_code(['run', str(folder), '--out', str(out), '--json']) == 0
    assert said in capsys.readouterr().err
    assert said in fails(['eval', str(out), '--truth', str(folder)], capsys)


def test_out_needs_a_name_and_may_be_a_run_of_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for command in (['run', str(folder)], ['dataset', str(folder)], ['demo']):
        assert cli.exit_code([*command, '--out', '']) == 2
        assert 'the name is empty' in capsys.readouterr().err
    for place in ('new', 'new'):
        succeeds(['run', str(folder), '--out', place, '--end', '3', '--json'], capsys)
    for place in ('set', 'set'):
        succeeds(['dataset', str(folder), '--out', place, '--end', '5', '--json'], capsys)


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = cli.exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert 'Traceback' not in printed.err
    errors = [line for line in printed.err.splitlines() if 'error: ' in line]
    assert len(errors) == 1
    return errors[0]


def test_a_recording_that_breaks_keeps_what_was_computed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = folder / 'view0' / '000009.png'
    cv2.imwrite(str(image), np.zeros((50, 60), np.uint8))
    run = tmp_path / 'run'
    assert '60x50' in fails(['run', str(folder), '--out', str(run)], capsys)
    assert len((run / 'odometry.tum').read_text().splitlines()) == 9
    info = json.loads((run / 'run.json').read_text())
    assert info['frames'] == 9
    assert '60x50' in info['failure']


def test_skipped_images_are_counted_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / 'view1' / '000004.png').write_bytes(b'broken')
    code = cli.exit_code(['run', str(folder), '--out', str(tmp_path / 'run')])
    printed = capsys.readouterr()
    assert code == 0
    assert 'warning: ' in printed.err
    assert 'unreadable image' in printed.err


@pytest.mark.parametrize(
    ('words', 'fault'),
    [
        (['run', 'no/such', '--out', 'OUT'], 'no/such: no such file or folder'),
        (['run', 'FOLDER', '--out', 'OUT', '--set', 'sensr=mono'], 'did you mean "sensor"'),
        (
            ['run', 'FOLDER', '--out', 'OUT', '--config', 'none.yaml'],
            'none.yaml: no such settings',
        ),
        (['run', 'FOLDER', '--out', 'OUT', '--sensor', 'rgbd'], 'depth'),
        (['run', 'FOLDER', '--out', 'FOLDER/times.txt/x'], 'cannot be written'),
        (['run', 'FOLDER', '--out', 'OUT', '--start', '99'], 'no frames from 99 on, there are 14'),
        (['run', 'FOLDER', '--out', 'FOLDER/view0'], 'view0: holds other files (000000.png'),
        (['dataset', 'FOLDER', '--out', 'FOLDER/view0'], 'view0: holds other files (000000.png'),
        (['demo', '--out', 'FOLDER/view0'], 'view0: holds other files (000000.png'),
        (['run', 'FOLDER', '--out', 'OUT', '--topic', 'image'], 'KEY=TOPIC'),
        (['run', 'FOLDER', '--out', 'OUT', '--topic', 'image=/x'], 'for bags'),
        (['eval', 'no/such', '--truth', 'FOLDER'], 'no/such'),
        (['eval', 'FOLDER', '--truth', 'FOLDER'], 'not a run folder'),
        (['dataset', 'no/such'], 'no such folder'),
        (['stress', '--only', 'nothing like it'], 'no fault has that'),
        (['settings', 'nothing'], 'no setting begins with "nothing"'),
        (['settings', 'keyframe.wnd'], 'did you mean "keyframes.window"?'),
    ],
)
def test_faults_of_the_input_are_one_line(
    words: list[str], fault: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {'FOLDER': str(folder), 'OUT': str(tmp_path / 'out')}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert fault in fails(words, capsys)


def test_a_name_below_the_data_root_is_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv('MV_MATCHER_DATA', str(folder.parent))
    words = ['run', 'recording', '--out', str(tmp_path / 'run'), '--end', '4', '--json']
    assert json.loads(succeeds(words, capsys))['run']['frames'] == 4


def test_dataset_makes_one_table_of_good_and_bad_sequences(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / 'set'
    (root / 'b').mkdir(parents=True)
    folder.rename(root / 'a')
    for name in ('calibration.yaml', 'times.txt'):
        (root / 'b' / name).write_text((root / 'a' / name).read_text())
    (root / 'b' / 'view0').mkdir()
    cv2.imwrite(str(root / 'b' / 'view0' / '000000.png'), np.zeros((240, 320), np.uint8))
    out = tmp_path / 'out'
    rows = json.loads(succeeds(['dataset', str(root), '--out', str(out), '--json'], capsys))
    assert [row['sequence'] for row in rows] == ['a', 'b']
    assert rows[0]['error'] == ''
    assert rows[0]['ate_se3_m'] < 0.02
    assert rows[1]['error']
    table = (out / 'table.md').read_text()
    assert '| a ' in table
    assert '| b ' in table
    assert (out / 'a' / 'report.html').is_file()


def test_demo_flies_records_and_measures(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(demo_module, 'flight', lambda sensor, frames: clip)
    out = tmp_path / 'demo'
    for _ in range(2):  # a second demo replaces the first
        found = json.loads(succeeds(['demo', '--out', str(out), '--json'], capsys))
    assert found['coverage'] == 1.0
    assert found['ate_rmse_m'] < 0.02
    assert cv2.imread(str(out / 'overview.png')) is not None
    assert (out / 'report.html').is_file()
    assert (out / 'flight' / 'metadata.yaml').is_file()
    if importlib.util.find_spec('gtsam') is not None:
        assert found['map']['ate_rmse_m'] < 0.02
        assert (out / 'map' / 'map.json').is_file()


def test_the_demo_flight_is_a_loop() -> None:
    truth = demo_module.flight('stereo').truth
    assert truth is not None
    positions = truth.world_from_body[:, :3, 3]
    path = np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()
    back = np.linalg.norm(positions[len(positions) // 2 :] - positions[0], axis=1).min()
    assert path > 10.0
    assert back < 0.3


def test_demo_does_not_remove_what_is_no_bag(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / 'flight').mkdir()
    (tmp_path / 'flight' / 'thesis.txt').write_text('precious')
    with pytest.raises(MvMatcherError, match='is no bag'):
        demo_module.record(clip, tmp_path / 'flight')
    assert (tmp_path / 'flight' / 'thesis.txt').is_file()


def test_stress_prints_a_row_a_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['stress', str(folder), '--frames', '14', '--only', 'bag', '--json']
    found = json.loads(succeeds(words, capsys))
    assert [row['name'] for row in found['faults']] == ['bag is cut off']
    text = succeeds(['stress', str(folder), '--frames', '14', '--only', 'calibration'], capsys)
    assert text.count(' ok') == 2


def test_stress_fails_when_a_fault_is_not_met(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(clip: Clip, place: Path, settings: object) -> faults.Outcome:
        raise ZeroDivisionError('a bug')

    fault = faults.Fault('made up', 'whatever', broken)
    monkeypatch.setattr(fault_frames, 'FRAME_FAULTS', (fault,))
    assert cli.exit_code(['stress', str(folder), '--only', 'made up']) == 1
    assert 'crashed: ZeroDivisionError: a bug' in capsys.readouterr().out


def test_bench_of_stages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['bench', 'stages', str(folder), '--frames', '20', '--sensor', 'stereo']
    found = json.loads(succeeds([*words, '--json'], capsys))['stages']
    assert found['frames'] == FRAMES
    assert found['image'] == '320x240'
    assert {'p50', 'p95', 'mean_a_frame', 'share_of_frames'} == set(found['latency_ms']['all'])
    beside = ('all', 'keyframe')
    parts = sum(v['mean_a_frame'] for k, v in found['latency_ms'].items() if k not in beside)
    assert 0.5 < parts / found['latency_ms']['all']['mean_a_frame'] <= 1.01


def test_bench_of_bundle_adjustment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ba_bench, 'SIZES', ((4, 40),))
    words = ['bench', 'ba', '--repeats', '1']
    row = json.loads(succeeds([*words, '--json'], capsys))['bundle_adjustment'][0]
    assert (row['poses'], row['points']) == (4, 40)
    assert row['ours']['final_cost'] < 0.05 * row['ours']['start_cost']
    # Noise of the stated size leaves half a squared sigma for each degree of freedom.
    freedom = 2 * row['observations'] - 3 * 40 - 6 * 2
    assert row['ours']['final_cost'] == pytest.approx(0.5 * freedom, rel=0.4)
    if importlib.util.find_spec('gtsam'):
        assert row['gtsam']['start_cost'] == pytest.approx(row['ours']['start_cost'], rel=1e-9)
        assert row['gtsam']['final_cost'] == pytest.approx(row['ours']['final_cost'], rel=1e-6)
    assert 'faster' in succeeds(words, capsys)
