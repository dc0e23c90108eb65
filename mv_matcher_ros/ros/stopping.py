# SPDX-License-Identifier: Apache-2.0
"""Ending a process by SIGINT or SIGTERM between two callbacks, never in the middle of one.

rclpy's own handlers shut the context down under a running wait, which then ends in whatever error
comes first ("context is not valid"); Python's raises KeyboardInterrupt anywhere, a second one even
while files are closed. `ros2 launch` sends two SIGINTs: one from the terminal, one of its own; the
second may find a process that takes itself apart, where Python has put the default action back.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Sequence
from typing import Any

_POLL_S = 0.2  # a signal does not end a wait of the middleware
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Takes SIGINT and SIGTERM over from rclpy and Python.

    Attributes:
        made: whether one of them has come.
    """

    def __init__(self) -> None:
        self.made = False
        for number in _SIGNALS:
            signal.signal(number, self._take)

    def is_made(self) -> bool:
        """Whether one of them has come."""
        return self.made

    def _take(self, number: int, frame: object) -> None:
        self.made = True


def init(arguments: Sequence[str] | None) -> StopRequest:
    """`rclpy.init`, with the signals left to the `StopRequest` that is returned."""
    init_without_signals(arguments)
    return StopRequest()


def init_without_signals(arguments: Sequence[str] | None) -> None:
    """`rclpy.init` that leaves SIGINT and SIGTERM as they are."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    given = None if arguments is None else list(arguments)
    rclpy.init(args=given, signal_handler_options=SignalHandlerOptions.NO)
    atexit.register(_ignore_signals)


def _ignore_signals() -> None:
    """The process ends anyway, with the exit code that it has."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def spin_until(node: Any, over: Callable[[], bool]) -> None:
    """Spin `node` until `over()` holds or the context is shut down, e.g. by another thread."""
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        while node.context.ok() and not over():
            executor.spin_once(timeout_sec=_POLL_S)
    except (ExternalShutdownException, RuntimeError):
        # What a wait raises when it is overtaken by a shutdown depends on where it was.
        if node.context.ok():
            raise
    finally:
        executor.remove_node(node)
