# SPDX-License-Identifier: Apache-2.0
"""What changed in a pose graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.pose_algebra import split_scale


@dataclass(frozen=True)
class GraphUpdate:
    """What an update changed.

    Attributes:
        optimised: loops were worked in; otherwise nothing moved.
        keys: (M,) keyframes that moved.
        old, new: (M, 4, 4) their rigid map_from_body before and after.
        old_scale, new_scale: (M,) ones in a metric graph.
        taken, dropped: loops that are believed, or no more, since the last update.
    """

    optimised: bool
    keys: NDArray[np.int64]
    old: Array
    new: Array
    old_scale: Array
    new_scale: Array
    taken: tuple[Loop, ...] = ()
    dropped: tuple[Loop, ...] = ()


def moved_enough(old: Array, new: Array, settings: PoseGraphSettings) -> NDArray[np.bool_]:
    """(N,) whether keyframes moved or turned by what is worth reporting."""
    far = np.linalg.norm(new[:, :3, 3] - old[:, :3, 3], axis=1) > settings.moved
    (before, scale_before), (after, scale_after) = split_scale(old), split_scale(new)
    # |R - R'|_F = 2 sqrt 2 sin(angle / 2)
    apart = np.linalg.norm(after[:, :3, :3] - before[:, :3, :3], axis=(1, 2)) / np.sqrt(2.0)
    turned = apart > 2.0 * np.sin(np.radians(settings.turned_deg) / 2.0)
    grown = np.abs(scale_after - scale_before) > settings.moved * scale_before
    return np.asarray(far | turned | grown)
