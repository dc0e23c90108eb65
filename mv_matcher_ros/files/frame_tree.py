# SPDX-License-Identifier: Apache-2.0
"""The tree of fixed frames that /tf_static describes."""

from __future__ import annotations

from collections import deque

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.files.rotations import inverse_transform


class FrameTree:
    """Fixed transforms between named frames; the leading slash of ROS 1 does not count."""

    def __init__(self) -> None:
        self._from: dict[str, dict[str, Array]] = {}

    def __contains__(self, frame: str) -> bool:
        return frame.lstrip('/') in self._from

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        return sorted(self._from)

    def add(self, parent: str, child: str, parent_from_child: Array) -> None:
        """Take the (4, 4) pose of `child` in `parent`; a later one replaces an earlier one."""
        parent, child = parent.lstrip('/'), child.lstrip('/')
        self._from.setdefault(parent, {})[child] = parent_from_child
        self._from.setdefault(child, {})[parent] = inverse_transform(parent_from_child)

    def lookup(self, target: str, source: str) -> Array | None:
        """(4, 4) `target_from_source`, or None when nothing connects the two."""
        target, source = target.lstrip('/'), source.lstrip('/')
        if target == source:
            return np.eye(4)
        waiting, seen = deque([(target, np.eye(4))]), {target}
        while waiting:
            frame, target_from_frame = waiting.popleft()
            for neighbour, frame_from_neighbour in self._from.get(frame, {}).items():
                if neighbour in seen:
                    continue
                target_from_neighbour = target_from_frame @ frame_from_neighbour
                if neighbour == source:
                    return target_from_neighbour
                seen.add(neighbour)
                waiting.append((neighbour, target_from_neighbour))
        return None
