# SPDX-License-Identifier: Apache-2.0
"""Points of all keypoints of a map's keyframes: of landmarks, and inferred from those around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.mapping.map import Map, moved
from mv_matcher_ros.models.learned_points import KeyframeDepths, PointInference


@dataclass(frozen=True)
class KeyframePoints:
    """What N keypoints of a keyframe show, in its body frame and units.

    Attributes:
        landmark: (N,) int32 numbers in the map, −1 for none.
        points: (N, 3), NaN where nothing is known.
        spread: (N, 3, 3) their covariances.
        confidence: (N,) that they are right: 1 for landmarks, 0 where nothing is known.
    """

    landmark: NDArray[np.int32]
    points: Array
    spread: Array
    confidence: Array


def seen_points(world: Map, key: int) -> KeyframePoints:
    """The landmarks that a keyframe sees, and nothing else."""
    points, spread = world.points_seen_by(key)
    landmark = np.asarray(world.keyframes[key].landmark)
    confidence = np.where(np.isfinite(points).all(axis=1), 1.0, 0.0)
    return KeyframePoints(landmark, points, spread, confidence)


def inferred_points(
    world: Map, keys: Sequence[int], camera: Camera, inference: PointInference
) -> list[KeyframePoints]:
    """Points of all keypoints of some keyframes, those of landmarks where these are better.

    A landmark with errors larger than the inferred point's is replaced by it, and keeps its
    number: the ray of the keypoint is known better than a landmark that a short baseline made.
    """
    seen = [seen_points(world, key) for key in keys]
    given = [_known(world, key, camera, one) for key, one in zip(keys, seen, strict=True)]
    made = inference.infer(given)
    found = []
    for key, one, keyframe, depths in zip(keys, seen, given, made, strict=True):
        sigma_px = world.keyframes[key].sigma_px.astype(np.float64)
        lateral = np.maximum(sigma_px, 0.1) / camera.focal_px
        points, spread = _on_rays(
            keyframe.plane_xy.numpy(),
            depths.depth.double().numpy(),
            depths.sigma.double().numpy(),
            lateral,
            camera.body_from_camera,
        )
        confidence = depths.confidence.double().numpy()
        there = (confidence > 0.0) & np.isfinite(spread).all((1, 2))
        with np.errstate(invalid='ignore'):
            better = np.trace(spread, axis1=1, axis2=2) < np.trace(one.spread, axis1=1, axis2=2)
        take = there & (better | (one.confidence == 0.0))
        found.append(
            KeyframePoints(
                one.landmark,
                np.where(take[:, None], points, one.points),
                np.where(take[:, None, None], spread, one.spread),
                np.where(take, confidence, one.confidence),
            )
        )
    return found


def _known(world: Map, key: int, camera: Camera, seen: KeyframePoints) -> KeyframeDepths:
    """Depths of the landmarks along the optical axis, with their deviations."""
    keyframe = world.keyframes[key]
    camera_from_body: Array = np.linalg.inv(camera.body_from_camera)
    depth = moved(camera_from_body, seen.points)[:, 2]
    axis = camera_from_body[2, :3]
    variance = np.einsum('i,nij,j->n', axis, seen.spread, axis)
    with np.errstate(invalid='ignore', divide='ignore'):
        sigma = np.sqrt(np.maximum(variance, 0.0)) / depth
        depth = np.where((depth > 0) & np.isfinite(sigma), depth, np.nan)
    plane, valid = keyframe.plane_xy(camera)
    return KeyframeDepths(
        plane,
        valid,
        torch.tensor(keyframe.descriptors).float(),
        torch.from_numpy(depth),
        torch.from_numpy(sigma),
    )


def _on_rays(
    plane_xy: Array, depth: Array, sigma: Array, lateral: Array, body_from_camera: Array
) -> tuple[Array, Array]:
    """(N, 3) points in the body frame at depths (N,) and (N, 3, 3) covariances: `sigma` of the
    logarithm of depth along the ray, `lateral` (normalised plane) across."""
    rays = np.concatenate([plane_xy, np.ones((len(depth), 1))], axis=1)
    points = depth[:, None] * rays
    along = (sigma * depth)[:, None] * rays
    across = np.zeros((len(depth), 3, 3))
    across[:, [0, 1], [0, 1]] = ((lateral * depth) ** 2)[:, None]
    with np.errstate(invalid='ignore'):
        spread = along[:, :, None] * along[:, None, :] + across
    turn = body_from_camera[:3, :3]
    return moved(body_from_camera, points), turn @ spread @ turn.T
