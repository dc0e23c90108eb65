# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms and similarities on numpy arrays: geometry's functions, in float64.

A pose graph is of one of two groups: SE(3) for metric sensors, Sim(3) where the scale drifts. Both
are (..., 4, 4) matrices [[s R, t], [0, 1]], s = 1 for SE(3); tangent vectors are [translation,
rotation] and [translation, rotation, log scale], perturbations on the right: T exp(xi).
"""

from __future__ import annotations

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.geometry import se3, sim3


def _tensor(values: Array) -> torch.Tensor:
    # A copy: arrays may be read-only, which torch warns of.
    return torch.from_numpy(np.array(values, dtype=np.float64))


class Algebra:
    """The functions of one group.

    Args:
        similarity: Sim(3) instead of SE(3).
    """

    def __init__(self, similarity: bool) -> None:
        self.similarity = similarity
        self.size = 7 if similarity else 6

    def exp(self, tangent: Array) -> Array:
        """(..., 6 or 7) → (..., 4, 4)."""
        group = sim3 if self.similarity else se3
        return group.exp(_tensor(tangent)).numpy()

    def log(self, transform: Array) -> Array:
        """(..., 4, 4) → (..., 6 or 7), rotation angle in [0, pi]."""
        group = sim3 if self.similarity else se3
        return group.log(_tensor(transform)).numpy()

    def adjoint(self, transform: Array) -> Array:
        """(..., 4, 4) → (..., n, n) with T exp(xi) T^-1 = exp(Ad xi)."""
        group = sim3 if self.similarity else se3
        return group.adjoint(_tensor(transform)).numpy()

    def inverse(self, transform: Array) -> Array:
        """(..., 4, 4) `source_from_target`."""
        group = sim3 if self.similarity else se3
        return group.inverse(_tensor(transform)).numpy()


SE3 = Algebra(False)
SIM3 = Algebra(True)


def with_scale(rigid: Array, scale: Array | float) -> Array:
    """(..., 4, 4) similarity [[s R, t], [0, 1]] of a rigid transform and a scale (...)."""
    transform = np.array(rigid, dtype=np.float64)
    transform[..., :3, :3] *= np.asarray(scale, dtype=np.float64)[..., None, None]
    return transform


def split_scale(transform: Array) -> tuple[Array, Array]:
    """Rigid (..., 4, 4) with an exact rotation, and scale (...), of a similarity."""
    scale = np.cbrt(np.linalg.det(transform[..., :3, :3]))
    rigid = np.array(transform, dtype=np.float64)
    rigid[..., :3, :3] /= scale[..., None, None]
    return rigid, scale


def chain(start: Array, steps: Array) -> Array:
    """(N + 1, 4, 4) poses of a start (4, 4) and (N, 4, 4) steps `a_from_b`, one after another."""
    poses = np.empty((len(steps) + 1, 4, 4))
    poses[0] = start
    for i, step in enumerate(steps):
        poses[i + 1] = poses[i] @ step
    return poses
