# SPDX-License-Identifier: Apache-2.0
"""Entry point of the mapping node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mv_matcher_ros.config import leaves
from mv_matcher_ros.ros.node_process import run_node

_SHOWN = (
    'mapping.folder',
    'mapping.grow',
    'mapping.save_every_s',
    'ros.frames.map',
    'runtime.threads',
)


def usage() -> str:
    """What `--help` prints."""
    known = dict(leaves())
    shown = (
        f'  {name} (default {str(known[name].default).lower() or "empty"})\n'
        f'      {known[name].description}'
        for name in _SHOWN
    )
    return '\n'.join(
        (
            'A map of what the odometry sees: loops closed, places recognised, map -> odom.',
            '',
            'usage: mapping_node --ros-args -r keyframes:=/odometry/keyframes'
            ' -p mapping.folder:=FOLDER',
            'The odometry node needs ros.publish_keyframes, and the same detector.',
            '',
            'topics in:  keyframes initialpose',
            'topics out: /tf map_path ~/landmarks ~/loops ~/state /diagnostics',
            'services:   ~/save_map ~/load_map ~/reset',
            '',
            'parameters, those one meets first:',
            *shown,
            '',
            'all parameters: mv-matcher settings',
            '',
        )
    )


def mapping(arguments: Sequence[str] | None = None) -> int:
    """Run the mapping node until SIGINT or SIGTERM; see `run_node`."""

    def make() -> Sequence[Any]:
        from mv_matcher_ros.ros.mapping_node import MappingNode

        return [MappingNode()]

    return run_node('mapping', usage, make, arguments)


if __name__ == '__main__':
    sys.exit(mapping())
