# SPDX-License-Identifier: Apache-2.0
"""GTSAM's part of the pose graph: variables, factors, iSAM2, marginals. Its only import.

GTSAM writes tangents as [rotation, translation] and [rotation, translation, log scale], and a
similarity as s (R p + t); here they are [translation, rotation(, log scale)] and s R p + t. Both
charts are the exponential map on the right, so covariances differ in order alone. QR: Cholesky
breaks on long open chains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.mapping.pose_algebra import Algebra

# Where the last changes of an update no longer pass on, in m and rad; and how far a variable may
# be from where it was linearised.
WILDFIRE = 1e-4
RELINEARISE = 0.02
# Levenberg-Marquardt over everything ends here.
BATCH_ITERATIONS = 100
BATCH_DECREASE = 1e-7


def _gtsam() -> Any:
    try:
        import gtsam
    except ImportError:
        raise MissingDependencyError('gtsam', 'mapping', 'the pose graph') from None
    return gtsam


@dataclass(frozen=True)
class Between:
    """A factor: the pose of `b` from `a`, (4, 4), with its (n, n) covariance.

    `kernel` is the width in sigma of the robust kernel, None for none.
    """

    a: int
    b: int
    a_from_b: Array
    covariance: Array
    kernel: float | None = None


@dataclass(frozen=True)
class Prior:
    """A factor: the pose of `a`, (4, 4), with its (n, n) covariance."""

    a: int
    map_from_a: Array
    covariance: Array


Factor = Between | Prior


class Solver:
    """Poses that between factors tie together, kept at their optimum step by step.

    Variables are named by any numbers from 0. What is added takes effect with `update`.

    Args:
        algebra: SE(3) or Sim(3).

    Raises:
        MissingDependencyError: gtsam is not installed.
    """

    def __init__(self, algebra: Algebra) -> None:
        self._gtsam = _gtsam()
        self._algebra = algebra
        order = [3, 4, 5, 0, 1, 2, 6][: algebra.size]  # its own inverse
        self._order = np.ix_(order, order)
        self._isam = self._empty()
        self._factors: dict[int, Factor] = {}
        self._slot: dict[int, int] = {}  # iSAM2's number of each factor
        self._next = 0
        self._new: list[int] = []
        self._new_poses: dict[int, Array] = {}
        self._removed: list[int] = []

    def _empty(self) -> Any:
        gtsam = self._gtsam
        parameters = gtsam.ISAM2Params()
        parameters.setFactorization('QR')
        parameters.setRelinearizeThreshold(RELINEARISE)
        parameters.relinearizeSkip = 1
        parameters.enablePartialRelinearizationCheck = True
        parameters.findUnusedFactorSlots = True
        step = gtsam.ISAM2GaussNewtonParams()
        step.setWildfireThreshold(WILDFIRE)
        parameters.setOptimizationParams(step)
        return gtsam.ISAM2(parameters)

    def add_variable(self, name: int, pose: Array) -> None:
        """A variable and where it is first believed to be."""
        self._new_poses[name] = pose

    def add(self, factor: Factor) -> int:
        """A factor; returns what `remove` knows it by."""
        self._next += 1
        self._factors[self._next] = factor
        self._new.append(self._next)
        return self._next

    def remove(self, handle: int) -> None:
        """Take a factor out again."""
        del self._factors[handle]
        if handle in self._slot:
            self._removed.append(self._slot.pop(handle))
        else:
            self._new.remove(handle)

    def update(self, iterations: int) -> int:
        """Take in what is new, then step until nothing has to be linearised anew.

        Args:
            iterations: steps at most, beside the first.

        Returns:
            Steps made.
        """
        gtsam = self._gtsam
        parameters = gtsam.ISAM2UpdateParams()
        parameters.removeFactorIndices = self._removed
        result = self._isam.update(
            self._graph(self._factors[h] for h in self._new),
            self._values(self._new_poses),
            parameters,
        )
        self._slot.update(zip(self._new, result.getNewFactorsIndices(), strict=True))
        self._new, self._removed, self._new_poses = [], [], {}
        for step in range(iterations):
            if self._isam.update().getVariablesRelinearized() == 0:
                return step + 1
        return iterations + 1

    def poses(self) -> Array:
        """(V, 4, 4) of all variables, in order of their numbers."""
        return self._arrays(self._isam.calculateEstimate())

    def restart(self, names: Sequence[int], poses: Array) -> None:
        """Forget all linearisations: every variable begins at the pose given for it."""
        self._isam = self._empty()
        self._slot, self._removed = {}, []
        self._new = list(self._factors)
        self._new_poses = dict(zip(names, poses, strict=True))
        self.update(0)

    def joint(self, names: Sequence[int]) -> Array:
        """(K n, K n) covariance of variables, perturbations on the right."""
        size, count = self._algebra.size, len(names)
        if count == 1:
            full = self._isam.marginalCovariance(names[0])
        else:
            full = self._isam.jointMarginalCovariance(list(names)).fullMatrix()
        # GTSAM's joint has its blocks in the order asked for.
        blocks = full.reshape(count, size, count, size).transpose(0, 2, 1, 3)
        ordered = blocks[:, :, self._order[0], self._order[1]]
        return ordered.transpose(0, 2, 1, 3).reshape(count * size, count * size)

    def optimum(self, poses: Array, factors: Iterable[Factor]) -> tuple[Array, float]:
        """Levenberg-Marquardt over all of a graph at once.

        Args:
            poses: (V, 4, 4) start, variables numbered in order.
            factors: all of them; those added here do not count.

        Returns:
            (V, 4, 4) poses and the cost, half the sum of squared whitened residuals.
        """
        gtsam = self._gtsam
        graph, start = self._graph(factors), self._values(dict(enumerate(poses)))
        parameters = gtsam.LevenbergMarquardtParams()
        parameters.setMaxIterations(BATCH_ITERATIONS)
        parameters.setRelativeErrorTol(BATCH_DECREASE)
        parameters.setAbsoluteErrorTol(0.0)
        found = gtsam.LevenbergMarquardtOptimizer(graph, start, parameters).optimize()
        return self._arrays(found), float(graph.error(found))

    def cost(self, poses: Array, factors: Iterable[Factor]) -> float:
        """Half the sum of squared whitened residuals of a graph, arguments as of `optimum`."""
        values = self._values(dict(enumerate(poses)))
        return float(self._graph(factors).error(values))

    def _graph(self, factors: Iterable[Factor]) -> Any:
        gtsam = self._gtsam
        graph = gtsam.NonlinearFactorGraph()
        between = (
            gtsam.BetweenFactorSimilarity3
            if self._algebra.similarity
            else gtsam.BetweenFactorPose3
        )
        prior = (
            gtsam.PriorFactorSimilarity3 if self._algebra.similarity else gtsam.PriorFactorPose3
        )
        for factor in factors:
            noise = gtsam.noiseModel.Gaussian.Covariance(factor.covariance[self._order])
            if isinstance(factor, Prior):
                graph.add(prior(factor.a, self._pose(factor.map_from_a), noise))
                continue
            if factor.kernel is not None:
                kernel = gtsam.noiseModel.mEstimator.Cauchy.Create(factor.kernel)
                noise = gtsam.noiseModel.Robust.Create(kernel, noise)
            graph.add(between(factor.a, factor.b, self._pose(factor.a_from_b), noise))
        return graph

    def _values(self, poses: dict[int, Array]) -> Any:
        values = self._gtsam.Values()
        for name, pose in poses.items():
            values.insert(name, self._pose(pose))
        return values

    def _pose(self, transform: Array) -> Any:
        gtsam = self._gtsam
        if not self._algebra.similarity:
            return gtsam.Pose3(transform)
        scale = float(np.cbrt(np.linalg.det(transform[:3, :3])))
        rotation = gtsam.Rot3(transform[:3, :3] / scale)
        return gtsam.Similarity3(rotation, transform[:3, 3] / scale, scale)

    def _arrays(self, values: Any) -> Array:
        if not self._algebra.similarity:
            rows = self._gtsam.utilities.extractPose3(values)
            poses = np.tile(np.eye(4), (len(rows), 1, 1))
            poses[:, :3, :3] = rows[:, :9].reshape(-1, 3, 3)
            poses[:, :3, 3] = rows[:, 9:]
            return poses
        matrices = np.array([values.atSimilarity3(k).matrix() for k in values.keys()])  # noqa: SIM118
        matrices = matrices.reshape(-1, 4, 4)  # [[R, t], [0, 1 / s]]
        matrices[:, :3] /= matrices[:, 3:, 3:]
        matrices[:, 3, 3] = 1.0
        return matrices
