# SPDX-License-Identifier: Apache-2.0
"""What a map does not need: keyframes whose landmarks others see, landmarks that say nothing.

Source of the rule for keyframes: Mur-Artal et al., ORB-SLAM, TRO 2015, VI.E.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from itertools import pairwise

import numpy as np

from mv_matcher_ros.config import CullingSettings
from mv_matcher_ros.mapping.map import Map

# A landmark that so many other keyframes see does not need one more.
WITNESSES = 3
# A keyframe with fewer landmarks says nothing, and fewer that others see say nothing of it.
FEWEST = 20


def redundant(world: Map, settings: CullingSettings, spare: Set[int] = frozenset()) -> list[int]:
    """Keys of keyframes that nothing is lost with, the oldest first.

    Points that no other keyframe sees do not count: most are features that were found once. Not
    the first one, one of the newest, the last of a segment, nor two neighbours at a time: the map
    stays as dense as the odometry's steps need it.

    Args:
        world: the map.
        settings: when a keyframe goes.
        spare: keys of keyframes that show what is known, whoever sees their landmarks.
    """
    if settings.share > 1.0:
        return []
    keys = list(world.keyframes)
    left = Counter(keyframe.segment for keyframe in world.keyframes.values())
    seen = world.landmarks.seen.copy()
    going: list[int] = []
    for before, key in pairwise(keys[: -settings.newest]):
        segment = world.keyframes[key].segment
        if left[segment] == 1 or (going and going[-1] == before):
            continue
        mine = world.keyframes[key].landmark
        mine = mine[mine >= 0]
        shared = mine[seen[mine] > 1]
        nothing = len(mine) < FEWEST
        if len(shared) < FEWEST and not nothing and key not in spare:
            continue
        if nothing or key in spare or float((seen[shared] > WITNESSES).mean()) >= settings.share:
            going.append(key)
            left[segment] -= 1
            seen[mine] -= 1
    return going


def uncertain(world: Map, settings: CullingSettings) -> np.ndarray:
    """(K,) int32 numbers of landmarks of one keyframe whose place is hardly known."""
    count = len(world.landmarks)
    number = np.flatnonzero(world.landmarks.anchor[:count] >= 0).astype(np.int32)
    number = number[world.landmarks.seen[number] <= 1]
    spread = world.landmarks.spread(number)
    known = np.isfinite(spread).all((1, 2))
    largest = np.full(len(number), np.inf)
    largest[known] = np.sqrt(np.linalg.eigvalsh(spread[known])[:, -1].clip(0))
    distance = np.linalg.norm(world.landmarks.position[number], axis=1)
    found: np.ndarray = number[largest > settings.max_sigma * distance]
    return found


def cull(world: Map, settings: CullingSettings, spare: Set[int] = frozenset()) -> list[int]:
    """Let go of both; returns the keys of the keyframes that have gone."""
    gone = uncertain(world, settings)
    if len(gone):
        world.forget(gone)
    going = redundant(world, settings, spare)
    if going:
        world.remove(going)
    return going
