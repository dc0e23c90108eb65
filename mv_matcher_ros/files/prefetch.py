# SPDX-License-Identifier: Apache-2.0
"""Decoding ahead in a thread while the engine computes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from mv_matcher_ros.datatypes import Frame
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.runner import Source


@dataclass(frozen=True)
class _End:
    """The source has ended, or failed with `error`."""

    error: BaseException | None
    faults: Mapping[str, int]


class Prefetched:
    """A source whose frames are decoded ahead by one thread, the same frames in the same order.

    Args:
        source: any source; it is iterated in the other thread.
        depth: most frames waiting, at least 1.

    Raises:
        SourceError: `depth` is not positive.
    """

    def __init__(self, source: Source, depth: int = 4) -> None:
        if depth < 1:
            raise SourceError(f'{source.name}: prefetch depth {depth} is not at least 1')
        self.name = source.name
        self.sensor = source.sensor
        self.rig = source.rig
        self.truth = source.truth
        self._source = source
        self._depth = depth
        self._faults: Mapping[str, int] = source.faults

    def __len__(self) -> int:
        return len(self._source)

    @property
    def faults(self) -> Mapping[str, int]:
        """Faults met up to the frame handed out last, not up to the frame decoded last."""
        return self._faults

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order; what the source raises is raised here, after the frames before it."""
        ready: SimpleQueue[tuple[Frame, Mapping[str, int]] | _End] = SimpleQueue()
        slots = threading.Semaphore(self._depth)
        stop = threading.Event()

        def decode() -> None:
            error: BaseException | None = None
            try:
                frames = iter(self._source)
                # A slot is taken before a frame is decoded: no more than `depth` are ever held.
                while slots.acquire() and not stop.is_set():
                    frame = next(frames, None)
                    if frame is None:
                        break
                    ready.put((frame, dict(self._source.faults)))
                if isinstance(
                    frames, Generator
                ):  # files are closed in the thread that opened them
                    frames.close()
            except BaseException as raised:
                error = raised
            ready.put(_End(error, dict(self._source.faults)))

        thread = threading.Thread(target=decode, name='mv-matcher-prefetch', daemon=True)
        thread.start()
        try:
            while not isinstance(item := ready.get(), _End):
                slots.release()
                frame, self._faults = item
                yield frame
            self._faults = item.faults
            if item.error is not None:
                raise item.error
        finally:
            stop.set()
            slots.release()
            thread.join()
