# SPDX-License-Identifier: Apache-2.0
"""Work beside the tracking is used at a time of the recording, whatever the clock says."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.odometry.background import Background

SECOND = 1_000_000_000


def background(delay_s: float = 0.2) -> Background:
    return Background(read_settings({'keyframes.delay_s': delay_s}))


def test_a_result_is_due_by_stamp_even_if_it_is_there_long_before() -> None:
    beside = background()
    assert not beside.busy
    beside.begin(10 * SECOND, lambda: None)
    assert beside.busy
    assert not beside.due(10 * SECOND + SECOND // 10)
    assert beside.due(10 * SECOND + SECOND // 5)
    mapped, milliseconds = beside.result()
    assert mapped is None
    assert milliseconds >= 0.0
    assert not beside.busy
    assert not beside.due(20 * SECOND)


def test_live_a_result_is_due_when_it_is_there() -> None:
    go = threading.Event()
    beside = Background(read_settings(), live=True)

    def work() -> Any:
        go.wait(5.0)

    beside.begin(0, work)
    assert not beside.due(100 * SECOND)
    go.set()
    deadline = time.monotonic() + 5.0
    while not beside.due(1) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert beside.due(1)
    beside.result()
    assert not beside.due(100 * SECOND)


def test_whoever_asks_for_the_result_waits_for_it() -> None:
    go, seen = threading.Event(), []

    def work() -> Any:
        go.wait(5.0)
        seen.append(threading.current_thread() is threading.main_thread())

    beside = background()
    beside.begin(0, work)
    threading.Timer(0.05, go.set).start()
    beside.result()
    assert seen == [False]


def test_what_the_work_raises_is_raised_where_the_result_is_used() -> None:
    def work() -> Any:
        raise RuntimeError('the window is broken')

    beside = background()
    beside.begin(0, work)
    with pytest.raises(RuntimeError, match='the window is broken'):
        beside.result()
    beside.begin(0, work)
    beside.forget()  # a reset does not care
    assert not beside.busy


def test_what_is_handed_over_early_is_there_once_and_waited_for() -> None:
    beside = Background(read_settings(), live=True)
    begun, go_on = object(), threading.Event()

    def work() -> None:
        beside.hand_over(begun)
        assert go_on.wait(10.0)

    assert beside.begun(wait=True) is None  # nothing is at work
    beside.begin(0, work)
    assert beside.begun(wait=True) is begun
    assert beside.begun() is None
    go_on.set()
    assert beside.result()[0] is None
    beside.begin(0, lambda: None)
    assert beside.begun(wait=True) is None  # the work is done, and handed nothing over
    beside.result()
