# SPDX-License-Identifier: Apache-2.0
"""How well keyframes are known, also those that the optimiser does not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.hubs import Hubs

Joint = Callable[[Sequence[int]], Array]


def covariance_of(hubs: Hubs, joint: Joint, size: int, k: int) -> Array:
    """(n, n) covariance of a keyframe.

    Args:
        hubs: of the graph.
        joint: gives the (K n, K n) covariance of hubs by number.
        size: n, 6 or 7.
        k: number of the keyframe.
    """
    moves, rest = _moves(hubs, size, k)
    stacked = np.hstack(list(moves.values()))
    return np.asarray(stacked @ joint(list(moves)) @ stacked.T + rest)


def joint_covariance(hubs: Hubs, joint: Joint, size: int, i: int, j: int) -> Array:
    """(2 n, 2 n) covariance of two keyframes, i before j; arguments as of `covariance_of`."""
    moves_i, rest_i = _moves(hubs, size, i)
    moves_j, rest_j = _moves(hubs, size, j)
    together = np.zeros_like(rest_i)
    if i not in hubs and j not in hubs and hubs.around(i) == hubs.around(j):
        # Both hang between the same hubs: the later one also hangs on the earlier.
        bridge = hubs.bridge(j, before=i)
        moves_j = {k: bridge.of_before @ move for k, move in moves_i.items()}
        if bridge.after is not None:
            moves_j[bridge.after] = moves_j[bridge.after] + bridge.of_after
        rest_j = bridge.of_before @ rest_i @ bridge.of_before.T + bridge.rest
        together = rest_i @ bridge.of_before.T
    names = sorted({*moves_i, *moves_j})
    nothing = np.zeros((size, size))
    stacked = np.block([[moves.get(k, nothing) for k in names] for moves in (moves_i, moves_j)])
    own = np.block([[rest_i, together], [together.T, rest_j]])
    return np.asarray(stacked @ joint(names) @ stacked.T + own)


def _moves(hubs: Hubs, size: int, k: int) -> tuple[dict[int, Array], Array]:
    """How a keyframe moves with each of its hubs, and the covariance of what they do not say."""
    if k in hubs:
        return {k: np.eye(size)}, np.zeros((size, size))
    bridge = hubs.bridge(k)
    moves = {bridge.before: bridge.of_before}
    if bridge.after is not None:
        moves[bridge.after] = bridge.of_after
    return moves, bridge.rest
