# SPDX-License-Identifier: Apache-2.0
"""A loop: two keyframes that are far apart in time were seen to show the same place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError


@dataclass(frozen=True)
class Loop:
    """Relative pose of two keyframes, measured from their images.

    Attributes:
        a, b: keys of the keyframes.
        a_from_b: (4, 4) rigid; its translation is in the units of keyframe `a`.
        covariance: (6, 6) in the order x y z rx ry rz of a right perturbation (axes of body b), or
            (7, 7) with the log scale last.
        scale: units of `b` in units of `a`: a point p of b is scale * R p + t in a. 1 in a metric
            graph.
    """

    a: int
    b: int
    a_from_b: Array
    covariance: Array
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise GeometryError(f'loop {self.a} -> {self.b}: a keyframe cannot close a loop alone')
        check_pose(f'loop {self.a} -> {self.b}', self.a_from_b, self.scale)
        if np.shape(self.covariance) not in {(6, 6), (7, 7)}:
            raise GeometryError(
                f'loop {self.a} -> {self.b}: covariance must be (6, 6) or (7, 7), got '
                f'{np.shape(self.covariance)}'
            )


def check_pose(name: str, target_from_source: Array, scale: float = 1.0) -> None:
    """Require a finite rigid (4, 4) transform and a positive scale.

    Raises:
        GeometryError: not so; names what it is of.
    """
    if np.shape(target_from_source) != (4, 4):
        raise GeometryError(f'{name}: pose must be (4, 4), got {np.shape(target_from_source)}')
    if not np.isfinite(target_from_source).all():
        raise GeometryError(f'{name}: a number of the pose is not finite')
    rotation = np.asarray(target_from_source)[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0:
        raise GeometryError(f'{name}: the first 3x3 numbers of the pose are not a rotation')
    if not (np.isfinite(scale) and scale > 0):
        raise GeometryError(f'{name}: scale {scale:g} is not a positive number')


def check_covariance(name: str, covariance: Array, size: int) -> Array:
    """The (size, size) covariance made symmetric.

    Raises:
        GeometryError: wrong shape, not finite, or not positive definite; names what it is of.
    """
    if np.shape(covariance) != (size, size):
        raise GeometryError(
            f'{name}: covariance must be ({size}, {size}), got {np.shape(covariance)}'
        )
    symmetric = 0.5 * (covariance + np.transpose(covariance))
    if not np.isfinite(symmetric).all():
        raise GeometryError(f'{name}: a number of the covariance is not finite')
    try:
        np.linalg.cholesky(symmetric)
    except np.linalg.LinAlgError:
        raise GeometryError(f'{name}: the covariance is not positive definite') from None
    return np.asarray(symmetric, dtype=np.float64)
