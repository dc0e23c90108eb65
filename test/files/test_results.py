# SPDX-License-Identifier: Apache-2.0
"""Run folders: everything comes back, also from a run that failed half way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Estimate, Frame, Status
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.results import RunWriter, read_run
from mv_matcher_ros.runner import run

Make = Callable[..., Any]
Poses = Callable[[int], np.ndarray]
STATUSES = [
    Status.INITIALISING,
    Status.TRACKING,
    Status.LOST,
    Status.LOST,
    Status.RELOCALISED,
    Status.TRACKING,
    Status.LOST,
    Status.DEGRADED,
]


class Scripted:
    """An engine that answers with given poses and statuses."""

    networks: Mapping[str, Mapping[str, str]] = {}

    def __init__(self, poses: np.ndarray, metric: bool = True) -> None:
        self.poses, self.metric, self.index = poses, metric, 0

    def process(self, frame: Frame) -> Estimate:
        status = STATUSES[self.index]
        known = status not in (Status.LOST, Status.INITIALISING)
        estimate = Estimate(
            frame.stamp_ns,
            status,
            self.poses[self.index] if known else None,
            covariance=np.eye(6) * (self.index + 1) if known and self.index != 5 else None,
            metric=self.metric,
            is_keyframe=self.index in (1, 4),
            message='no texture, "dark"' if status is Status.LOST else '',
            counts={'features': 100 + self.index, 'inliers': self.index},
            latency_ms={'detect': 10.0 * (self.index + 1), 'match': 1.0},
        )
        self.index += 1
        return estimate

    def reset(self) -> None:
        self.index = 0


def test_everything_comes_back(tmp_path: Path, make_source: Make, poses: Poses) -> None:
    source = make_source('stereo', count=8)
    source.faults = {'unreadable image, frame skipped': 2}
    some = poses(8)
    networks = {'matcher': {'place': 'cpu fp32', 'weights': 'm.safetensors', 'sha256': 'ab'}}
    writer = RunWriter(
        tmp_path / 'out' / 'run',
        source,
        Settings(sensor='stereo'),
        covariances=True,
        networks=networks,
    )
    run(source, Scripted(some), [writer])
    back = read_run(tmp_path / 'out' / 'run')
    assert list(back.statuses) == STATUSES
    assert list(back.stamps_ns) == [frame.stamp_ns for frame in source]
    assert back.trajectory is not None
    known = [1, 4, 5, 7]
    assert back.trajectory.stamps_ns.tolist() == [source.frames[i].stamp_ns for i in known]
    np.testing.assert_allclose(back.trajectory.world_from_body, some[known], atol=2e-15)
    covariances = back.trajectory.covariances
    assert covariances is not None
    np.testing.assert_array_equal(covariances[0], np.eye(6) * 2)
    assert np.isnan(covariances[2]).all()
    summary = back.summary
    assert (summary['frames'], summary['poses'], summary['keyframes']) == (8, 4, 2)
    assert summary['lost'] == 2
    assert summary['status']['LOST'] == 3
    assert summary['faults'] == {'unreadable image, frame skipped': 2}
    assert summary['metric'] is True
    assert summary['failure'] is None
    assert summary['source'] == 'memory'
    assert summary['sensor'] == 'stereo'
    assert summary['settings']['sensor'] == 'stereo'
    assert summary['networks'] == networks
    assert summary['latency_ms']['detect'] == {'p50': 45.0, 'p95': 76.5}
    assert summary['latency_ms']['total'] == {'p50': 46.0, 'p95': 77.5}
    assert summary['fps'] > 0
    assert {'python', 'numpy', 'torch', 'opencv'} <= set(summary['versions'])
    assert summary['machine']['cores'] >= 1
    assert not list((tmp_path / 'out' / 'run').glob('*.part'))


def test_rows_are_on_the_disk_before_the_run_ends(
    tmp_path: Path, make_source: Make, poses: Poses
) -> None:
    source = make_source(count=8)
    writer = RunWriter(tmp_path, source)
    engine = Scripted(poses(8))
    for frame in source.frames[:6]:
        writer.write(frame, engine.process(frame))
    back = read_run(tmp_path)  # as after a crash: never closed
    assert back.trajectory is not None
    assert len(back.trajectory) == 3
    assert len(back.statuses) == 6
    assert back.summary == {}
    writer.close()
    assert read_run(tmp_path).summary['frames'] == 6


def test_a_failure_is_named_and_keeps_what_there_is(
    tmp_path: Path, make_source: Make, poses: Poses
) -> None:
    source = make_source(count=8)
    frames = list(source.frames)

    class Torn(type(source)):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Frame]:
            yield from frames[:5]
            raise SourceError('torn\ncable')

    torn = Torn(source.sensor, source.rig, frames)
    with pytest.raises(SourceError):
        run(torn, Scripted(poses(8)), [RunWriter(tmp_path, torn)])
    back = read_run(tmp_path)
    assert back.summary['failure'] == 'SourceError: torn cable'
    assert back.summary['frames'] == 5
    assert back.trajectory is not None
    assert len(back.trajectory) == 2


def test_a_run_without_a_pose(tmp_path: Path, make_source: Make, poses: Poses) -> None:
    source = make_source(count=1)
    run(source, Scripted(poses(8)), [RunWriter(tmp_path, source)])
    back = read_run(tmp_path)
    assert back.trajectory is None
    assert back.summary['poses'] == 0
    assert back.summary['metric'] is False
    assert back.summary['fps'] is None


def test_what_maps_began_with_is_said(tmp_path: Path, make_source: Make) -> None:
    class Begins(Scripted):
        def process(self, frame: Frame) -> Estimate:
            how = {1: 'depth', 4: 'robust (1 pair) of 2 views'}.get(self.index, '')
            return replace(super().process(frame), started_by=how)

    run(
        make_source(count=8),
        Begins(np.tile(np.eye(4), (8, 1, 1))),
        [RunWriter(tmp_path, make_source(count=8))],
    )
    assert read_run(tmp_path).summary['starts'] == ['depth', 'robust (1 pair) of 2 views']


def test_mono_is_not_metric(tmp_path: Path, make_source: Make, poses: Poses) -> None:
    source = make_source(count=8)
    run(source, Scripted(poses(8), metric=False), [RunWriter(tmp_path, source)])
    assert read_run(tmp_path).summary['metric'] is False


def test_an_earlier_run_leaves_nothing_behind(
    tmp_path: Path, make_source: Make, poses: Poses
) -> None:
    source = make_source(count=8)
    run(source, Scripted(poses(8)), [RunWriter(tmp_path, source, covariances=True)])
    writer = RunWriter(tmp_path, source)
    assert not (tmp_path / 'run.json').exists()
    assert not (tmp_path / 'covariance.txt').exists()
    writer.close()


def test_folders_that_do_not_work(tmp_path: Path, make_source: Make) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(SourceError, match='cannot be written'):
        RunWriter(tmp_path / 'file', make_source())
    with pytest.raises(SourceError, match=r'not a run folder, odometry\.tum is missing'):
        read_run(tmp_path)
    RunWriter(tmp_path / 'run', make_source()).close()
    (tmp_path / 'run' / 'run.json').write_text('{')
    with pytest.raises(SourceError, match=r'run\.json: not JSON'):
        read_run(tmp_path / 'run')
    (tmp_path / 'run' / 'run.json').write_text(json.dumps({}))
    (tmp_path / 'run' / 'status.csv').write_text('stamp_ns,status\n1,DREAMING\n')
    with pytest.raises(SourceError, match=r'status\.csv: not a status file'):
        read_run(tmp_path / 'run')
