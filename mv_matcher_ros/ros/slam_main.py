# SPDX-License-Identifier: Apache-2.0
"""Entry point of odometry and mapping in one process: one torch in memory instead of two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mv_matcher_ros.ros.main import usage as usage_of_odometry
from mv_matcher_ros.ros.node_process import run_node


def usage() -> str:
    """What `--help` prints."""
    return (
        'Odometry and the mapping node in one process, as /odometry and /mapping; keyframes go '
        'from one to the other.\n'
        'Less memory than two processes, but both share one Python: on a machine with cores to '
        'spare two are faster.\n'
        '`-p NAME:=VALUE` is for both, `-p mapping:NAME:=VALUE` for one; see mapping_node --help.'
        '\n\n' + usage_of_odometry().replace('odometry_node', 'slam_node')
    )


def slam(arguments: Sequence[str] | None = None) -> int:
    """Run both nodes until SIGINT or SIGTERM; see `run_node`."""

    def make() -> Sequence[Any]:
        from rclpy.parameter import Parameter

        from mv_matcher_ros.ros.engine_node import OdometryNode
        from mv_matcher_ros.ros.mapping_node import MappingNode

        # The map first: it listens when the first keyframe is published.
        keyframes = ['--ros-args', '-r', 'keyframes:=odometry/keyframes']
        mapping = MappingNode(cli_args=keyframes)
        published = Parameter('ros.publish_keyframes', value=True)
        return [OdometryNode(parameter_overrides=[published]), mapping]

    return run_node('slam', usage, make, arguments)


if __name__ == '__main__':
    sys.exit(slam())
