# SPDX-License-Identifier: Apache-2.0
"""The poses of all frames on a map: published ones, corrected as keyframes around them were."""

from __future__ import annotations

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array, Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.geometry import sim3
from mv_matcher_ros.mapping.map import Map, rigid


def on_map(published: Trajectory, world: Map, run: str = '') -> Trajectory:
    """Poses of the frames of a run on the map that was made of it.

    At a keyframe a pose is the map's, also at one that is gone where the map remembers it.
    Between two of one segment what takes `odom` to the map at the one changes evenly to what does
    at the other; before the first and after the last of a segment it stays. Frames before the
    first keyframe are left out.

    Args:
        published: poses in odom of a run.
        world: the map that its keyframes are in.
        run: what the mapper was told that the run is called.

    Raises:
        EvaluationError: no keyframe of the map is of this run.
    """
    frames = set(published.stamps_ns.tolist())
    own = {segment for segment, name in world.origin.items() if name.rpartition('/')[0] == run}
    anchors: list[tuple[int, int, Array]] = [
        (k.stamp_ns, k.segment, world.pose[k.key] @ np.linalg.inv(k.odom_from_body))
        for k in world.keyframes.values()
    ]
    for key, others in (world.gone or {}).items():
        anchors += [
            (
                other.stamp_ns,
                other.segment,
                world.pose[key] @ other.anchor_from_body @ np.linalg.inv(other.odom_from_body),
            )
            for other in others
        ]
    anchors = sorted(
        (anchor for anchor in anchors if anchor[0] in frames and anchor[1] in own),
        key=lambda anchor: anchor[0],
    )
    if not anchors:
        raise EvaluationError('no keyframe of the map has the stamp of a frame of the run')
    stamps, segment = (np.array([anchor[i] for anchor in anchors]) for i in (0, 1))
    correction = np.stack([anchor[2] for anchor in anchors])
    kept = published.stamps_ns >= stamps[0]
    poses = []
    for stamp, pose in zip(
        published.stamps_ns[kept], published.world_from_body[kept], strict=True
    ):
        number = int(np.searchsorted(stamps, stamp, 'right')) - 1
        now = correction[number]
        if number + 1 < len(stamps) and segment[number + 1] == segment[number]:
            share = (stamp - stamps[number]) / (stamps[number + 1] - stamps[number])
            now = between(now, correction[number + 1], float(share))
        poses.append(rigid(now @ pose)[0])
    return Trajectory(published.stamps_ns[kept], np.stack(poses))


def between(one: Array, other: Array, share: float) -> Array:
    """(4, 4) similarity a share of the way from one to the other."""
    first, last = torch.from_numpy(one.copy()), torch.from_numpy(other.copy())
    step = sim3.log(sim3.inverse(first) @ last)
    return (first @ sim3.exp(share * step)).numpy()
