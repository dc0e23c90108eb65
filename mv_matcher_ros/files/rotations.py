# SPDX-License-Identifier: Apache-2.0
"""Rotation matrices and quaternions (xyzw) for file formats, in numpy and double precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mv_matcher_ros.datatypes import Array


def matrix_from_quaternion(quaternion_xyzw: ArrayLike) -> Array:
    """Rotation matrices of quaternions, which are normalised first.

    Args:
        quaternion_xyzw: (..., 4) quaternions, any length but zero.

    Returns:
        (..., 3, 3) rotation matrices.

    Raises:
        ValueError: a quaternion is zero or not finite.
    """
    q = np.asarray(quaternion_xyzw, dtype=np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not (np.isfinite(norm).all() and (norm > 1e-12).all()):
        raise ValueError('a quaternion is zero or not finite')
    vector, w = q[..., :3] / norm, q[..., 3] / norm[..., 0]
    skew = np.zeros((*q.shape[:-1], 3, 3))
    skew[..., 0, 1], skew[..., 0, 2], skew[..., 1, 2] = (
        -vector[..., 2],
        vector[..., 1],
        -vector[..., 0],
    )
    skew -= np.swapaxes(skew, -1, -2)
    # Rodrigues in quaternion form: R = I + 2 w [v]x + 2 [v]x [v]x.
    rotation: Array = np.eye(3) + 2.0 * (w[..., None, None] * skew + skew @ skew)
    return rotation


def quaternion_from_matrix(rotation: ArrayLike) -> Array:
    """Unit quaternions of rotation matrices, with w >= 0.

    Args:
        rotation: (..., 3, 3) rotation matrices.

    Returns:
        (..., 4) quaternions xyzw.

    Source:
        Bar-Itzhack, "New method for extracting the quaternion from a rotation matrix", 2000: the
        columns of 4 q q^T are linear in R; the one with the largest diagonal is free of
        cancellation at every angle.
    """
    r = np.asarray(rotation, dtype=np.float64)
    trace = np.trace(r, axis1=-2, axis2=-1)
    outer = np.empty((*r.shape[:-2], 4, 4))  # 4 q q^T, order xyzw
    outer[..., :3, :3] = r + np.swapaxes(r, -1, -2)
    for i in range(3):
        outer[..., i, i] = 1.0 + 2.0 * r[..., i, i] - trace
    outer[..., 3, 3] = 1.0 + trace
    axial = np.stack(
        (r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]), -1
    )
    outer[..., :3, 3] = axial
    outer[..., 3, :3] = axial
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(outer, best[..., None, None], axis=-1)[..., 0]
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    signed: Array = np.where(q[..., 3:] < 0.0, -q, q)
    return signed


def nearest_rotation(matrix: ArrayLike) -> Array:
    """Rotations nearest to matrices that are rotations up to rounding (orthogonal Procrustes).

    Args:
        matrix: (..., 3, 3).

    Returns:
        (..., 3, 3) with determinant +1.
    """
    u, _, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    sign = np.sign(np.linalg.det(u @ vt))
    u[..., :, 2] *= sign[..., None]
    nearest: Array = u @ vt
    return nearest


def rigid_transform(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """(..., 4, 4) transforms of (..., 3, 3) rotations and (..., 3) translations."""
    r, t = np.asarray(rotation, dtype=np.float64), np.asarray(translation, dtype=np.float64)
    transform = np.zeros((*np.broadcast_shapes(r.shape[:-2], t.shape[:-1]), 4, 4))
    transform[..., :3, :3], transform[..., :3, 3], transform[..., 3, 3] = r, t, 1.0
    return transform


def inverse_transform(transform: Array) -> Array:
    """(..., 4, 4) inverses of rigid transforms."""
    rotation = np.swapaxes(transform[..., :3, :3], -1, -2)
    return rigid_transform(rotation, -(rotation @ transform[..., :3, 3:])[..., 0])
