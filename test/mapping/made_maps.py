# SPDX-License-Identifier: Apache-2.0
"""Maps of random points with known poses."""

from __future__ import annotations

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array, Camera, Features, Rig
from mv_matcher_ros.mapping.keyframe import MapKeyframe, packed
from mv_matcher_ros.mapping.map import Edge, Map

CAMERA = Camera(640, 480, (500.0, 500.0, 319.5, 239.5))
WIDTH = 16
POINTS = 300


def pose_at(step: float, turn: float = 0.0) -> Array:
    """A camera that looks along z, moved sideways, turned about y."""
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    pose[0, 3] = step
    return pose


def scene(seed: int = 0, points: int = POINTS) -> tuple[Array, Array]:
    """(P, 3) points ahead of the cameras, and (P, D) what they look like."""
    rng = np.random.default_rng(seed)
    place = rng.uniform((-3, -2, 4), (4, 2, 8), (points, 3))
    look = rng.normal(size=(points, WIDTH))
    return place, look / np.linalg.norm(look, axis=1, keepdims=True)


def seen_from(pose: Array, place: Array) -> tuple[Array, Array]:
    """(K, 2) pixels and (K,) numbers of the points in the image."""
    local = (place - pose[:3, 3]) @ pose[:3, :3]
    xy = 500.0 * local[:, :2] / local[:, 2:] + (319.5, 239.5)
    inside = (local[:, 2] > 0.1) & (xy > 0).all(1) & (xy < (639, 479)).all(1)
    return xy[inside], inside.nonzero()[0]


def keyframe_of(
    key: int, pose: Array, place: Array, look: Array, landmark: Array, segment: int = 0
) -> MapKeyframe:
    """What a camera at a pose sees; `landmark` (P,) are numbers of the points in the map."""
    xy, which = seen_from(pose, place)
    count = len(which)
    depth = ((place[which] - pose[:3, 3]) @ pose[:3, :3])[:, 2]
    return MapKeyframe(
        key, 10**9 * (key + 1), segment, xy.astype(np.float32), packed(look[which]),
        np.ones(count, np.float16), np.full(count, 0.5, np.float16),
        (1.0 / depth).astype(np.float32), np.full(count, 2e-3, np.float32),
        landmark[which].astype(np.int32), pose, np.eye(8, dtype=np.float32)[key % 8],
    )  # fmt: skip


def made_map(keyframes: int = 5, sensor: str = 'stereo', seed: int = 0) -> Map:
    """Keyframes in a row; each landmark hangs at the first that sees it."""
    place, look = scene(seed)
    world = Map(Rig((CAMERA,)), sensor, 'abc')  # type: ignore[arg-type]
    number = np.full(len(place), -1)
    for key in range(keyframes):
        pose = pose_at(0.3 * key, 0.03 * key)
        _, which = seen_from(pose, place)
        new = which[number[which] < 0]
        number[new] = world.landmarks.add(len(new))
        local = (place[new] - pose[:3, 3]) @ pose[:3, :3]
        spread = np.tile(0.01 * np.eye(3), (len(new), 1, 1))
        world.landmarks.place(number[new].astype(np.int32), key, local, spread)
        world.add(keyframe_of(key, pose, place, look, number), pose)
        if key:
            step = np.linalg.inv(world.pose[key - 1]) @ pose
            world.edges.append(Edge(key - 1, key, step, 1e-4 * np.eye(7), False))
    return world


def features_of(keyframe: MapKeyframe) -> Features:
    """As a matcher takes them."""
    found = keyframe.features((640, 480))
    assert found.descriptors.dtype == torch.float32
    return found
