# SPDX-License-Identifier: Apache-2.0
"""Where callbacks leave what the worker takes: one slot for the newest, or a queue in order."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar('T')


class Mailbox(Generic[T]):
    """Hands items from one thread to another; `put` never blocks.

    Args:
        capacity: items kept; beyond it the oldest one is dropped and counted.

    Attributes:
        dropped: items that were never taken.
    """

    def __init__(self, capacity: int = 1) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0

    def put(self, item: T) -> T | None:
        """Leave an item; returns the one that was dropped for it, if any."""
        with self._changed:
            lost = self._items.popleft() if len(self._items) >= self._capacity else None
            self.dropped += lost is not None
            self._items.append(item)
            self._changed.notify()
        return lost

    def take(self, timeout_s: float) -> T | None:
        """The oldest item; None if there is none for `timeout_s` seconds, or after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout_s)
            if self._closed or not self._items:
                return None
            return self._items.popleft()

    def close(self) -> None:
        """Wake whoever waits in `take`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._items)
