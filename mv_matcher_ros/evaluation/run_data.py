# SPDX-License-Identifier: Apache-2.0
"""A run folder in memory, as the evaluation and the report need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Trajectory


@dataclass(frozen=True)
class RunData:
    """What one run left behind.

    Attributes:
        folder: the run folder, or the trajectory file if there is nothing else.
        trajectory: odom_from_body of the frames with a pose; may be empty.
        stamps_ns: (F,) every processed frame; empty if unknown.
        status: F names of `Status`.
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
    keyframe: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    messages: tuple[str, ...] = ()
    counts: Mapping[str, Array] = field(default_factory=dict)
    latency_ms: Mapping[str, Array] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_frames(self) -> bool:
        """Whether the list of all processed frames is known."""
        return len(self.stamps_ns) > 0

    @property
    def name(self) -> str:
        """Of the recording, or of the folder."""
        return str(self.info.get('source') or self.folder.name)

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


def load_run(run_dir):  # stub
    raise NotImplementedError
