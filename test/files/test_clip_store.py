# SPDX-License-Identifier: Apache-2.0
"""Frames kept on disk while a robot runs: what is kept, how much, and that it can be read."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Camera, Frame, Rig, Sensor, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.clip_store import ClipStore
from mv_matcher_ros.files.open import open_source

RIGHT = np.eye(4)
RIGHT[0, 3] = 0.12
LEFT_CAMERA = Camera(
    64, 48, (60.0, 61.0, 31.0, 23.5), 'radtan', (0.1, -0.05, 0.001, 0.002, 0.0), name='topic'
)
RIG = Rig((LEFT_CAMERA, Camera(64, 48, (60.0, 60.0, 31.5, 23.5), body_from_camera=RIGHT)))
MS = 1_000_000


def frame(number: int, period_ms: int = 100, views: int = 1) -> Frame:
    image = np.random.default_rng(number).integers(0, 255, (48, 64), np.uint8)
    return Frame((1 + number) * period_ms * MS, (View(image),) * views, number)


def store(
    folder: Path, sensor: Sensor = 'mono', most_bytes: int = 10**7, rate_hz: float = 20.0
) -> ClipStore:
    return ClipStore(folder, RIG, sensor, most_bytes, rate_hz)


def fill(kept: ClipStore, frames: list[Frame]) -> None:
    """One after the other, as slow as the disk."""
    for one in frames:
        kept.offer(one)
        while not kept._queue.empty():
            pass
    kept.close()


@pytest.mark.parametrize('sensor', ['mono', 'stereo'])
def test_what_is_kept_is_a_recording(tmp_path: Path, sensor: Sensor) -> None:
    views = 2 if sensor == 'stereo' else 1
    given = [frame(n, views=views) for n in range(5)]
    kept = store(tmp_path / 'clips', sensor)
    fill(kept, given)
    assert kept.frames == 5
    assert kept.left_out == 0
    recording = open_source(tmp_path / 'clips')
    assert recording.sensor == sensor
    read = list(recording)
    assert [one.stamp_ns for one in read] == [one.stamp_ns for one in given]
    for one, other in zip(read, given, strict=True):
        assert np.array_equal(one.views[-1].image, other.views[-1].image)
    camera = recording.rig.cameras[0]
    assert camera.intrinsics == LEFT_CAMERA.intrinsics
    assert camera.distortion == LEFT_CAMERA.distortion
    assert camera.model == 'radtan'
    assert recording.rig.baseline_m == pytest.approx(0.12 if sensor == 'stereo' else 0.0)


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    kept = store(tmp_path, most_bytes=20_000)  # of noise a frame takes about 3 kB
    fill(kept, [frame(n) for n in range(20)])
    files = sorted((tmp_path / 'left').glob('*.png'))
    assert sum(f.stat().st_size for f in files) == kept.size_bytes <= 20_000
    assert 3 <= len(files) == kept.frames < 10
    assert int(files[-1].stem) == frame(19).stamp_ns


def test_frames_of_an_earlier_run_count_and_go_first(tmp_path: Path) -> None:
    fill(store(tmp_path), [frame(n) for n in range(5)])
    kept = store(tmp_path, most_bytes=14_000)
    assert kept.frames == 5
    fill(kept, [frame(n) for n in range(50, 53)])
    stems = [int(f.stem) for f in sorted((tmp_path / 'left').glob('*.png'))]
    assert frame(52).stamp_ns in stems
    assert frame(0).stamp_ns not in stems
    assert kept.size_bytes <= 14_000


def test_no_more_frames_a_second_than_wanted(tmp_path: Path) -> None:
    kept = store(tmp_path, rate_hz=5.0)
    fill(kept, [frame(n, period_ms=50) for n in range(20)])
    assert kept.frames == 5


def test_a_camera_that_stands_still_is_kept_once(tmp_path: Path) -> None:
    still = frame(0).views
    kept = store(tmp_path)
    fill(kept, [Frame((1 + n) * 100 * MS, still, n) for n in range(10)])
    assert kept.frames == 1


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path)
    keep = kept._keep

    def slow(one: Frame) -> None:
        time.sleep(0.05)
        keep(one)

    monkeypatch.setattr(kept, '_keep', slow)
    begin = time.monotonic()
    for n in range(30):
        kept.offer(frame(n))
    assert time.monotonic() - begin < 1.0
    kept.close()
    assert kept.left_out > 0
    assert kept.frames + kept.left_out == 30


def test_colour_becomes_grey(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    fill(store(tmp_path), [Frame(5 * MS, (View(image),))])
    (read,) = open_source(tmp_path, 'mono')
    assert read.views[0].image.ndim == 2


def test_another_calibration_is_refused(tmp_path: Path) -> None:
    fill(store(tmp_path), [frame(0)])
    other = Rig((Camera(64, 48, (70.0, 70.0, 31.5, 23.5)),))
    with pytest.raises(SourceError, match='another calibration'):
        ClipStore(tmp_path, other, 'mono', 10**7, 8.0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(SourceError, match='cannot be written'):
        store(tmp_path / 'file' / 'clips')


def test_a_disk_that_fails_while_running_is_said(tmp_path: Path) -> None:
    kept = store(tmp_path)
    (tmp_path / 'left').rmdir()
    kept.offer(frame(0))
    kept._writer.join(5.0)
    assert 'cannot be written' in kept.problem
    kept.offer(frame(1))  # says nothing, does nothing
    kept.close()
