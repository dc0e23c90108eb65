# SPDX-License-Identifier: Apache-2.0
"""The folder of one run: poses as published, status of each frame, and a summary."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from mv_matcher_ros.datatypes import Array, Estimate, Frame, Status, Trajectory
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.machine import machine, versions
from mv_matcher_ros.files.stamps import stamp_from_text, text_from_stamp
from mv_matcher_ros.files.text import read_lines
from mv_matcher_ros.files.trajectory import read_tum, tum_row

if TYPE_CHECKING:
    from mv_matcher_ros.runner import Source

ODOMETRY, COVARIANCE, STATUS, SUMMARY = (
    'odometry.tum',
    'covariance.txt',
    'status.csv',
    'run.json',
)
_STATUS_FIELDS = ('stamp_ns', 'index', 'status', 'keyframe', 'counts', 'message')


class RunWriter:
    """A sink that writes a run folder.

    `odometry.tum` (poses of the body in odom, as published), `status.csv` (every frame) and, if
    asked for, `covariance.txt` are written row by row, so a crash keeps them; `run.json` at
    `close`, also after a failure. Its `lost` counts how often tracking was lost, `status` the
    frames of each status, `starts` what each map began with.

    Args:
        folder: made if it is not there; files of an earlier run in it are replaced.
        source: what is run: its name, sensor and faults go into the summary.
        settings: the settings used.
        covariances: write `covariance.txt`: stamp and 36 numbers a row.
        networks: of the engine: where and in which precision they run, with which weights.
        calibration: what was changed of it, empty for nothing.

    Raises:
        SourceError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        source: Source,
        settings: BaseModel | Mapping[str, Any] | None = None,
        covariances: bool = False,
        networks: Mapping[str, Mapping[str, str]] | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._calibration = dict(calibration or {})
        self._networks = networks or {}
        self._source = source
        self._settings = settings
        self._summary = _Summary()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (COVARIANCE, SUMMARY):  # of an earlier run
                (self.folder / name).unlink(missing_ok=True)
            # Line buffering hands every row to the system at once.
            self._odometry = (self.folder / ODOMETRY).open('w', encoding='utf-8', buffering=1)
            self._status = (self.folder / STATUS).open(
                'w', encoding='utf-8', buffering=1, newline=''
            )
            self._covariance = (
                (self.folder / COVARIANCE).open('w', encoding='utf-8', buffering=1)
                if covariances
                else None
            )
        except OSError as error:
            raise SourceError(f'{folder}: cannot be written: {error.strerror}') from None
        self._rows = csv.writer(self._status, lineterminator='\n')
        self._rows.writerow(_STATUS_FIELDS)

    def write(self, frame: Frame, estimate: Estimate) -> None:
        """Append one frame."""
        if estimate.odom_from_body is not None:
            self._odometry.write(tum_row(estimate.stamp_ns, estimate.odom_from_body))
            if self._covariance is not None:
                self._covariance.write(_covariance_row(estimate))
        counts = ' '.join(f'{name}={count}' for name, count in estimate.counts.items())
        self._rows.writerow(
            (
                estimate.stamp_ns,
                frame.index,
                estimate.status.value,
                int(estimate.is_keyframe),
                counts,
                estimate.message,
            )
        )
        self._summary.add(estimate)

    def close(self) -> None:
        """Close the files and write the summary; an exception on its way out is named in it."""
        for file in (self._odometry, self._status, self._covariance):
            if file is not None:
                file.close()
        summary: dict[str, Any] = {
            'source': self._source.name,
            'sensor': self._source.sensor,
            **self._summary.as_dict(),
            'faults': dict(self._source.faults),
            'failure': _failure(),
            'finished': datetime.now(timezone.utc).isoformat(timespec='seconds'),
            'settings': _plain(self._settings),
            'networks': {name: dict(use) for name, use in self._networks.items()},
            'calibration': self._calibration,
            'versions': versions(),
            'machine': machine(),
        }
        text = json.dumps(summary, indent=2, default=str) + '\n'
        # Written aside first: a summary is whole or not there.
        aside = self.folder / f'{SUMMARY}.part'
        aside.write_text(text, encoding='utf-8')
        os.replace(aside, self.folder / SUMMARY)


class _Summary:
    """What the summary counts over the frames."""

    def __init__(self) -> None:
        self.frames = self.poses = self.keyframes = self.lost = 0
        self.statuses: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = {}
        self.metric = True
        self.starts: list[str] = []
        self.times: list[float] = []
        self._last_status: Status | None = None

    def add(self, estimate: Estimate) -> None:
        now = time.perf_counter()
        self.times = [self.times[0] if self.times else now, now]
        self.frames += 1
        self.poses += estimate.odom_from_body is not None
        self.keyframes += estimate.is_keyframe
        self.lost += estimate.status is Status.LOST and self._last_status is not Status.LOST
        self._last_status = estimate.status
        self.statuses[estimate.status.value] += 1
        if estimate.started_by:
            self.starts.append(estimate.started_by)
        if estimate.odom_from_body is not None:
            self.metric &= estimate.metric
        latency = dict(estimate.latency_ms)
        if latency:
            latency.setdefault('total', sum(latency.values()))
        for stage, milliseconds in latency.items():
            self.latencies.setdefault(stage, []).append(float(milliseconds))

    def as_dict(self) -> dict[str, Any]:
        # Between the first answer and the last: loading and warm-up are not throughput.
        elapsed_s = self.times[1] - self.times[0] if self.times else 0.0
        return {
            'frames': self.frames,
            'poses': self.poses,
            'keyframes': self.keyframes,
            'lost': self.lost,
            'status': dict(self.statuses),
            'starts': self.starts,
            'metric': self.metric and self.poses > 0,
            'fps': round((self.frames - 1) / elapsed_s, 3) if elapsed_s > 0 else None,
            'latency_ms': {
                stage: {
                    'p50': round(float(np.percentile(values, 50)), 3),
                    'p95': round(float(np.percentile(values, 95)), 3),
                }
                for stage, values in self.latencies.items()
            },
        }


@dataclass(frozen=True)
class Run:
    """A run folder read back.

    Attributes:
        folder: where it lies.
        trajectory: poses of the body in odom, with covariances where they were written; None
            without a pose.
        summary: `run.json`; empty when the run was cut short before it was written.
        stamps_ns: (N,) stamps of all frames. statuses: their N statuses.
    """

    folder: Path
    trajectory: Trajectory | None
    summary: dict[str, Any]
    stamps_ns: tuple[int, ...]
    statuses: tuple[Status, ...]


def read_run(folder: Path | str) -> Run:
    """Read what a `RunWriter` wrote.

    Raises:
        SourceError: not a run folder, or a file in it is damaged; names it.
    """
    folder = Path(folder)
    odometry = folder / ODOMETRY
    if not odometry.is_file():
        raise SourceError(f'{folder}: not a run folder, {ODOMETRY} is missing')
    trajectory = read_tum(odometry) if odometry.stat().st_size else None
    covariances = folder / COVARIANCE
    if trajectory is not None and covariances.is_file():
        matrices = _read_covariances(covariances, trajectory)
        trajectory = Trajectory(trajectory.stamps_ns, trajectory.world_from_body, matrices)
    summary: dict[str, Any] = {}
    if (folder / SUMMARY).is_file():
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding='utf-8'))
        except ValueError as error:
            raise SourceError(f'{folder / SUMMARY}: not JSON: {error}') from None
    stamps, statuses = _read_statuses(folder / STATUS)
    return Run(folder, trajectory, summary, stamps, statuses)


def _failure() -> str | None:
    """The exception that is ending the run, in one line: `close` is called while it passes."""
    error = sys.exc_info()[1]
    if error is None:
        return None
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def _plain(settings: BaseModel | Mapping[str, Any] | None) -> Any:
    return settings.model_dump(mode='json') if isinstance(settings, BaseModel) else settings


def _covariance_row(estimate: Estimate) -> str:
    matrix = np.full((6, 6), np.nan) if estimate.covariance is None else estimate.covariance
    values = ' '.join(repr(float(v)) for v in np.asarray(matrix).ravel())
    return f'{text_from_stamp(estimate.stamp_ns)} {values}\n'


def _read_covariances(path: Path, trajectory: Trajectory) -> Array:
    """(N, 6, 6), one for each pose; NaN where there is none."""
    known: dict[int, list[float]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        try:
            known[stamp_from_text(fields[0])] = [float(v) for v in fields[1:]]
        except (ValueError, IndexError):
            raise SourceError(f'{path}:{number}: not a stamp and 36 numbers') from None
        if len(fields) != 37:
            raise SourceError(f'{path}:{number}: {len(fields)} columns instead of 37')
    missing = [float('nan')] * 36
    rows = [known.get(int(stamp), missing) for stamp in trajectory.stamps_ns]
    return np.array(rows).reshape(-1, 6, 6)


def _read_statuses(path: Path) -> tuple[tuple[int, ...], tuple[Status, ...]]:
    if not path.is_file():
        return (), ()
    try:
        with path.open(encoding='utf-8', newline='') as file:
            rows = list(csv.DictReader(file))
        return (
            tuple(int(row['stamp_ns']) for row in rows),
            tuple(Status(row['status']) for row in rows),
        )
    except (KeyError, ValueError) as error:
        raise SourceError(f'{path}: not a status file ({error})') from None
