# SPDX-License-Identifier: Apache-2.0
"""Stand-in for `tf_transformations`: rotation matrices and quaternions, order x y z w."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.files import rotations


def quaternion_from_matrix(matrix: ArrayLike) -> Array:
    """(4,) unit quaternion x y z w of the rotation in a (4, 4) or (3, 3) matrix."""
    return rotations.quaternion_from_matrix(np.asarray(matrix, dtype=np.float64)[:3, :3])


def quaternion_matrix(quaternion: ArrayLike) -> Array:
    """(4, 4) rotation of a quaternion x y z w of any length; the identity for length zero."""
    matrix = np.eye(4)
    if np.linalg.norm(quaternion) > 1e-12:
        matrix[:3, :3] = rotations.matrix_from_quaternion(quaternion)
    return matrix
