# SPDX-License-Identifier: Apache-2.0
"""Stand-in for `message_filters`: subscribers and synchronisers by exact or approximate stamp."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


def _stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


class SimpleFilter:
    """Something that hands messages on to callbacks."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def registerCallback(self, cb: Callable[..., None], *args: Any) -> int:  # noqa: N802
        """Call `cb(*messages, *args)` for every output; returns the number of the connection."""
        self.callbacks[len(self.callbacks)] = (cb, args)
        return len(self.callbacks) - 1

    def signalMessage(self, *msg: Any) -> None:  # noqa: N802
        """Hand one output to every callback."""
        for callback, args in list(self.callbacks.values()):
            callback(*msg, *args)


class Subscriber(SimpleFilter):
    """A subscription as a filter: Subscriber(node, type, topic, qos_profile=…, …)."""

    def __init__(self, node: Any, msg_type: Any, topic: str, **kwargs: Any) -> None:
        super().__init__()
        kwargs.setdefault('qos_profile', 10)
        self.sub = node.create_subscription(msg_type, topic, self.signalMessage, **kwargs)


class TimeSynchronizer(SimpleFilter):
    """Hands on sets of messages, one of each filter, whose stamps are equal.

    Attributes:
        queues: for each input the waiting messages by stamp in nanoseconds; the oldest stamp
            leaves first.
    """

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.lock = threading.Lock()
        self.queues: list[dict[int, Any]] = [{} for _ in fs]
        for index, source in enumerate(fs):
            source.registerCallback(self.add, self.queues[index], index)

    def add(self, msg: Any, my_queue: dict[int, Any], my_queue_index: int) -> None:
        """Take one message and hand on the set that it completes."""
        stamp = _stamp_ns(msg)
        with self.lock:
            my_queue[stamp] = msg
            while len(my_queue) > self.queue_size:
                del my_queue[min(my_queue)]
            chosen = self._partners(stamp, my_queue_index)
            if chosen is None:
                return
            complete = [queue.pop(s) for queue, s in zip(self.queues, chosen, strict=True)]
        self.signalMessage(*complete)

    def _partners(self, stamp: int, index: int) -> list[int] | None:
        """Stamps, one for each queue, that belong to the message `stamp` of queue `index`."""
        return [stamp] * len(self.queues) if all(stamp in q for q in self.queues) else None


class ApproximateTimeSynchronizer(TimeSynchronizer):
    """The same for stamps less than `slop` seconds apart; the nearest partner is taken."""

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int, slop: float) -> None:
        super().__init__(fs, queue_size)
        self.slop = round(slop * 1e9)

    def _partners(self, stamp: int, index: int) -> list[int] | None:
        if not all(self.queues):
            return None
        chosen = [min(queue, key=lambda other: abs(other - stamp)) for queue in self.queues]
        chosen[index] = stamp
        return chosen if max(chosen) - min(chosen) < max(self.slop, 1) else None
