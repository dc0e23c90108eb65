# SPDX-License-Identifier: Apache-2.0
"""Decoding ahead changes nothing but the time it takes, and leaves no thread behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Frame
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.bag import write_bag
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.prefetch import Prefetched
from mv_matcher_ros.runner import Source

Make = Callable[..., Any]


def threads() -> int:
    return sum(thread.name == 'mv-matcher-prefetch' for thread in threading.enumerate())


class Watched:
    """A source that says how far it got, whether it was closed, and fails where told."""

    def __init__(self, inner: Source, fail_at: int | None = None) -> None:
        self.name, self.sensor, self.rig, self.truth = (
            inner.name,
            inner.sensor,
            inner.rig,
            inner.truth,
        )
        self.inner, self.fail_at = inner, fail_at
        self.taken = 0
        self.closed = False

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def faults(self) -> dict[str, int]:
        return {'taken': self.taken}

    def __iter__(self) -> Iterator[Frame]:
        self.taken, self.closed = 0, False
        try:
            for frame in self.inner:
                if self.taken == self.fail_at:
                    raise SourceError('torn cable')
                self.taken += 1
                yield frame
        finally:
            self.closed = True


@pytest.mark.parametrize('depth', [1, 3, 100])
def test_same_frames_in_the_same_order(make_source: Make, depth: int) -> None:
    source = make_source('stereo', count=20)
    ahead = Prefetched(source, depth)
    for _ in range(2):  # iterating again starts again
        assert list(ahead) == source.frames
    assert (len(ahead), ahead.name, ahead.rig) == (20, source.name, source.rig)
    assert threads() == 0


def test_errors_come_after_the_frames_before_them(make_source: Make) -> None:
    source = make_source(count=20)
    seen: list[Frame] = []
    with pytest.raises(SourceError, match='torn cable'):
        seen.extend(Prefetched(Watched(source, fail_at=7), depth=3))
    assert seen == source.frames[:7]
    assert threads() == 0


def test_stopping_early_closes_the_source(make_source: Make) -> None:
    watched = Watched(make_source(count=200))
    frames = iter(Prefetched(watched, depth=4))
    for _ in range(3):
        next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert watched.closed
    assert threads() == 0
    # Three were handed out and four may wait; one more slot opens when the consumer leaves.
    assert watched.taken <= 3 + 4 + 1


def test_no_more_than_depth_is_decoded_ahead(make_source: Make) -> None:
    watched = Watched(make_source(count=50))
    frames = iter(Prefetched(watched, depth=2))
    next(frames)
    deadline = time.monotonic() + 5
    while watched.taken < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert watched.taken == 3
    frames.close()  # type: ignore[attr-defined]


def test_decoding_really_runs_ahead(make_source: Make) -> None:
    """While the consumer holds the first frame, the next ones are decoded by another thread."""
    watched = Watched(make_source(count=5))
    frames = iter(Prefetched(watched, depth=4))
    next(frames)
    deadline = time.monotonic() + 5
    while watched.taken < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert watched.taken == 5
    frames.close()  # type: ignore[attr-defined]


def test_faults_are_those_of_the_frames_handed_out(make_source: Make) -> None:
    ahead = Prefetched(Watched(make_source(count=10)), depth=10)
    for count, _ in enumerate(ahead, start=1):
        assert ahead.faults == {'taken': count}
    assert ahead.faults == {'taken': 10}


def test_bag_in_another_thread(tmp_path: Path, make_source: Make) -> None:
    """Files of a bag are opened and closed in the thread that reads them."""
    source = make_source('rgbd', count=10)
    for storage in ('mcap', 'sqlite3'):
        write_bag(tmp_path / storage, source, storage=storage)  # type: ignore[arg-type]
        for frame, other in zip(source, Prefetched(open_source(tmp_path / storage)), strict=True):
            np.testing.assert_array_equal(frame.views[0].image, other.views[0].image)
        frames = iter(Prefetched(open_source(tmp_path / storage)))
        next(frames)
        frames.close()  # type: ignore[attr-defined]
    assert threads() == 0


def test_depth_must_be_positive(make_source: Make) -> None:
    with pytest.raises(SourceError, match='depth 0'):
        Prefetched(make_source(), 0)
