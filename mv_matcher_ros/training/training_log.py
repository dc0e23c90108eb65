# SPDX-License-Identifier: Apache-2.0
"""What a training says: JSON lines on disk, TensorBoard where installed, and a listener."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        step, steps: made and in all.
        stage: name of the stage.
        losses: their means since the last report.
        steps_per_s: of this run.
        left_s: seconds to the end of all steps at this speed.
    """

    step: int
    steps: int
    stage: str
    losses: Mapping[str, float]
    steps_per_s: float
    left_s: float


class Listener(Protocol):
    """Who watches a training."""

    def progress(self, state: Progress) -> None:
        """Called every few steps."""
        ...

    def say(self, line: str) -> None:
        """One remark: something was skipped, written, validated."""
        ...


class Silence:
    """A listener that does nothing."""

    def progress(self, state: Progress) -> None: ...

    def say(self, line: str) -> None: ...


class TrainingLog:
    """`log.jsonl` and TensorBoard's files in a folder; lines of an earlier run are kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / 'log.jsonl').open('a', encoding='utf-8')
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the extra `train` brings it; the lines are always there
            return
        self._board = SummaryWriter(str(folder / 'tensorboard'))

    def write(self, kind: str, step: int, values: Mapping[str, float], words: str = '') -> None:
        """One line: kind is train, val or event."""
        plain = {n: (v if math.isfinite(v) else None) for n, v in values.items()}
        row = {'kind': kind, 'step': step, 'time': round(time.time(), 1), **plain}
        print(json.dumps({**row, 'words': words} if words else row), file=self._file, flush=True)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f'{kind}/{name}', value, step)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class Means:
    """Means of named values since the last time they were taken."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, values: Mapping[str, float]) -> None:
        """One more of each."""
        for name, value in values.items():
            self._values[name].append(value)

    def take(self) -> dict[str, float]:
        """The means; begins anew. Values that are no number take no part."""
        found = {}
        for name, values in self._values.items():
            finite = [value for value in values if math.isfinite(value)]
            found[name] = sum(finite) / len(finite) if finite else math.nan
        self._values.clear()
        return found
