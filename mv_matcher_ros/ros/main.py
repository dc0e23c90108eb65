# SPDX-License-Identifier: Apache-2.0
"""Entry points of the nodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mv_matcher_ros.config import leaves
from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.inputs import TOPICS
from mv_matcher_ros.ros.stopping import init, spin_until

OUTPUTS = ('odometry', '/tf', 'path', '~/landmarks', '~/tracks', '~/state', '/diagnostics')
_SHOWN = (
    'sensor',
    'ros.image_transport',
    'ros.sync_slop_s',
    'ros.extrinsics_from_tf',
    'ros.frames.body',
    'ros.lossless',
    'detector.max_keypoints',
    'detector.working_pixels',
    'runtime.threads',
)


def usage() -> str:
    """What `--help` prints: topics in and out, the parameters one meets first."""
    known = dict(leaves())
    inputs = (
        f'  {sensor:<7} {" ".join((*images, *infos))}'
        for sensor, (images, infos) in TOPICS.items()
    )
    shown = (
        f'  {name} (default {str(known[name].default).lower()})\n      {known[name].description}'
        for name in _SHOWN
    )
    return '\n'.join(
        (
            'Live visual odometry: images in, odometry out.',
            '',
            'usage: odometry_node --ros-args -p NAME:=VALUE -r TOPIC:=TOPIC --params-file FILE',
            'e.g.:  odometry_node --ros-args -p sensor:=mono'
            ' -r image:=/camera/image_raw -r camera_info:=/camera/camera_info',
            '',
            'topics in, by sensor:',
            *inputs,
            '',
            f'topics out: {" ".join(OUTPUTS)}',
            'services:   ~/reset ~/adapt',
            '',
            'parameters, those one meets first:',
            *shown,
            '',
            'all parameters: mv-matcher settings',
            '',
        )
    )


def odometry(arguments: Sequence[str] | None = None) -> int:
    """Run the odometry node until SIGINT or SIGTERM.

    Args:
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

        from mv_matcher_ros.ros.engine_node import OdometryNode
    except ModuleNotFoundError as error:
        if error.name != 'rclpy':
            raise
        print(MissingDependencyError('rclpy', 'ros', 'the odometry node'), file=sys.stderr)
        return 2
    # The first word is taken for the program's name, and given back.
    unknown = remove_ros_args(['odometry_node', *words])[1:]
    if unknown:
        print(
            f'odometry: unknown argument "{unknown[0]}": parameters and remappings stand behind '
            '--ros-args, e.g. --ros-args -p sensor:=mono; see --help',
            file=sys.stderr,
        )
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
