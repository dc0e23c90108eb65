# SPDX-License-Identifier: Apache-2.0
"""Entry points of the nodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.stopping import init, spin_until


def odometry(arguments: Sequence[str] | None = None) -> int:
    """Run the odometry node until SIGINT or SIGTERM.

    Args:
        arguments: command line with ROS arguments; default `sys.argv`.

    Returns:
        Exit code: 0 after a signal, 1 after a failure while running, 2 for wrong parameters.
    """
    apply_profile()
    try:
        import rclpy

        from mv_matcher_ros.ros.engine_node import OdometryNode
    except ModuleNotFoundError as error:
        if error.name != 'rclpy':
            raise
        print(MissingDependencyError('rclpy', 'ros', 'the odometry node'), file=sys.stderr)
        return 2
    stop = init(arguments)
    try:
        node = OdometryNode()
    except MvMatcherError as error:
        print(f'odometry: {error}', file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    try:
        spin_until(node, lambda: stop.made)
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    if node.failure is None:
        return 0
    return 2 if isinstance(node.failure, MvMatcherError) else 1


if __name__ == '__main__':
    sys.exit(odometry())
