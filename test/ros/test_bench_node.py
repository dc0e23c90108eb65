# SPDX-License-Identifier: Apache-2.0
"""`bench node`: three processes over DDS against the same recording offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli import live_processes
from mv_matcher_ros.cli.fault_files import write_folder
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.live_processes import Play, play_to_node
from mv_matcher_ros.config import Settings
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.files.trajectory import write_tum
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = [pytest.mark.ros, pytest.mark.slow]
FRAMES = 8


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A stereo recording whose cameras sit on a body."""
    clip = Clip.of(room_loop('stereo', FRAMES, (320, 240)))
    folder = write_folder(clip, tmp_path / 'recording')
    assert clip.truth is not None
    write_tum(folder / 'groundtruth.txt', clip.truth)
    return folder


def test_lossless_node_equals_offline(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    words = ['bench', 'node', str(recording), '--lossless', '--out', str(out), '--json']
    code = cli.exit_code(words)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found = json.loads(printed.out)['node']
    assert (found['played'], found['answered'], found['unanswered']) == (FRAMES, FRAMES, 0)
    assert found['with_pose'] == found['offline']['with_pose'] == FRAMES
    assert found['offline']['compared'] == FRAMES
    assert found['offline']['largest_difference_m'] < 1e-6
    assert found['offline']['largest_difference_deg'] < 1e-4
    assert found['ate_rmse_m'] == pytest.approx(found['offline']['ate_rmse_m'], abs=1e-6)
    assert 0 < found['latency_ms']['p50'] <= found['latency_ms']['p95']
    assert found['processed_hz'] > 0
    assert (out / 'live' / 'odometry.tum').is_file()
    assert 'Traceback' not in (out / 'live' / 'main.log').read_text()


def test_real_time_node_counts_what_it_drops(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Far too fast for any engine: what is not answered is said, and answers + drops = played."""
    code = cli.exit_code(
        ['bench', 'node', str(recording), '--rate', '50', '--no-offline', '--json']
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found = json.loads(printed.out)['node']
    assert found['played'] == FRAMES
    assert found['answered'] + found['unanswered'] == FRAMES
    assert 1 <= found['answered'] <= FRAMES
    assert 'offline' not in found


def test_a_player_that_fails_is_one_line_that_names_its_log(tmp_path: Path) -> None:
    play = Play(tmp_path / 'nothing.mcap', 'mono', lossless=True)
    with pytest.raises(
        MvMatcherError, match=r'bag_player ended with code 2: .*nothing\.mcap'
    ) as e:
        play_to_node(play, Settings(), tmp_path)
    assert str(tmp_path / 'bag_player.log') in str(e.value)
    assert '\n' not in str(e.value)


def test_a_node_that_fails_ends_the_player(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_processes, '_parameters', lambda *_: {'nonsense': 1})
    play = Play(recording, 'stereo', lossless=True)
    with pytest.raises(MvMatcherError, match=r'main ended with code 2: .*nonsense'):
        play_to_node(play, Settings(), tmp_path)
