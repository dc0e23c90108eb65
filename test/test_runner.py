# SPDX-License-Identifier: Apache-2.0
"""The loop source → engine → sinks: order, completeness, saving what there is on failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Camera, Estimate, Frame, Rig, Sensor, Status, Trajectory, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.runner import run


class CountedSource:
    """`count` frames; raises SourceError before frame `fail_at`."""

    name = 'counted'
    sensor: Sensor = 'mono'
    truth: Trajectory | None = None

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count, self.fail_at = count, fail_at
        self.rig = Rig((Camera(8, 8, (8.0, 8.0, 4.0, 4.0)),))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        for i in range(self.count):
            if i == self.fail_at:
                raise SourceError('frame broke')
            yield Frame(i, (View(np.zeros((8, 8), np.uint8)),), i)

    @property
    def faults(self) -> Mapping[str, int]:
        return {}


class EchoEngine:
    networks: Mapping[str, Mapping[str, str]] = {}

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at

    def process(self, frame: Frame) -> Estimate:
        if frame.index == self.fail_at:
            raise ZeroDivisionError('bug')
        return Estimate(frame.stamp_ns, Status.TRACKING)

    def reset(self) -> None:
        pass


class ListSink:
    def __init__(self, fail_at: int | None = None, fail_on_close: bool = False) -> None:
        self.seen: list[int] = []
        self.closed = 0
        self.fail_at, self.fail_on_close = fail_at, fail_on_close

    def write(self, frame: Frame, estimate: Estimate) -> None:
        if frame.index == self.fail_at:
            raise OSError('disk full')
        assert estimate.stamp_ns == frame.stamp_ns
        self.seen.append(frame.index)

    def close(self) -> None:
        self.closed += 1
        if self.fail_on_close:
            raise OSError('close failed')


def test_every_frame_reaches_every_sink_in_order() -> None:
    sinks = [ListSink(), ListSink()]
    run(CountedSource(4), EchoEngine(), sinks)
    assert [s.seen for s in sinks] == [[0, 1, 2, 3]] * 2
    assert [s.closed for s in sinks] == [1, 1]


def test_a_source_that_breaks_keeps_what_was_computed() -> None:
    sink = ListSink()
    with pytest.raises(SourceError, match='frame broke'):
        run(CountedSource(4, fail_at=2), EchoEngine(), [sink])
    assert (sink.seen, sink.closed) == ([0, 1], 1)


def test_sinks_are_closed_when_the_engine_raises() -> None:
    sink = ListSink()
    with pytest.raises(ZeroDivisionError):
        run(CountedSource(4), EchoEngine(fail_at=3), [sink])
    assert (sink.seen, sink.closed) == ([0, 1, 2], 1)


def test_all_sinks_are_closed_when_one_fails() -> None:
    sinks = [ListSink(), ListSink(fail_at=1), ListSink()]
    with pytest.raises(OSError, match='disk full'):
        run(CountedSource(4), EchoEngine(), sinks)
    assert [s.closed for s in sinks] == [1, 1, 1]
    sinks = [ListSink(), ListSink(fail_on_close=True), ListSink()]
    with pytest.raises(OSError, match='close failed'):
        run(CountedSource(2), EchoEngine(), sinks)
    assert [s.closed for s in sinks] == [1, 1, 1]


def test_an_empty_source_closes_its_sinks() -> None:
    sink = ListSink()
    run(CountedSource(0), EchoEngine(), [sink])
    assert (sink.seen, sink.closed) == ([], 1)
