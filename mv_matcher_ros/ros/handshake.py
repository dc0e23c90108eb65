# SPDX-License-Identifier: Apache-2.0
"""When is it sure that nothing of what the node publishes is missed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Handshake:
    """Knows when the odometry node reaches every reader that was made before this object.

    A reader that found its writer may still be unknown to it, and what is then written is lost.
    But a participant hears of another's readers in the order they were made: once diagnostics
    arrive, which are published every second, the readers made before get their messages too.

    Args:
        node: rclpy node that owns the readers.
        state_topic: of the odometry node, which is found by it.
        reached: called once when it is sure.

    Attributes:
        is_sure: nothing is missed from now on.
        said: how the node fares, by its latest diagnostics; empty before the first.
    """

    def __init__(self, node: Any, state_topic: str, reached: Callable[[], None]) -> None:
        from diagnostic_msgs.msg import DiagnosticArray

        self.is_sure = False
        self.said = ''
        self._reached = reached
        self._name = f'{node.resolve_topic_name(state_topic).rsplit("/", 1)[0]}: odometry'
        node.create_subscription(DiagnosticArray, '/diagnostics', self._take, 10)

    def _take(self, message: Any) -> None:
        words = [status.message for status in message.status if status.name == self._name]
        if not words:
            return
        self.said = words[-1]
        if not self.is_sure:
            self.is_sure = True
            self._reached()
