# SPDX-License-Identifier: Apache-2.0
"""Fixed bundle adjustment problems, solved by this package and by gtsam from the same start."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mv_matcher_ros.datatypes import Array

if TYPE_CHECKING:
    from mv_matcher_ros.geometry.reprojection import Problem

T = TypeVar('T')
SIZES = ((5, 300), (10, 1000), (20, 3000))
FOCAL_PX = 500.0
SIGMA_PX = 0.7  # of the measurements, and what both solvers believe
MAX_ITERATIONS = 50
RELATIVE_DECREASE = 1e-6  # where both solvers stop


@dataclass(frozen=True)
class Scene:
    """One problem in plain numbers.

    Attributes:
        world_from_camera: (V, 4, 4) start poses; the first two are exact and stay fixed.
        points: (P, 3) start points, metres.
        pose_index, point_index: (O,) which pose saw which point.
        measured: (O, 2) normalised image coordinates.
    """

    world_from_camera: Array
    points: Array
    pose_index: Any
    point_index: Any
    measured: Array

    @property
    def views_per_point(self) -> float:
        """Mean track length: the visibility of the problem."""
        return len(self.pose_index) / len(self.points)


@dataclass(frozen=True)
class Timing:
    """One solver on one problem: median time, and where it started and ended."""

    solver: str
    time_ms: float
    iterations: int
    start_cost: float
    final_cost: float


def make_scene(poses: int, points: int, seed: int = 0) -> Scene:
    """Cameras that pass a slab of points sideways; 3 to 10 cameras in a row see each point."""
    random = np.random.default_rng(seed)
    truth = np.tile(np.eye(4), (poses, 1, 1))
    truth[:, 0, 3] = 0.3 * np.arange(poses)
    truth[:, 2, 3] = 0.1 * np.sin(np.arange(poses))
    length = random.integers(3, min(10, poses) + 1, points)
    first = (random.random(points) * (poses - length + 1)).astype(np.int64)
    pose_index = np.concatenate([np.arange(f, f + n) for f, n in zip(first, length, strict=True)])
    point_index = np.repeat(np.arange(points), length)
    middle = truth[first + length // 2, 0, 3]
    depth = random.uniform(3.0, 12.0, points)
    world = np.column_stack(
        [middle + depth * random.uniform(-0.5, 0.5, points),
         depth * random.uniform(-0.4, 0.4, points), depth]
    )  # fmt: skip
    seen = world[point_index] - truth[pose_index, :3, 3]  # the cameras are not turned
    noise = random.normal(0.0, SIGMA_PX / FOCAL_PX, (len(seen), 2))
    start = truth.copy()
    start[2:, :3, 3] += random.normal(0.0, 0.03, (poses - 2, 3))
    start[2:, :3, :3] = [_small_rotation(random.normal(0.0, 0.01, 3)) for _ in range(poses - 2)]
    return Scene(
        start,
        world * (1.0 + random.normal(0.0, 0.05, (points, 1))),
        pose_index,
        point_index,
        seen[:, :2] / seen[:, 2:] + noise,
    )


def _small_rotation(vector: Array) -> Array:
    import cv2

    return np.asarray(cv2.Rodrigues(vector)[0], dtype=np.float64)


def to_problem(scene: Scene) -> Problem:
    """The scene as this package's solver takes it, in float64."""
    import torch

    from mv_matcher_ros.geometry.reprojection import Problem

    def batch(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))[None]

    fixed = np.arange(len(scene.world_from_camera)) < 2
    return Problem(
        batch(scene.world_from_camera),
        batch(scene.points),
        batch(scene.pose_index),
        batch(scene.point_index),
        batch(scene.measured),
        torch.full((1, *scene.measured.shape), FOCAL_PX / SIGMA_PX, dtype=torch.float64),
        batch(fixed),
    )


def time_ours(scene: Scene, repeats: int) -> Timing:
    """This package's solver on `scene`."""
    from mv_matcher_ros.geometry.bundle_adjustment import solve

    problem = to_problem(scene)
    elapsed, solution = median_ms(
        lambda: solve(problem, MAX_ITERATIONS, RELATIVE_DECREASE), repeats
    )
    return Timing(
        'mv_matcher_ros',
        elapsed,
        solution.iterations,
        float(solution.initial_cost[0]),
        float(solution.cost[0]),
    )


def time_gtsam(scene: Scene, repeats: int) -> Timing | None:
    """gtsam's Levenberg-Marquardt on `scene`, building the graph not counted; None without it."""
    if importlib.util.find_spec('gtsam') is None:
        return None
    import gtsam

    graph, values = _gtsam_graph(gtsam, scene)
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setMaxIterations(MAX_ITERATIONS)
    parameters.setRelativeErrorTol(RELATIVE_DECREASE)
    parameters.setAbsoluteErrorTol(0.0)

    def optimise() -> tuple[Any, int]:
        optimizer = gtsam.LevenbergMarquardtOptimizer(graph, values, parameters)
        return optimizer.optimize(), optimizer.iterations()

    elapsed, (result, iterations) = median_ms(optimise, repeats)
    return Timing('gtsam', elapsed, iterations, graph.error(values), graph.error(result))


def _gtsam_graph(gtsam: Any, scene: Scene) -> tuple[Any, Any]:
    pose_key, point_key = gtsam.symbol_shorthand.X, gtsam.symbol_shorthand.L
    graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    calibration = gtsam.Cal3_S2(1.0, 1.0, 0.0, 0.0, 0.0)  # the measurements are normalised
    noise = gtsam.noiseModel.Isotropic.Sigma(2, SIGMA_PX / FOCAL_PX)
    for pose, point, xy in zip(
        scene.pose_index.tolist(), scene.point_index.tolist(), scene.measured, strict=True
    ):
        graph.add(
            gtsam.GenericProjectionFactorCal3_S2(
                xy, noise, pose_key(pose), point_key(point), calibration
            )
        )
    for i, matrix in enumerate(scene.world_from_camera):
        values.insert(pose_key(i), gtsam.Pose3(matrix))
        if i < 2:
            held = gtsam.noiseModel.Constrained.All(6)
            graph.add(gtsam.PriorFactorPose3(pose_key(i), gtsam.Pose3(matrix), held))
    for i, point in enumerate(scene.points):
        values.insert(point_key(i), point)
    return graph, values


def median_ms(function: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median time of a function, and its last result."""
    result = function()  # caches and thread pools warm up outside the clock
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times)), result
