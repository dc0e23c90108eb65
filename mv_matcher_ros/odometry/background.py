# SPDX-License-Identifier: Apache-2.0
"""Work beside the tracking.

Its result is used at a time of the recording, which is the same on any machine, or live: as soon
as it is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import torch

from mv_matcher_ros.config import Settings
from mv_matcher_ros.odometry.local_mapping import Begun, Mapped

Work = Callable[[], Mapped | None]


def limit_threads(settings: Settings) -> None:
    """Apply the settings of torch and OpenCV to the calling thread (OpenMP counts for each)."""
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    if settings.runtime.opencv_threads:
        cv2.setNumThreads(settings.runtime.opencv_threads)


class Background:
    """One keyframe at a time in a thread of its own.

    Args:
        settings: `keyframes.delay_s` after a keyframe its result is due.
        live: it is due when it is there instead.
    """

    def __init__(self, settings: Settings, live: bool = False) -> None:
        self._live = live
        self._delay_ns = round(settings.keyframes.delay_s * 1e9)
        self._pool = ThreadPoolExecutor(1, 'keyframe', limit_threads, (settings,))
        self._future: Future[tuple[Mapped | None, float]] | None = None
        self._begun: Begun | None = None
        self._stirred = threading.Event()  # something was handed over, or the work is done
        self._due_ns = 0

    @property
    def busy(self) -> bool:
        """Whether there is a result to come."""
        return self._future is not None

    def begin(self, stamp_ns: int, work: Work) -> None:
        """Start the work of the frame at `stamp_ns`; there must be none under way."""
        assert self._future is None
        self._begun = None
        self._stirred.clear()
        self._future = self._pool.submit(_timed, work)
        self._future.add_done_callback(lambda _: self._stirred.set())
        self._due_ns = stamp_ns + self._delay_ns

    def hand_over(self, begun: Begun) -> None:
        """For the work: a keyframe that can be followed already."""
        self._begun = begun
        self._stirred.set()

    def begun(self, wait: bool = False) -> Begun | None:
        """What was handed over since it was asked for last.

        With `wait` after something is, or the work is done.
        """
        if wait and self.busy:
            self._stirred.wait()
        begun, self._begun = self._begun, None
        return begun

    def due(self, stamp_ns: int) -> bool:
        """Whether the result is to be used from the frame at `stamp_ns` on."""
        if self._future is None:
            return False
        return self._future.done() if self._live else stamp_ns >= self._due_ns

    def result(self) -> tuple[Mapped | None, float]:
        """Wait for the result and the milliseconds the work took; raises what the work raised."""
        assert self._future is not None
        future, self._future = self._future, None
        found = future.result()
        self._begun = None
        return found

    def forget(self) -> Mapped | None:
        """Wait for the work, if any; its result is not used, and None if it failed."""
        future, self._future = self._future, None
        found = None if future is None or future.exception() else future.result()[0]
        self._begun = None
        return found


def _timed(work: Work) -> tuple[Mapped | None, float]:
    begin = time.perf_counter()
    mapped = work()
    return mapped, (time.perf_counter() - begin) * 1e3
