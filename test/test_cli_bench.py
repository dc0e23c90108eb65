# SPDX-License-Identifier: Apache-2.0
"""`bench creep`, `memory` and `recovery`, and what they measure, at tiny sizes."""

from __future__ import annotations

import json
import mmap
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli import ba_bench, bench_memory
from mv_matcher_ros.cli import bench as bench_module
from mv_matcher_ros.cli.bench_memory import measure_memory, resident_mb, to_and_fro
from mv_matcher_ros.cli.bench_recovery import covered_flight
from mv_matcher_ros.cli.faults import Clip, Drive
from mv_matcher_ros.cli.pose_changes import changes_of_odom, distances, largest_difference
from mv_matcher_ros.config import Settings, read_settings
from mv_matcher_ros.datatypes import Estimate, Frame, Rig, Status, Trajectory, View
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.worlds.presets import room_loop

SMALL = ['--width', '240']
MS = 1_000_000


def measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON of a benchmark, which says where it ran."""
    code = cli.exit_code(['bench', *words, '--json'])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    content = json.loads(printed.out)
    assert {'machine', 'versions'} < set(content)
    return content


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a benchmark prints as a table."""
    code = cli.exit_code(['bench', *words])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def moved(x_m: float, turned_rad: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x_m
    cosine, sine = np.cos(turned_rad), np.sin(turned_rad)
    pose[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return pose


def driven(steps: list[tuple[Status, float | None]], truth_x_m: list[float]) -> Drive:
    """What an engine might have said: a status and x each frame, None for no pose."""
    estimates = tuple(
        Estimate(i * MS, status, None if x is None else moved(x), metric=True)
        for i, (status, x) in enumerate(steps)
    )
    stamps = np.arange(len(steps), dtype=np.int64) * MS
    truth = Trajectory(stamps, np.stack([moved(x) for x in truth_x_m]))
    return Drive(estimates, '', {}, truth)


def test_creep_counts_distance_and_held_frames() -> None:
    begin, track = Status.INITIALISING, Status.TRACKING
    found = distances(
        driven([(begin, None), (track, 0.0), (track, 0.0), (track, 3.0)], [9.0, 1.0, 2.0, 5.0])
    )
    assert found['true_m'] == pytest.approx(4.0)  # from the first frame with a pose on
    assert found['estimated_m'] == pytest.approx(3.0)
    assert found['followed'] == pytest.approx(0.75)
    assert (found['frames'], found['with_pose'], found['held']) == (4, 3, 1)
    with pytest.raises(MvMatcherError, match='1 frame'):
        distances(driven([(track, 0.0), (begin, None)], [0.0, 1.0]))


def test_creep_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ['creep', '--frames', '5', '--step-mm', '10', '--sensor', 'rgbd', *SMALL]
    found = measured(words, capsys)['creep']
    assert found['true_m'] == pytest.approx(0.04)
    assert found['followed'] == pytest.approx(1.0, abs=0.25)
    assert 'distance estimated' in shown(words, capsys)


def test_creep_wants_metres(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(['bench', 'creep', '--sensor', 'mono']) == 2
    assert '--sensor stereo or rgbd' in capsys.readouterr().err


def test_rig_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ['rig', 'room_loop', '--seeds', '1', '--frames', '20', '--width', '160']
    (run,) = measured(words, capsys)['rig']['room_loop']
    assert list(run) == ['together', 'pair 1', 'pair 2']
    assert all(figures['posed'] == 1.0 for figures in run.values())
    assert run['together']['motion_deg'] < run['pair 1']['motion_deg']
    assert cli.exit_code(['bench', 'rig', 'room']) == 2
    assert 'not a rendered loop' in capsys.readouterr().err
    assert cli.exit_code(['bench', *words, '--set', 'stereo.pairs=2']) == 2
    assert 'say --pairs' in capsys.readouterr().err


def test_recovery_takes_the_largest_change_of_each_status() -> None:
    track, lost = Status.TRACKING, Status.LOST
    found = changes_of_odom(
        driven(
            [(track, 0.0), (track, 1.0), (Status.DEGRADED, 1.5), (lost, None), (lost, None),
             (Status.RELOCALISED, 1.75), (track, 3.75)],
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        )
    )  # fmt: skip
    rows = found['statuses']
    assert (rows['LOST']['frames'], rows['LOST']['with_pose']) == (2, 0)
    assert rows['LOST']['largest'] is None
    assert rows['TRACKING']['largest']['moved_m'] == pytest.approx(2.0)
    assert rows['TRACKING']['largest']['true_moved_m'] == pytest.approx(1.0)
    back = rows['RELOCALISED']['largest']
    assert (back['frames_apart'], back['moved_m']) == (3, pytest.approx(0.25))
    assert back['true_moved_m'] == pytest.approx(3.0)
    assert (found['last_status'], found['metric']) == ('TRACKING', True)


def test_recovery_covers_the_lens_when_it_says() -> None:
    source, covered = covered_flight(read_settings({'sensor': 'mono'}), 0.1, 3, 2, (160, 120))
    contrast = [float(frame.views[0].image.std()) for frame in source]
    assert covered == 2
    assert len(contrast) == 3 + 2 + 2
    assert max(contrast[3:5]) < 5.0 < min(contrast[:3] + contrast[5:])


def test_recovery_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ['recovery', '--gap', '0.8', '--before', '4', '--after', '6', *SMALL]
    (gap,) = measured(words, capsys)['recovery']['gaps']
    rows = gap['statuses']
    assert gap['covered'] == 16
    assert rows['LOST']['with_pose'] == 0
    assert rows['LOST']['frames'] > 0
    assert rows['RELOCALISED']['largest']['frames_apart'] > rows['LOST']['frames']
    assert sum(row['frames'] for row in rows.values()) == 4 + 16 + 6
    table = shown(['recovery', '--gap', '0.1', '--before', '4', '--after', '3', *SMALL], capsys)
    assert 'covered for 0.1 s (2 frames)' in table


def test_to_and_fro_never_stops_and_never_repeats() -> None:
    image = np.zeros((2, 2), np.uint8)
    frames = tuple(Frame(5 + 10 * i, (View(image + i),), i) for i in range(4))
    clip = Clip('clip', 'mono', Rig(()), frames, None)
    run = list(to_and_fro(clip, 10))
    assert [int(f.views[0].image[0, 0]) for f in run] == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert [f.stamp_ns for f in run] == [5 + 10 * i for i in range(10)]
    assert [f.index for f in run] == list(range(10))


def test_resident_memory_sees_an_allocation() -> None:
    before_mb = resident_mb()
    # Of its own: malloc may have room left from what tests before this one let go.
    block = np.frombuffer(mmap.mmap(-1, 64 * 2**20))
    block[:] = 1.0
    assert 60.0 < resident_mb() - before_mb < 70.0
    assert block[-1] == 1.0


def test_memory_says_how_fast_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([100.0, 103.0, 106.0, 109.0])
    monkeypatch.setattr(bench_memory, 'resident_mb', lambda: next(samples))
    clip = Clip.of(room_loop('mono', 3, (160, 120)))
    found = measure_memory(clip, Settings(), frames=7, every=2)
    assert [s['frame'] for s in found['samples']] == [2, 4, 6, 7]
    assert (found['first_mb'], found['last_mb'], found['grown_mb']) == (100.0, 109.0, 9.0)
    even = np.polyfit([2, 4, 6, 7], [100.0, 103.0, 106.0, 109.0], 1)[0]
    assert found['slope_mb_per_1000_frames'] == pytest.approx(1e3 * even)
    assert found['slope_of_second_half_mb_per_1000_frames'] == pytest.approx(3e3)


def test_memory_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ['memory', '--frames', '6', '--every', '3', '--clip', '3', *SMALL]
    found = measured(words, capsys)['memory']
    assert (found['frames'], found['with_pose']) == (6, 6)
    assert [s['frame'] for s in found['samples']] == [3, 6]
    assert 'growth per 1000 frames' in shown(words, capsys)


def test_largest_difference_is_from_the_first_common_pose() -> None:
    def run(stamps: list[int], poses: list[np.ndarray]) -> Trajectory:
        return Trajectory(np.array(stamps, dtype=np.int64), np.stack(poses))

    alone = run([1, 2, 3], [moved(0.0), moved(1.0), moved(2.0)])
    live = run([2, 3], [moved(0.0), moved(1.25, 0.1)])
    found = largest_difference(live, alone)
    assert found['compared'] == 2
    assert found['largest_difference_m'] == pytest.approx(0.25)
    assert found['largest_difference_deg'] == pytest.approx(np.rad2deg(0.1))
    assert largest_difference(run([9], [moved(0.0)]), alone)['largest_difference_m'] is None


def test_bench_alone_is_stages_and_bundle_adjustment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ba_bench, 'SIZES', ((4, 40),))
    monkeypatch.setattr(bench_module, 'REPEATS', 1)
    monkeypatch.setattr(bench_module, 'FRAMES', 12)
    found = measured([], capsys)
    assert found['stages']['frames'] == 12
    assert len(found['bundle_adjustment']) == 1
