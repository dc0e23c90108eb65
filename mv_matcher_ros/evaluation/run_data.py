# SPDX-License-Identifier: Apache-2.0
"""A run folder in memory, as the evaluation and the report need it."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Trajectory
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.results import STATUS, read_run
from mv_matcher_ros.files.trajectory import read_tum


@dataclass(frozen=True)
class RunData:
    """What one run left behind.

    Attributes:
        folder: the run folder, or the trajectory file if there is nothing else.
        trajectory: odom_from_body of the frames with a pose; may be empty.
        stamps_ns: (F,) every processed frame; empty if unknown.
        status: F names of `Status`.
        frame_index: (F,) position of each frame in the recording.
        keyframe: (F,) bool.
        messages: F lines, mostly empty.
        counts: (F,) per name, NaN where not given.
        latency_ms: (F,) per stage, NaN where not given.
        info: content of `run.json`.
    """

    folder: Path
    trajectory: Trajectory
    stamps_ns: NDArray[np.int64]
    status: tuple[str, ...] = ()
    frame_index: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    keyframe: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    messages: tuple[str, ...] = ()
    counts: Mapping[str, Array] = field(default_factory=dict)
    latency_ms: Mapping[str, Array] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_frames(self) -> bool:
        """Whether the list of all processed frames is known."""
        return len(self.stamps_ns) > 0

    def why_no_pose(self) -> str:
        """What to say of a run without a pose: the commonest message of its frames, and where.

        Messages that differ in their numbers only are one.
        """
        kinds = Counter(re.sub(r'\d+', '0', message) for message in self.messages if message)
        if not kinds:
            return f'the run has no poses; {STATUS} in it has the frames'
        kind, count = kinds.most_common(1)[0]
        last = next(m for m in reversed(self.messages) if re.sub(r'\d+', '0', m) == kind)
        return (
            f'the run has no poses; {count} of {len(self.messages)} frames say "{last}" '
            f'(all of them: {self.folder / STATUS})'
        )

    @property
    def name(self) -> str:
        """Of the recording (the last part, where that is a path), or of the folder."""
        source = str(self.info.get('source') or '').rstrip('/\\')
        return source.replace('\\', '/').rsplit('/', 1)[-1] or self.folder.name

    @property
    def sensor(self) -> str:
        """mono, stereo or rgbd; empty if unknown."""
        return str(self.info.get('sensor') or '')

    @property
    def metric(self) -> bool:
        """Whether lengths are metres; a run that does not say is metric unless monocular."""
        return bool(self.info.get('metric', self.sensor != 'mono'))

    @property
    def fps(self) -> float | None:
        """Frames processed per second, None if unknown."""
        value = self.info.get('fps')
        return float(value) if isinstance(value, (int, float)) else None


def load_run(run_dir: Path | str) -> RunData:
    """Read a run folder, or a single trajectory file (then nothing but its poses is known).

    Raises:
        SourceError: not a run folder, or a file in it is damaged; names it.
    """
    path = Path(run_dir)
    if path.is_file():
        return RunData(path, read_tum(path), np.zeros(0, np.int64))
    run = read_run(path)
    rows = _status_rows(path / STATUS)
    empty = Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4)))
    return RunData(
        folder=path,
        trajectory=empty if run.trajectory is None else run.trajectory,
        stamps_ns=np.array(run.stamps_ns, dtype=np.int64),
        status=tuple(status.value for status in run.statuses),
        frame_index=np.array([int(row.get('index') or k) for k, row in enumerate(rows)], np.int64),
        keyframe=np.array([row.get('keyframe') == '1' for row in rows], dtype=np.bool_),
        messages=tuple(row.get('message') or '' for row in rows),
        counts=_columns([row.get('counts') or '' for row in rows], path / STATUS),
        latency_ms=_columns([row.get('latency_ms') or '' for row in rows], path / STATUS),
        info=run.summary,
    )


def _status_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def _columns(cells: list[str], path: Path) -> dict[str, Array]:
    """`name=value name=value` of each frame as (F,) arrays by name, NaN where missing."""
    columns: dict[str, Array] = {}
    for k, cell in enumerate(cells):
        for item in cell.split():
            name, _, value = item.partition('=')
            try:
                number = float(value)
            except ValueError:
                raise SourceError(f'{path}:{k + 2}: "{item}" is not name=number') from None
            columns.setdefault(name, np.full(len(cells), np.nan))[k] = number
    return columns
