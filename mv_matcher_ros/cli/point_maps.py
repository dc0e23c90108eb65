# SPDX-License-Identifier: Apache-2.0
"""Maps for `bench points`: true poses, landmarks by triangulation, thinned and made wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mv_matcher_ros.datatypes import Camera, Features, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.triangulation import triangulate
from mv_matcher_ros.mapping.keyframe import MapKeyframe
from mv_matcher_ros.mapping.landmarks import Landmarks
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.odometry.tracks import build_tracks

if TYPE_CHECKING:
    from mv_matcher_ros.cli.point_scenes import SceneView
    from mv_matcher_ros.models.classical import Matcher

# Keyframes matched with those before them.
_BEFORE = 3
# A landmark may miss no keypoint by more, in deviations of the keypoints (the poses of a recording
# are not exact); its distance is at least so many deviations of its place.
_WORST = 8.0
_LEAST_SURE = 5.0


def mapped(
    views: Sequence[SceneView], features: Sequence[Features], camera: Camera, matcher: Matcher
) -> Map:
    """A map of views with known poses: tracks of neighbours' matches, triangulated."""
    count = len(views)
    camera_from_world = torch.from_numpy(
        np.linalg.inv(np.stack([view.world_from_camera for view in views]))
    )
    pairs = [(a, b) for b in range(count) for a in range(max(0, b - _BEFORE), b)]
    matches = matcher.match(features, pairs)
    capacity = max(len(one) for one in features)
    tracks = build_tracks(matches, count, capacity)
    keyframes = [_keyframe(key, one) for key, one in enumerate(features)]
    seen = tracks.keypoint >= 0
    xy = torch.full((*seen.shape, 2), torch.nan, dtype=torch.float64)
    sigma = torch.ones(seen.shape, dtype=torch.float64)
    for key, keyframe in enumerate(keyframes):
        rows = seen[:, key]
        which = tracks.keypoint[rows, key]
        xy[rows, key] = keyframe.plane_xy(camera)[0][which]
        sigma[rows, key] = features[key].sigma_px[which].double() / camera.focal_px
    found = triangulate(xy, camera_from_world, seen / sigma**2)
    error = found.residuals.norm(dim=-1) / sigma
    good = found.valid & ((error <= _WORST) | ~seen).all(1)
    spread = torch.linalg.inv(torch.where(good[:, None, None], found.information, torch.eye(3)))
    apart = torch.where(seen, found.depths, torch.inf).amin(1)
    good &= spread.diagonal(dim1=1, dim2=2).sum(1).sqrt() * _LEAST_SURE < apart
    world = Map(Rig((replace(camera, body_from_camera=np.eye(4)),)), 'rgbd', '')
    number = world.landmarks.add(int(good.sum()))
    anchor = seen.int().argmax(dim=1)[good].numpy()
    for key in np.unique(anchor).tolist():
        rows = (anchor == key).nonzero()[0]
        local = se3.transform(camera_from_world[key], found.points[good][rows])
        turn = camera_from_world[key, :3, :3]
        around = turn @ spread[good][rows] @ turn.mT
        world.landmarks.place(number[rows], key, local.numpy(), around.numpy())
    for key, keyframe in enumerate(keyframes):
        landmark = np.full(len(keyframe), -1, np.int32)
        seen_here = tracks.keypoint[good, key].numpy()
        landmark[seen_here[seen_here >= 0]] = number[seen_here >= 0]
        world.add(keyframe.seeing(landmark), views[key].world_from_camera)
    return world


def _keyframe(key: int, features: Features) -> MapKeyframe:
    return MapKeyframe(
        key, key, 0, features.keypoints_xy.numpy(),
        features.descriptors.numpy().astype(np.float16),
        features.scores.numpy().astype(np.float16), features.sigma_px.numpy().astype(np.float16),
        np.full(len(features), -1, np.int32), np.eye(4), np.zeros(0, np.float32),
    )  # fmt: skip


def spoiled(world: Map, share: float, error_m: float, rng: np.random.Generator) -> Map:
    """The same with a share of the landmarks, each off by a normal error in x, y and z, which the
    covariances tell."""
    landmarks, count = world.landmarks, len(world.landmarks)
    kept = rng.random(count) < share
    noise = error_m * rng.normal(size=(count, 3))
    spread = landmarks.spread(np.arange(count, dtype=np.int32)) + error_m**2 * np.eye(3)
    found = Landmarks()
    number = found.add(count)
    for key in np.unique(landmarks.anchor[:count][kept]).tolist():
        rows = number[kept & (landmarks.anchor[:count] == key)]
        found.place(rows, key, landmarks.position[rows] + noise[rows], spread[rows])
    other = Map(world.rig, world.sensor, world.detector, landmarks=found)
    for key, keyframe in world.keyframes.items():
        there = (keyframe.landmark >= 0) & kept[np.maximum(keyframe.landmark, 0)]
        other.add(
            keyframe.seeing(np.where(there, keyframe.landmark, -1).astype(np.int32)),
            world.pose[key],
        )
    return other
