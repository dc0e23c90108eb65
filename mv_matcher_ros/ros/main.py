# SPDX-License-Identifier: Apache-2.0
"""Entry point of the odometry node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mv_matcher_ros.config import leaves
from mv_matcher_ros.ros.inputs import TOPICS
from mv_matcher_ros.ros.node_process import run_node

OUTPUTS = (
    'odometry', '/tf', 'path', '~/landmarks', '~/keyframe_poses', '~/tracks', '~/state',
    '~/latency', '/diagnostics',
)  # fmt: skip
_SHOWN = (
    'sensor',
    'stereo.pairs',
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
            '            with ros.publish_keyframes ~/keyframes, for a mapping node',
            'services:   ~/reset ~/pause ~/resume ~/adapt',
            '            ~/change_state ~/get_state, waited for with ros.autostart:=false',
            '',
            'parameters, those one meets first:',
            *shown,
            '',
            'all parameters: mv-matcher settings',
            '',
        )
    )


def odometry(arguments: Sequence[str] | None = None) -> int:
    """Run the odometry node until SIGINT or SIGTERM; see `run_node`."""

    def make() -> Sequence[Any]:
        from mv_matcher_ros.ros.engine_node import OdometryNode

        return [OdometryNode()]

    return run_node('odometry', usage, make, arguments)


if __name__ == '__main__':
    sys.exit(odometry())
