# SPDX-License-Identifier: Apache-2.0
"""What changed in a pose graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.loops import Loop


@dataclass(frozen=True)
class GraphUpdate:
    """What an update changed.

    Attributes:
        optimised: loops were worked in; otherwise nothing moved.
        keys: (M,) keyframes that moved.
        old, old_scale: (M, 4, 4) their rigid map_from_body before, and (M,) scales.
        new, new_scale: after; scales are ones in a metric graph.
        taken, dropped: loops that are believed, or no more, since the last update.
    """

    optimised: bool
    keys: NDArray[np.int64]
    old: Array
    old_scale: Array
    new: Array
    new_scale: Array
    taken: tuple[Loop, ...] = ()
    dropped: tuple[Loop, ...] = ()


def moved_enough(old: Array, new: Array, settings: PoseGraphSettings) -> NDArray[np.bool_]:
    """(N,) whether keyframes moved, turned or grew by what is worth reporting.

    Args:
        old, new: (N, 4, 4) [[s R, t], [0, 1]].
        settings: how much that is.
    """
    far = np.linalg.norm(new[:, :3, 3] - old[:, :3, 3], axis=1) > settings.moved
    size = np.linalg.norm(old[:, :3, :3], axis=(1, 2))  # sqrt 3 s
    grown = np.abs(np.linalg.norm(new[:, :3, :3], axis=(1, 2)) / size - 1.0) > settings.moved
    # |R - R'| = 2 sqrt 2 sin(angle / 2), the norm being Frobenius'
    apart = np.linalg.norm(new[:, :3, :3] - old[:, :3, :3], axis=(1, 2)) / size
    turned = apart > np.sqrt(8.0 / 3.0) * np.sin(np.radians(settings.turned_deg) / 2.0)
    return np.asarray(far | turned | grown)
