# SPDX-License-Identifier: Apache-2.0
"""Maps for `bench points`: true poses, landmarks by triangulation, thinned and made wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

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
    pairs = [(a, b) for b in range(count) for a in range(max(0, b - _BEFORE), b)]
    capacity = max(len(one) for one in features)
    tracks = build_tracks(matcher.match(features, pairs), count, capacity).keypoint
    keyframes = [_keyframe(key, one) for key, one in enumerate(features)]
    camera_from_world = torch.from_numpy(
        np.linalg.inv(np.stack([view.world_from_camera for view in views]))
    )
    points, spread, good = _triangulated(tracks, keyframes, camera, camera_from_world)
    tracks, points, spread = tracks[good], points[good], spread[good]
    world = Map(Rig((replace(camera, body_from_camera=np.eye(4)),)), 'rgbd', '')
    number = world.landmarks.add(len(tracks))
    anchor = (tracks >= 0).int().argmax(dim=1).numpy()
    for key in np.unique(anchor).tolist():
        rows = (anchor == key).nonzero()[0]
        local = se3.transform(camera_from_world[key], points[rows])
        turn = camera_from_world[key, :3, :3]
        around = turn @ spread[rows] @ turn.mT
        world.landmarks.place(number[rows], key, local.numpy(), around.numpy())
    for key, keyframe in enumerate(keyframes):
        landmark = np.full(len(keyframe), -1, np.int32)
        which = tracks[:, key].numpy()
        landmark[which[which >= 0]] = number[which >= 0]
        world.add(keyframe.seeing(landmark), views[key].world_from_camera)
    return world


def _triangulated(
    tracks: Tensor, keyframes: Sequence[MapKeyframe], camera: Camera, camera_from_world: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of tracks (T, V) of keypoints points (T, 3) in the world, their covariances (T, 3, 3), and
    which are good (T,)."""
    seen = tracks >= 0
    xy = torch.full((*seen.shape, 2), torch.nan, dtype=torch.float64)
    sigma = torch.ones(seen.shape, dtype=torch.float64)
    for key, keyframe in enumerate(keyframes):
        rows = seen[:, key]
        which = tracks[rows, key]
        sigma_px = torch.from_numpy(keyframe.sigma_px.astype(np.float64))
        xy[rows, key] = keyframe.plane_xy(camera)[0][which]
        sigma[rows, key] = sigma_px[which] / camera.focal_px
    found = triangulate(xy, camera_from_world, seen / sigma**2)
    error = found.residuals.norm(dim=-1) / sigma
    good = found.valid & ((error <= _WORST) | ~seen).all(1)
    whole = torch.eye(3, dtype=torch.float64)
    spread = torch.linalg.inv(torch.where(good[:, None, None], found.information, whole))
    apart = torch.where(seen, found.depths, torch.inf).amin(1)
    good &= spread.diagonal(dim1=1, dim2=2).sum(1).sqrt() * _LEAST_SURE < apart
    return found.points, spread, good


def _keyframe(key: int, features: Features) -> MapKeyframe:
    count = len(features)
    unknown = np.full(count, np.nan, np.float32)
    return MapKeyframe(
        key=key,
        stamp_ns=key,
        segment=0,
        keypoints_xy=features.keypoints_xy.numpy(),
        descriptors=features.descriptors.numpy().astype(np.float16),
        scores=features.scores.numpy().astype(np.float16),
        sigma_px=features.sigma_px.numpy().astype(np.float16),
        inverse_depth=unknown,
        inverse_depth_sigma=unknown,
        landmark=np.full(count, -1, np.int32),
        odom_from_body=np.eye(4),
        place=np.zeros(0, np.float32),
    )


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
