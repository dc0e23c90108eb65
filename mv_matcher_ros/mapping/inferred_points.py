# SPDX-License-Identifier: Apache-2.0
"""Points of all keypoints of a map's keyframes: of landmarks, and inferred from those around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.mapping.keyframe import unpacked
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

    def replaced(
        self, rows: NDArray[np.int64], points: Array, spread: Array, confidence: Array
    ) -> KeyframePoints:
        """The same with other points of some keypoints."""
        parts = (self.points.copy(), self.spread.copy(), self.confidence.copy())
        for part, new in zip(parts, (points, spread, confidence), strict=True):
            part[rows] = new
        return KeyframePoints(self.landmark, *parts)


def seen_points(world: Map, key: int) -> KeyframePoints:
    """The landmarks that a keyframe sees, and nothing else."""
    points, spread = world.points_seen_by(key)
    landmark = np.asarray(world.keyframes[key].landmark)
    confidence = np.where(np.isfinite(points).all(axis=1), 1.0, 0.0)
    return KeyframePoints(landmark, points, spread, confidence)


def inferred_points(
    world: Map,
    keys: Sequence[int],
    camera: Camera,
    inference: PointInference,
    wanted: Sequence[NDArray[np.int64]] | None = None,
) -> list[KeyframePoints]:
    """Points of keypoints of some keyframes, those of landmarks where these are better.

    A landmark with errors larger than the inferred point's is replaced by it, and keeps its
    number: the ray of the keypoint is known better than a landmark that a short baseline made.

    Args:
        wanted: for each keyframe (W,) keypoints that points are needed of; the others may have
            none. What is asked of one changes nothing for another. None: all.
    """
    seen = [seen_points(world, key) for key in keys]
    if wanted is None:
        wanted = [np.arange(len(one.landmark)) for one in seen]
    rows = [
        np.union1d(asked, (one.confidence > 0.0).nonzero()[0])
        for asked, one in zip(wanted, seen, strict=True)
    ]
    given = [
        _known(world, key, camera, one, row)
        for key, one, row in zip(keys, seen, rows, strict=True)
    ]
    made = inference.infer(given)
    found = []
    for key, whole, row, keyframe, depths in zip(keys, seen, rows, given, made, strict=True):
        one = KeyframePoints(
            whole.landmark[row], whole.points[row], whole.spread[row], whole.confidence[row]
        )
        sigma_px = world.keyframes[key].sigma_px[row].astype(np.float64)
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
        found.append(whole.replaced(row[take], points[take], spread[take], confidence[take]))
    return found


def _known(
    world: Map, key: int, camera: Camera, seen: KeyframePoints, rows: NDArray[np.int64]
) -> KeyframeDepths:
    """Some keypoints, with depths of their landmarks along the optical axis and deviations."""
    keyframe = world.keyframes[key]
    camera_from_body = np.asarray(np.linalg.inv(camera.body_from_camera), np.float64)
    along = moved(camera_from_body, seen.points)[:, 2]
    axis = camera_from_body[2, :3]
    variance = np.einsum('i,nij,j->n', axis, seen.spread, axis)
    with np.errstate(invalid='ignore', divide='ignore'):
        sigma = np.sqrt(np.maximum(variance, 0.0)) / along
        depth = np.where((along > 0) & np.isfinite(sigma), along, np.nan)
    plane, valid = keyframe.plane_xy(camera)
    return KeyframeDepths(
        plane[rows],
        valid[rows],
        torch.from_numpy(unpacked(keyframe.descriptors[rows])),
        torch.from_numpy(depth[rows]),
        torch.from_numpy(sigma[rows]),
    )


def _on_rays(
    plane_xy: Array, depth: Array, sigma: Array, lateral: Array, body_from_camera: Array
) -> tuple[Array, Array]:
    """(N, 3) points in the body frame at depths (N,) and (N, 3, 3) covariances: `sigma` of the
    logarithm of depth along the ray, `lateral` (normalised plane) across."""
    rays = np.concatenate([plane_xy, np.ones((len(depth), 1))], axis=1)
    points = depth[:, None] * rays
    across = np.zeros((len(depth), 3, 3))
    across[:, [0, 1], [0, 1]] = ((lateral * depth) ** 2)[:, None]
    with np.errstate(invalid='ignore'):  # of nothing sigma is infinite, and depth zero
        along = (sigma * depth)[:, None] * rays
        spread = along[:, :, None] * along[:, None, :] + across
    turn = body_from_camera[:3, :3]
    return moved(body_from_camera, points), turn @ spread @ turn.T
