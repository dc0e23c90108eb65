# SPDX-License-Identifier: Apache-2.0
"""What the fault suite is made of: a recording in memory, a fault, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Estimate, Frame, Rig, Sensor, Status, Trajectory
from mv_matcher_ros.errors import EvaluationError, MvMatcherError
from mv_matcher_ros.evaluation.evaluation_result import FittedAlignment
from mv_matcher_ros.evaluation.run_evaluation import evaluate_trajectory
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.runner import Source


@dataclass
class Clip:
    """A short recording in memory; satisfies `runner.Source`."""

    name: str
    sensor: Sensor
    rig: Rig
    frames: tuple[Frame, ...]
    truth: Trajectory | None
    faults: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def with_frames(self, change: Callable[[int, Frame], Frame | None]) -> Clip:
        """The clip with every frame changed, or left out where `change` returns None."""
        changed = (change(i, frame) for i, frame in enumerate(self.frames))
        return replace(self, frames=tuple(frame for frame in changed if frame is not None))

    @staticmethod
    def of(source: Source) -> Clip:
        """All frames of `source`."""
        return Clip(source.name, source.sensor, source.rig, tuple(source), source.truth)


@dataclass(frozen=True)
class Fault:
    """One fault: `apply` makes and reads the faulty recording and says what came of it.

    Attributes:
        name: as the table calls it.
        expected: in words.
        apply: gets the clip and an empty folder to work in.
    """

    name: str
    expected: str
    apply: Callable[[Clip, Path, Settings], Outcome]


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: in words, and whether that is what is expected."""

    observed: str
    passed: bool


@dataclass(frozen=True)
class Drive:
    """What the engine said about a recording.

    Attributes:
        estimates: one a frame that was processed.
        error: the input error that ended it, or empty.
        faults: those of the source.
        truth: of the source.
    """

    estimates: tuple[Estimate, ...]
    error: str
    faults: Mapping[str, int]
    truth: Trajectory | None

    @property
    def messages(self) -> Counter[str]:
        """How often each message was given."""
        return Counter(e.message for e in self.estimates if e.message)

    @property
    def statuses(self) -> Counter[Status]:
        """How often each status was given."""
        return Counter(e.status for e in self.estimates)

    @property
    def largest_step_m(self) -> float:
        """Largest distance of two poses published one after the other."""
        poses = [e.odom_from_body for e in self.estimates if e.odom_from_body is not None]
        steps = [float(np.linalg.norm(b[:3, 3] - a[:3, 3])) for a, b in pairwise(poses)]
        return max(steps, default=0.0)

    def error_of_path(self, align: FittedAlignment, without: range) -> float | None:
        """ATE as a share of the path, frames `without` left out; None where it cannot be said."""
        known = [
            (e.stamp_ns, e.odom_from_body)
            for i, e in enumerate(self.estimates)
            if e.odom_from_body is not None and i not in without
        ]
        if self.truth is None or len(known) < 3:
            return None
        poses: Array = np.stack([pose for _, pose in known])
        estimate = Trajectory(np.array([stamp for stamp, _ in known], dtype=np.int64), poses)
        try:
            result = evaluate_trajectory(
                estimate, self.truth, 'sim3' if align == 'sim3' else 'se3'
            )
        except EvaluationError:
            return None
        return result.ate.translation_m.rmse / result.path_m if result.path_m > 0 else None


def drive(source: Source, settings: Settings) -> Drive:
    """Run the engine over `source`; errors of the input end it and are kept."""
    estimates: list[Estimate] = []
    error = ''
    try:
        engine = OdometryEngine(settings.model_copy(update={'sensor': source.sensor}), source.rig)
        for frame in source:
            estimates.append(engine.process(frame))
    except MvMatcherError as raised:
        error = ' '.join(str(raised).split())
    return Drive(tuple(estimates), error, dict(source.faults), source.truth)


def names(text: str, words: Sequence[str]) -> bool:
    """Whether a message says what is wrong: one of `words` stands in it."""
    return any(word in text.lower() for word in words)
