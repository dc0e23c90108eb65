# SPDX-License-Identifier: Apache-2.0
"""Where the next camera of a tuple stands: a frame later, or around what another one sees."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.worlds.mipmaps import Floats


@dataclass(frozen=True)
class Velocity:
    """Motion from frame to frame: metres and rad in the camera's axes, (3,) each."""

    step_m: Array
    turn_rad: Array


def draw_velocity(distance_m: float, rng: np.random.Generator) -> Velocity:
    """A velocity for a scene at about `distance_m`: ahead, sideways or anyhow."""
    direction = rng.normal(0, 1, 3) * ((1, 0.4, 1), (0.15, 0.1, 1), (1, 0.1, 0.2))[rng.integers(3)]
    direction /= np.linalg.norm(direction)
    step = distance_m * np.exp(rng.uniform(np.log(0.012), np.log(0.09)))
    turn = rng.normal(0, 1, 3) * (0.02, 0.06, 0.015) * rng.uniform(0.2, 1.5)
    return Velocity(step * direction, turn)


def advanced(pose: Array, velocity: Velocity, rng: np.random.Generator) -> Array:
    """(4, 4) the pose a frame later, with the unrest of a hand."""
    delta = np.eye(4)
    turn = velocity.turn_rad + rng.normal(0, 0.006, 3)
    delta[:3, :3] = rotation(turn)
    delta[:3, 3] = velocity.step_m * rng.uniform(0.8, 1.2, 3)
    return pose @ delta


def around(
    pose: Array, depth: Floats, camera: Camera, largest_rad: float, rng: np.random.Generator
) -> Array | None:
    """(4, 4) a pose turned about a point that another one sees; None if it sees none.

    Args:
        pose: (4, 4) world_from_camera of the other one.
        depth: (H, W) metres of its view.
        camera: of its view, of the depth's size.
        largest_rad: of the turn about the point.
        rng: of everything.
    """
    height, width = depth.shape
    rows, columns = np.nonzero(depth[height // 6 : -height // 6, width // 6 : -width // 6])
    if not len(rows):
        return None
    k = int(rng.integers(len(rows)))
    row, column = rows[k] + height // 6, columns[k] + width // 6
    fx, fy, cx, cy = camera.intrinsics
    ray = np.array([(column - cx) / fx, (row - cy) / fy, 1.0])
    point = pose[:3, :3] @ (float(depth[row, column]) * ray) + pose[:3, 3]
    axis = rng.normal(0, 1, 3) * (0.25, 0.25, 1.0)
    turn = rotation(rng.uniform(0.1, 1.0) * largest_rad * axis / np.linalg.norm(axis))
    nearer = np.exp(np.clip(rng.normal(0, 0.25), -0.6, 0.6))
    found = np.eye(4)
    found[:3, 3] = point + nearer * (turn @ (pose[:3, 3] - point))
    roll = rng.normal(0, 0.06) if rng.random() < 0.8 else rng.normal(0, 0.45)
    unrest = np.array([rng.normal(0, 0.08), rng.normal(0, 0.12), roll])
    found[:3, :3] = turn @ pose[:3, :3] @ rotation(unrest)
    return found


def rotation(vector: Array) -> Array:
    """(3, 3) of a rotation vector (3,) rad."""
    return np.asarray(cv2.Rodrigues(np.asarray(vector, np.float64))[0])
