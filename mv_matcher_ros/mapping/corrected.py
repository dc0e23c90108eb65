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

    At a keyframe a pose is the map's. Between two of one segment what takes `odom` to the map at
    the one changes evenly to what does at the other; before the first and after the last of a
    segment it stays. Frames before the first keyframe are left out.

    Args:
        published: poses in odom of a run.
        world: the map that its keyframes are in.
        run: what the mapper was told that the run is called.

    Raises:
        EvaluationError: no keyframe of the map is of this run.
    """
    frames = set(published.stamps_ns.tolist())
    own = {segment for segment, name in world.origin.items() if name.rpartition('/')[0] == run}
    keyframes = [k for k in world.keyframes.values() if k.stamp_ns in frames and k.segment in own]
    if not keyframes:
        raise EvaluationError('no keyframe of the map has the stamp of a frame of the run')
    keyframes.sort(key=lambda k: k.stamp_ns)
    stamps = np.array([k.stamp_ns for k in keyframes])
    segment = np.array([k.segment for k in keyframes])
    correction = np.stack([
        world.pose[k.key] @ np.linalg.inv(k.odom_from_body) for k in keyframes
    ])  # fmt: skip
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
