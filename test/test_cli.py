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

sys.path.insert(0, str(Path(__file__).parent))
from cli_cases import fails_in_one_line, prints_json, texture, write

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
    'localize',
    'match',
    'pairs',
    'adapt',
    'stress',
    'settings',
    'doctor',
    'bench',
    'train',
]


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


@pytest.mark.slow
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
