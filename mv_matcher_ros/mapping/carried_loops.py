# SPDX-License-Identifier: Apache-2.0
"""Loops of keyframes that have gone, as their neighbours have them.

A loop a_from_b and the odometry to neighbours a' and b' make a'_from_b', and its covariance is the
sum of all three seen from b'. That counts the odometry in between twice, in the chain and here; it
is a few steps, and keeping the tightest of the loops between two keyframes takes far more away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.mapping.loop_cycles import Link
from mv_matcher_ros.mapping.odometry_chain import Indices, OdometryChain


def carried(chain: OdometryChain, links: Sequence[Link], kept: Indices) -> list[Link]:
    """One link for each pair of keyframes that stay and that loops tie.

    Args:
        chain: odometry.
        links: loops.
        kept: (K,) numbers of the keyframes that stay, increasing. Loops of a segment without any
            are lost.

    Returns:
        links in the order of the loops; `Link.loop` is the one that was carried.
    """
    if not links or not len(kept):
        return []
    algebra = chain.algebra
    a, b = np.array([x.a for x in links]), np.array([x.b for x in links])
    to_a, to_b = _nearest(chain, a, kept), _nearest(chain, b, kept)
    tied = np.flatnonzero((to_a >= 0) & (to_b >= 0) & (to_a != to_b))
    a, b, to_a, to_b = a[tied], b[tied], to_a[tied], to_b[tied]
    measured = np.stack([x.a_from_b for x in links])[tied]
    spread = np.stack([x.covariance for x in links])[tied]
    before, before_spread = chain.relative(to_a, a)
    after, after_spread = chain.relative(b, to_b)
    back = algebra.adjoint(algebra.inverse(np.stack([measured @ after, after])))
    covariance = (
        back[0] @ before_spread @ np.swapaxes(back[0], 1, 2)
        + back[1] @ spread @ np.swapaxes(back[1], 1, 2)
        + after_spread
    )
    pose = before @ measured @ after
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for row, ends in enumerate(zip(to_a.tolist(), to_b.tolist(), strict=True)):
        pair = (min(ends), max(ends))
        best[pair] = min(best.get(pair, (np.inf, -1)), (chain.size_of(covariance[row]), row))
    rows = sorted(row for _, row in best.values())
    return [
        Link(int(to_a[n]), int(to_b[n]), pose[n], covariance[n], links[tied[n]].loop) for n in rows
    ]


def _nearest(chain: OdometryChain, numbers: Indices, kept: Indices) -> NDArray[np.int64]:
    """(K,) the kept keyframe with the least odometry in between; −1 where a segment has none."""
    segment, along = np.array(chain.segment), chain.lengths()
    place = np.searchsorted(kept, numbers)
    either = np.stack([kept[np.maximum(place - 1, 0)], kept[np.minimum(place, len(kept) - 1)]])
    far = np.abs(along[either] - along[numbers])
    far[segment[either] != segment[numbers]] = np.inf
    nearest = far.argmin(0)
    columns = np.arange(len(numbers))
    return np.where(np.isinf(far[nearest, columns]), -1, either[nearest, columns])
