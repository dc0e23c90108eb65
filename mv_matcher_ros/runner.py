# SPDX-License-Identifier: Apache-2.0
"""The one loop behind replay, data sets and evaluation: source → engine → sinks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from mv_matcher_ros.datatypes import Estimate, Frame, Rig, Sensor, Trajectory


class Source(Protocol):
    """A recording: frames in order of time, every one of them, and what is known of the cameras.

    Iterating again starts again. A fault that makes going on impossible raises `SourceError` or
    `CalibrationError` from the constructor or the iterator.
    """

    @property
    def name(self) -> str:
        """What messages call the recording."""

    @property
    def sensor(self) -> Sensor:
        """How the views of its frames are to be read."""

    @property
    def rig(self) -> Rig:
        """Its cameras."""

    @property
    def truth(self) -> Trajectory | None:
        """True poses of the body, None where nobody knows them."""

    @property
    def faults(self) -> Mapping[str, int]:
        """What was skipped or repaired while iterating, e.g. {'unreadable image skipped': 2}."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Frame]: ...


class Engine(Protocol):
    """Anything that turns frames into estimates, one call a frame."""

    @property
    def networks(self) -> Mapping[str, Mapping[str, str]]:
        """The networks that it runs by their part: place, file of weights, hash; often none."""

    def process(self, frame: Frame) -> Estimate: ...
    def reset(self) -> None: ...


class Sink(Protocol):
    """Takes each frame with its estimate; `close` is called once, also after a failure."""

    def write(self, frame: Frame, estimate: Estimate) -> None: ...
    def close(self) -> None: ...


def run(source: Source, engine: Engine, sinks: Sequence[Sink]) -> None:
    """Feed every frame of `source` to `engine` and hand the estimates to `sinks`.

    Sinks are closed whatever happens, so what was computed before a failure is saved.
    """
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        for frame in source:
            estimate = engine.process(frame)
            for sink in sinks:
                sink.write(frame, estimate)
