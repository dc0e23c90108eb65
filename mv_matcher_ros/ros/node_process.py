# SPDX-License-Identifier: Apache-2.0
"""Nodes as a process: arguments, signals, exit code."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.stopping import init, spin_until


def run_node(
    name: str,
    usage: Callable[[], str],
    make: Callable[[], Sequence[Any]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a node, or several, until SIGINT or SIGTERM.

    Each has an executor and a thread of its own: what one of them waits for holds no other up.

    Args:
        name: for messages.
        usage: what `--help` prints.
        make: makes the nodes, importing what they need; they have `close` and `failure`.
        arguments: command line with ROS arguments; default `sys.argv`.

    Returns:
        Exit code: 0 after a signal or `--help`, 1 after a failure while running, 2 for wrong
        parameters.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if '-h' in words or '--help' in words:
        print(usage(), end='')
        return 0
    apply_profile()
    try:
        import rclpy
        from rclpy.utilities import remove_ros_args
    except ModuleNotFoundError as error:
        if error.name != 'rclpy':
            raise
        print(MissingDependencyError('rclpy', 'ros', f'the {name} node'), file=sys.stderr)
        return 2
    # The first word is taken for the program's name, and given back.
    unknown = remove_ros_args([f'{name}_node', *words])[1:]
    if unknown:
        print(
            f'{name}: unknown argument "{unknown[0]}": parameters and remappings stand behind '
            '--ros-args, e.g. --ros-args -p sensor:=mono; see --help',
            file=sys.stderr,
        )
        return 2
    stop = init(arguments)
    try:
        nodes = make()
    except MvMatcherError as error:
        print(f'{name}: {error}', file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    others = [threading.Thread(target=_spin, args=(node, stop.is_made)) for node in nodes[1:]]
    for thread in others:
        thread.start()
    _spin(nodes[0], stop.is_made)
    for node in nodes:
        _guarded(node, node.close)
    for thread in others:
        thread.join()
    for node in nodes:
        _guarded(node, node.destroy_node)
    rclpy.try_shutdown()
    failures = [node.failure for node in nodes if node.failure is not None]
    if not failures:
        return 0
    return 2 if isinstance(failures[0], MvMatcherError) else 1


def _spin(node: Any, over: Callable[[], bool]) -> None:
    """Spin a node; with an error of its callbacks the process ends, and so do the other nodes."""
    if not _guarded(node, lambda: spin_until(node, over)):
        node.context.try_shutdown()


def _guarded(node: Any, work: Callable[[], None]) -> bool:
    """Whether it was done; an error is logged and kept as the failure of the node."""
    try:
        work()
    except Exception as error:  # kept: the exit code of the process
        node.failure = node.failure or error
        node.get_logger().fatal(traceback.format_exc())
        return False
    return True
