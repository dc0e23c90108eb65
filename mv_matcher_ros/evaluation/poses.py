# SPDX-License-Identifier: Apache-2.0
"""Pose algebra of the evaluation: geometry's functions on numpy arrays, in float64."""

from __future__ import annotations

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.alignment import align_points


def _tensor(values: Array) -> torch.Tensor:
    # A copy: arrays may be read-only, which torch warns of.
    return torch.from_numpy(np.array(values, dtype=np.float64))


def invert(poses: Array) -> Array:
    """(…, 4, 4) inverse of rigid transforms."""
    return se3.inverse(_tensor(poses)).numpy()


def with_exact_rotations(poses: Array) -> Array:
    """(…, 4, 4) poses with each rotation replaced by the nearest exact one.

    Products of many rounded rotations are rotations to a few digits only; inverses by
    transposition and differences of accumulated covariances magnify that.
    """
    exact = np.array(poses, dtype=np.float64)
    exact[..., :3, :3] = se3.nearest_rotation(_tensor(poses[..., :3, :3])).numpy()
    return exact


def logarithm(poses: Array) -> Array:
    """(…, 6) tangent vectors [translation, rotation] of (…, 4, 4) rigid transforms."""
    return se3.log(_tensor(poses)).numpy()


def adjoint(poses: Array) -> Array:
    """(…, 6, 6) adjoint of (…, 4, 4) rigid transforms, order [translation, rotation]."""
    return se3.adjoint(_tensor(poses)).numpy()


def rotation_angle_rad(transforms: Array) -> Array:
    """(…,) angle in [0, pi] of (…, 3, 3) rotations or (…, 4, 4) poses."""
    return se3.rotation_angle(_tensor(transforms[..., :3, :3])).numpy()


def interpolate_poses(before: Array, after: Array, share: Array) -> Array:
    """(N, 4, 4) poses at `share` (N,) in [0, 1] of the screw motion between (N, 4, 4) poses."""
    if len(before) == 0:
        return np.zeros((0, 4, 4))
    return se3.interpolate(_tensor(before), _tensor(after), _tensor(share)).numpy()


def align_attitudes(source: Array, target: Array) -> Array:
    """(N, 4, 4) `source` turned by the one rotation that brings its attitudes onto `target`'s.

    It minimises the squared differences of the matrices; Hartley et al., "Rotation Averaging",
    IJCV 103, 2013. Positions are turned too.
    """
    turn = np.eye(4)
    turn[:3, :3] = (target[:, :3, :3] @ np.swapaxes(source[:, :3, :3], 1, 2)).mean(0)
    return np.asarray(with_exact_rotations(turn) @ source)


def align_positions(source: Array, target: Array, with_scale: bool) -> tuple[float, Array]:
    """Scale and rigid (4, 4) target_from_source that bring (N, 3) `source` onto (N, 3)
    `target`."""
    found = align_points(_tensor(source), _tensor(target), with_scale=with_scale)
    transform, scale = found.target_from_source.numpy().copy(), float(found.scale)
    transform[:3, :3] /= scale
    return scale, transform


def aligned_rmse(source: Array, target: Array, with_scale: bool) -> float:
    """Root mean square distance of (N, 3) positions from (N, 3) `target` after alignment."""
    scale, target_from_source = align_positions(source, target, with_scale)
    moved = scale * source @ target_from_source[:3, :3].T + target_from_source[:3, 3]
    return float(np.sqrt(((moved - target) ** 2).sum(1).mean()))
