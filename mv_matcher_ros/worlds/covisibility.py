# SPDX-License-Identifier: Apache-2.0
"""How much of one view another view sees, by their depths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.worlds.mipmaps import Floats

# A point is hidden where the other view's depth differs by more than this share.
DEPTH_SHARE = 0.05
# Points compared in each view: so many columns.
_COLUMNS = 80


def overlap_matrix(
    depths: Sequence[Floats], intrinsics: Array, world_from_camera: Array
) -> Floats:
    """(V, V) float32: entry [a, b] is the share of a's points with depth that b sees.

    Args:
        depths: V of (H, W) metres along the optical axis, 0 where unknown.
        intrinsics: (V, 3, 3) pinhole, pixels.
        world_from_camera: (V, 4, 4) metres.
    """
    count = len(depths)
    found = np.eye(count, dtype=np.float32)
    for a in range(count):
        for b in range(count):
            if a != b:
                found[a, b] = seen_share(
                    (depths[a], depths[b]), intrinsics[[a, b]], world_from_camera[[a, b]]
                )
    return found


def seen_share(depths: tuple[Floats, Floats], intrinsics: Array, poses: Array) -> float:
    """Share of the first view's points with depth that the second one sees; 0 without any.

    Args:
        depths: (H, W) metres each.
        intrinsics: (2, 3, 3).
        poses: (2, 4, 4) world_from_camera.
    """
    height, width = depths[0].shape
    step = max(1, width // _COLUMNS)
    rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    z = depths[0][rows, columns].astype(np.float64)
    known = z > 0
    if not known.any():
        return 0.0
    pixels = np.stack([columns[known], rows[known], np.ones(known.sum())], 1)
    points = (pixels @ np.linalg.inv(intrinsics[0]).T) * z[known, None]
    world = points @ poses[0][:3, :3].T + poses[0][:3, 3]
    local = (world - poses[1][:3, 3]) @ poses[1][:3, :3]
    ahead = local[:, 2] > 1e-3
    local = local[ahead]
    at = local @ intrinsics[1].T
    other_height, other_width = depths[1].shape
    x, y = (np.rint(at[:, i] / at[:, 2]) for i in (0, 1))
    inside = (x >= 0) & (x < other_width) & (y >= 0) & (y < other_height)
    there = depths[1][y[inside].astype(int), x[inside].astype(int)]
    agrees = np.abs(there - local[inside, 2]) < DEPTH_SHARE * local[inside, 2]
    return float(agrees.sum() / known.sum())
