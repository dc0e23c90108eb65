# SPDX-License-Identifier: Apache-2.0
"""How far poses moved, and how far apart those of two runs are: what the benchmarks count."""

from __future__ import annotations

from typing import Any

import numpy as np

from mv_matcher_ros.cli.faults import Drive
from mv_matcher_ros.datatypes import Array, Trajectory
from mv_matcher_ros.errors import MvMatcherError

_HELD_M = 1e-9  # a pose that is held does not change at all but for rounding


def moved_m(a: Array, b: Array) -> float:
    """Distance of the origins of two (4, 4) poses."""
    return float(np.linalg.norm(b[:3, 3] - a[:3, 3]))


def turned_deg(a: Array, b: Array) -> float:
    """Largest angle between the attitudes of (…, 4, 4) poses.

    By the chord, which is exact for small angles, where the trace of a rotation is not.
    """
    chord = np.linalg.norm(b[..., :3, :3] - a[..., :3, :3], axis=(-2, -1)) / np.sqrt(8.0)
    return float(np.rad2deg(2.0 * np.arcsin(np.minimum(chord, 1.0))).max())


def distances(driven: Drive) -> dict[str, Any]:
    """Distance from the first to the last frame with a pose, as it was and as it was estimated.

    Raises:
        MvMatcherError: the engine refused the recording, or there are not two poses.
    """
    if driven.error:
        raise MvMatcherError(driven.error)
    known = [i for i, e in enumerate(driven.estimates) if e.odom_from_body is not None]
    if len(known) < 2:
        raise MvMatcherError(f'{len(known)} frame(s) with a pose of {len(driven.estimates)}')
    assert driven.truth is not None
    truth = driven.truth.world_from_body[known, :3, 3]
    poses = [driven.estimates[i].odom_from_body for i in known]
    estimate = np.stack([pose[:3, 3] for pose in poses if pose is not None])
    true_m = float(np.linalg.norm(truth[-1] - truth[0]))
    estimated_m = float(np.linalg.norm(estimate[-1] - estimate[0]))
    steps_m = np.linalg.norm(np.diff(estimate, axis=0), axis=1)
    return {
        'frames': len(driven.estimates),
        'with_pose': len(known),
        'held': int((steps_m < _HELD_M).sum()),
        'status': {status.value: count for status, count in driven.statuses.items()},
        'true_m': true_m,
        'estimated_m': estimated_m,
        'followed': estimated_m / true_m if true_m > 0 else None,
        'path_estimated_m': float(steps_m.sum()),
    }


def changes_of_odom(driven: Drive) -> dict[str, Any]:
    """The largest change of odom from one published pose to the next, by the status of the next.

    Raises:
        MvMatcherError: the engine refused the recording.
    """
    if driven.error:
        raise MvMatcherError(driven.error)
    assert driven.truth is not None
    truth = driven.truth.world_from_body
    rows: dict[str, dict[str, Any]] = {}
    before: tuple[int, Array] | None = None
    for index, estimate in enumerate(driven.estimates):
        row = rows.setdefault(
            estimate.status.value, {'frames': 0, 'with_pose': 0, 'largest': None}
        )
        row['frames'] += 1
        pose = estimate.odom_from_body
        if pose is None:
            continue
        row['with_pose'] += 1
        if before is not None:
            change = {
                'frames_apart': index - before[0],
                'moved_m': moved_m(before[1], pose),
                'turned_deg': turned_deg(before[1], pose),
                'true_moved_m': moved_m(truth[before[0]], truth[index]),
                'true_turned_deg': turned_deg(truth[before[0]], truth[index]),
            }
            largest = row['largest']
            if largest is None or change['moved_m'] > largest['moved_m']:
                row['largest'] = change
        before = index, pose
    share = driven.error_of_path('se3' if driven.estimates[-1].metric else 'sim3', range(0))
    return {
        'statuses': rows,
        'last_status': driven.estimates[-1].status.value,
        'metric': driven.estimates[-1].metric,
        'ate_percent_of_path': None if share is None else 100 * share,
    }


def largest_difference(a: Trajectory, b: Trajectory) -> dict[str, Any]:
    """Largest difference of two trajectories at the stamps that both have.

    Both are taken relative to the first pose that they share: a node that drops frames may begin
    with another one, and odom begins with it.
    """
    stamps, in_a, in_b = np.intersect1d(a.stamps_ns, b.stamps_ns, return_indices=True)
    if len(stamps) == 0:
        return {'compared': 0, 'largest_difference_m': None, 'largest_difference_deg': None}
    one = np.linalg.inv(a.world_from_body[in_a[0]]) @ a.world_from_body[in_a]
    other = np.linalg.inv(b.world_from_body[in_b[0]]) @ b.world_from_body[in_b]
    apart_m = np.linalg.norm(one[:, :3, 3] - other[:, :3, 3], axis=1)
    return {
        'compared': len(stamps),
        'largest_difference_m': float(apart_m.max()),
        'largest_difference_deg': turned_deg(one, other),
    }
