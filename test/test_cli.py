# SPDX-License-Identifier: Apache-2.0
"""`mv-matcher` from outside: exit codes, one-line errors, fast help, JSON with stable keys."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli.console import plain
from mv_matcher_ros.cli.options import parse_assignments
from mv_matcher_ros.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    'demo',
    'run',
    'eval',
    'dataset',
    'match',
    'pairs',
    'stress',
    'settings',
    'doctor',
    'bench',
    'train',
]
LATER = ['adapt', 'localize']  # not listed before they exist


def fails_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a command whose input is at fault."""
    code = cli.exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.out == ''
    assert printed.err.startswith('mv-matcher: error: ')
    assert printed.err.count('\n') == 1
    return printed.err.strip()


def prints_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    code = cli.exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = 'import sys; from mv_matcher_ros.cli import main; main(sys.argv[1:])'
    return subprocess.run(
        [sys.executable, '-W', 'error', '-c', code, *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def test_help_lists_the_commands_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(['--help']) == 0
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.split('Commands:')[1].splitlines() if line.strip()]
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    assert not set(listed) & set(LATER)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code([command, '--help']) == 0
    assert 'Usage: mv-matcher' in capsys.readouterr().out


def test_help_loads_nothing_heavy_and_is_fast() -> None:
    """Heavy modules are what makes a command line slow: none of them may be needed for --help."""
    code = (
        'import sys\nfrom mv_matcher_ros import cli\ncode = cli.exit_code(["--help"])\n'
        'heavy = {"torch", "numpy", "cv2", "matplotlib", "rosbags", "gtsam", "rclpy", "yaml"}\n'
        'print(sorted(heavy & set(sys.modules)), file=sys.stderr)\nsys.exit(code)'
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert done.stderr.strip() == '[]'
    assert time.perf_counter() - start < 5.0  # 0.2 s on a desktop; a bound for a loaded machine


@pytest.mark.parametrize(
    'arguments', [['runn'], ['run'], ['run', 'x', '--no-such'], ['eval', 'x', '--align', 'y']]
)  # fmt: skip
def test_wrong_usage_is_exit_code_2_without_a_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(arguments) == 2
    printed = capsys.readouterr()
    assert 'Traceback' not in printed.err
    assert printed.err


def test_main_leaves_with_the_exit_code() -> None:
    assert in_process('doctr').returncode == 2
    done = in_process('pairs', 'no/such/file.txt')
    assert done.returncode == 2
    assert done.stderr == 'mv-matcher: error: no/such/file.txt: no such list of pairs\n'


def test_missing_typer_is_one_line_naming_the_extra() -> None:
    code = (
        'import sys; sys.modules["typer"] = None\n'
        'from mv_matcher_ros.cli import main; main(["--help"])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert 'pip install "mv_matcher_ros[cli]"' in done.stderr
    assert done.stderr.count('\n') == 1


def test_assignments_are_read_as_yaml() -> None:
    assert parse_assignments(['a.b=8', 'c=0.5', 'd=true', 'e=text', 'f=']) == {
        'a.b': 8, 'c': 0.5, 'd': True, 'e': 'text', 'f': None,
    }  # fmt: skip


@pytest.mark.parametrize('wrong', ['novalue', '=3', 'a=[1'])
def test_wrong_assignments_are_named(wrong: str) -> None:
    with pytest.raises(SettingsError, match='--set'):
        parse_assignments([wrong])


def test_json_has_no_word_for_nan() -> None:
    given = {'a': float('nan'), 'b': (np.float32(2.0), np.arange(2)), 3: float('inf')}
    assert json.loads(json.dumps(plain(given))) == {'a': None, 'b': [2.0, [0, 1]], '3': None}


def test_doctor_has_a_row_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row['name']: row for row in prints_json(['doctor', '--json'], capsys)}
    for name in ('Python', 'numpy', 'OpenCV', 'torch', 'pydantic'):
        assert rows[name]['state'] == 'ok', rows[name]
        assert rows[name]['required']
    assert rows['numpy']['detail'] == np.__version__
    assert {'CUDA', 'gtsam', 'evo', 'rosbags', 'rclpy', 'tf2_msgs', 'cv_bridge'} <= set(rows)
    for row in rows.values():
        assert row['state'] in {'ok', 'missing', 'broken'}
        assert bool(row['advice']) == (row['state'] != 'ok'), row


def texture(rows: int = 300, columns: int = 400, seed: int = 0) -> np.ndarray:
    """(rows, columns) uint8 picture with corners at several scales."""
    random = np.random.default_rng(seed)
    layers = [
        cv2.resize(random.integers(0, 256, (rows // s, columns // s)).astype(np.float32),
                   (columns, rows), interpolation=cv2.INTER_CUBIC)
        for s in (6, 12, 30)
    ]  # fmt: skip
    return np.clip(np.mean(layers, axis=0), 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_match_finds_a_shifted_picture_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = texture()
    images = [
        write(tmp_path / f'{x}.png', whole[:, x : x + 300]) for x in (0, 40, 80)
    ]  # fmt: skip
    out = tmp_path / 'new' / 'drawn.png'
    words = [*map(str, images), '--out', str(out)]
    found = prints_json(['match', *words, '--json'], capsys)
    assert [row['images'] for row in found['pairs']] == [
        [str(images[a]), str(images[b])] for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    for row in found['pairs']:
        assert row['matches'] > 50
        assert row['inliers'] > 0.9 * row['matches']
    drawn = cv2.imread(str(out))
    assert drawn.shape == (300, 3 * 300 + 2 * 8, 3)
    assert cli.exit_code(['match', *words]) == 0
    assert 'agree on one geometry' in capsys.readouterr().out


def test_match_of_unrelated_pictures_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [write(tmp_path / 'grey.png', np.full((64, 64), 128, np.uint8)),
              write(tmp_path / 'b.png', texture(64, 80))]  # fmt: skip
    found = prints_json(
        ['match', *map(str, images), '--out', str(tmp_path / 'o.png'), '--json'], capsys
    )
    assert found['pairs'][0]['matches'] == 0
    assert found['pairs'][0]['confidence'] == 0.0


def test_faults_of_images_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(write(tmp_path / 'good.png', texture(64, 80)))
    (tmp_path / 'bad.png').write_bytes(b'not a png')
    assert 'two images' in fails_in_one_line(['match', good], capsys)
    for name in ('bad.png', 'none.png'):
        assert name in fails_in_one_line(['match', good, str(tmp_path / name)], capsys)
    line = fails_in_one_line(['match', good, good, '--out', str(tmp_path / 'o.xyz')], capsys)
    assert 'o.xyz: cannot be written' in line


def pairs_file(folder: Path, shift_m: float = 0.5) -> Path:
    """Two views of a textured wall 2 m away, the second camera `shift_m` to the right."""
    focal, depth = 300.0, 2.0
    whole = texture(300, 500, seed=3)
    disparity = round(focal * shift_m / depth)
    write(folder / 'a.png', whole[:, :400])
    write(folder / 'b.png', whole[:, disparity : disparity + 400])
    k = f'{focal} 0 200 0 {focal} 150 0 0 1'
    pose = f'1 0 0 {-shift_m} 0 1 0 0 0 0 1 0 0 0 0 1'
    (folder / 'pairs.txt').write_text(f'# one pair\na.png b.png 0 0 {k} {k} {pose}\n')
    return folder / 'pairs.txt'


def test_pairs_gives_the_keys_scripts_rely_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pairs_file(tmp_path)
    found = prints_json(['pairs', str(file), '--json', '--per-pair'], capsys)
    assert set(found['auc']) == {'5', '10', '20'}
    assert {'precision', 'matching_score', 'matches', 'pairs', 'solver'} <= set(found)
    assert found['solver'] == 'opencv-usac-magsac-1px'
    assert found['pairs'] == 1
    assert found['precision'] > 90.0
    assert found['matches'] > 100
    assert found['detector']['name'] == 'sift'
    assert found['results'][0]['names'] == ['a.png', 'b.png']
    orb = prints_json(
        ['pairs', str(file), '--json', '--solver', 'ransac', '--set', 'detector.name=orb'], capsys
    )
    assert (orb['detector']['name'], orb['solver']) == ('orb', 'opencv-ransac-1px')
    assert cli.exit_code(['pairs', str(file)]) == 0
    assert 'pose AUC@5°' in capsys.readouterr().out


def test_faults_of_pairs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pairs_file(tmp_path)
    line = fails_in_one_line(['pairs', str(file), '--set', 'detector.max_keypoint=9'], capsys)
    assert 'did you mean "detector.max_keypoints"' in line
    (tmp_path / 'b.png').unlink()
    assert 'b.png' in fails_in_one_line(['pairs', str(file)], capsys)
    file.write_text('a.png b.png 0 0 1 2\n')
    assert 'pairs.txt:1' in fails_in_one_line(['pairs', str(file)], capsys)


@pytest.mark.data
def test_classical_matching_on_real_pairs(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data_root / 'pairs' / 'strecha' / 'pairs_with_gt.txt'
    found = prints_json(['pairs', str(file), '--limit', '8', '--json'], capsys)
    assert found['pairs'] == 8
    assert found['auc']['5'] > 60.0
