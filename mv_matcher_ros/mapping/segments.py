# SPDX-License-Identifier: Apache-2.0
"""Segments of odometry that loops join: which hang together, and how they are carried there.

What joins a segment says where all of it is. The optimiser would have to turn every pose of it by
the same large angle, each linearised where it was; so the whole is moved rigidly (by a similarity
without metric scale) before the optimiser sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.loop_cycles import Link
from mv_matcher_ros.mapping.odometry_chain import OdometryChain


def hanging_together(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Of each of `count` segments the first one that pairs connect it with."""
    group = list(range(count))
    for one, other in pairs:
        low, high = sorted((group[one], group[other]))
        if low != high:
            group = [low if g == high else g for g in group]
    return group


def carry(
    chain: OdometryChain, poses: Array, group: Sequence[int], links: Sequence[Link], home: int
) -> bool:
    """Move groups of segments, in place, to where loops between them say they belong.

    Args:
        chain: odometry.
        poses: (N, 4, 4) of all keyframes.
        group: of each segment.
        links: loops between segments.
        home: the group that stays; of two others it is the first.

    Returns:
        Whether any was moved.
    """
    group = list(group)
    segment = np.array(chain.segment)
    moved = False
    near_home = True
    while near_home:  # first what touches home, then what touches that, then the others
        near_home = False
        for link in links:
            ends = {group[segment[link.a]], group[segment[link.b]]}
            if home in ends and len(ends) == 2:
                group = _onto(chain, poses, group, link, home)
                near_home = moved = True
    for link in links:
        ends = {group[segment[link.a]], group[segment[link.b]]}
        if len(ends) == 2:
            group = _onto(chain, poses, group, link, min(ends))
            moved = True
    return moved


def _onto(
    chain: OdometryChain, poses: Array, group: list[int], link: Link, stays: int
) -> list[int]:
    """Carry the one of two groups that does not stay; returns the groups with both as one."""
    segment = np.array(chain.segment)
    of_a, of_b = group[segment[link.a]], group[segment[link.b]]
    onto_a = poses[link.a] @ link.a_from_b @ chain.algebra.inverse(poses[link.b])
    correction = onto_a if of_a == stays else chain.algebra.inverse(onto_a)
    gone = of_b if of_a == stays else of_a
    carried = np.array(group)[segment] == gone
    poses[carried] = correction @ poses[carried]
    return [stays if g == gone else g for g in group]
