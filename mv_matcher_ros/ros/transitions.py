# SPDX-License-Identifier: Apache-2.0
"""Transitions of a lifecycle node that say what went wrong: rclpy swallows what they raise."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from mv_matcher_ros.errors import MvMatcherError

Node = TypeVar('Node', bound=Any)
_Transition = Callable[[Node, LifecycleState], TransitionCallbackReturn]


def said(transition: _Transition[Node]) -> _Transition[Node]:
    """`transition`, whose errors are logged: one of this package as a sentence, and FAILURE;
    any other with where it came from, and ERROR."""

    @functools.wraps(transition)
    def run(node: Node, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except MvMatcherError as error:
            node.get_logger().error(f'{transition.__name__}: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy answers ERROR, too, but keeps to itself what it was
            node.get_logger().error(f'{transition.__name__}: {traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR

    return run
