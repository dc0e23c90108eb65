# SPDX-License-Identifier: Apache-2.0
"""Runs that `bench loops` measures: rendered rounds and recordings, mapped as they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.cli.console import progress
from mv_matcher_ros.cli.options import locate
from mv_matcher_ros.cli.place_sources import LOOPS, overlap_of, rendered_rounds
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array, Sensor, Trajectory
    from mv_matcher_ros.evaluation.place_recall import PlaceTruth
    from mv_matcher_ros.mapping.loop_closure import Revisit
    from mv_matcher_ros.mapping.loops import Loop
    from mv_matcher_ros.mapping.mapper import Mapper
    from mv_matcher_ros.mapping.pose_graph import PoseGraph
    from mv_matcher_ros.runner import Source

# Rounds of a rendered loop: the start is seen again for a while.
ROUNDS = 1.25


@dataclass(frozen=True)
class LoopSource:
    """A recording with truth that sees places again.

    Attributes:
        source: to run odometry on.
        depth: (H, W) depth of the first camera at a stamp; None where nobody knows.
    """

    source: Source
    depth: Callable[[int], NDArray[np.float32]] | None


def open_loop(name: str, sensor: Sensor, size: tuple[int, int], seed: int) -> LoopSource:
    """A rendered loop by name (`place_sources.LOOPS`), or a recording.

    Raises:
        SourceError: neither, or without ground truth.
    """
    if name not in LOOPS:
        return _recording(Path(name), sensor)
    deep, _ = rendered_rounds(name, 'rgbd', ROUNDS, size, seed)
    assert deep.truth is not None
    number = {int(stamp): n for n, stamp in enumerate(deep.truth.stamps_ns)}

    def depth(stamp_ns: int) -> NDArray[np.float32]:
        found = deep.frame(number[stamp_ns]).views[0].depth
        assert found is not None
        return found

    return LoopSource(rendered_rounds(name, sensor, ROUNDS, size, seed)[0], depth)


def _recording(path: Path, sensor: Sensor) -> LoopSource:
    from mv_matcher_ros.files.open import open_source

    opened = open_source(locate(path), sensor)
    if opened.truth is None:
        raise SourceError(f'{path}: no ground truth to compare with')
    return LoopSource(opened, None)


@dataclass(frozen=True)
class LoopRun:
    """A run of odometry and mapper.

    Attributes:
        odometry, on_map: poses of the frames.
        mapper: with its map.
        revisits: verified ones, in order.
        refused: reasons.
    """

    odometry: Trajectory
    on_map: Trajectory
    mapper: Mapper
    revisits: tuple[Revisit, ...]
    refused: tuple[str, ...]


def run_with_map(source: Source, settings: Settings) -> LoopRun:
    """Odometry and mapping over all frames, as `run --mapping` does it."""
    from mv_matcher_ros.cli.run_mapping import MappingSink, mapper_for
    from mv_matcher_ros.datatypes import Trajectory
    from mv_matcher_ros.files.prefetch import Prefetched
    from mv_matcher_ros.mapping.corrected import on_map
    from mv_matcher_ros.models.choice import Models
    from mv_matcher_ros.odometry.engine import OdometryEngine

    settings = settings.model_copy(update={'sensor': source.sensor})
    models = Models.of(settings)
    sink = MappingSink(mapper_for(settings, source.rig, models))
    engine = OdometryEngine(settings, source.rig, models=models)
    engine.report_keyframes(sink.take)
    stamps, poses = [], []
    with progress(f'{source.name}, {source.sensor}', len(source)) as advance:
        for frame in Prefetched(source):
            estimate = engine.process(frame)
            sink.write(frame, estimate)
            if estimate.odom_from_body is not None:
                stamps.append(frame.stamp_ns)
                poses.append(estimate.odom_from_body)
            advance()
    engine.finish()
    sink.work()
    sink.mapper.finish()
    odometry = Trajectory(np.array(stamps, np.int64), np.stack(poses))
    return LoopRun(
        odometry,
        on_map(odometry, sink.mapper.world, sink.run),
        sink.mapper,
        tuple(r for u in sink.updates for r in u.revisits),
        tuple(r for u in sink.updates for r in u.refused),
    )


def place_truth(
    run: LoopRun, opened: LoopSource, gap_s: float
) -> tuple[list[int], Array, PlaceTruth]:
    """Keys of the map's keyframes in order of time, their true poses, and what they share."""
    from mv_matcher_ros.cli.bench_recording import true_poses
    from mv_matcher_ros.evaluation.place_recall import PlaceTruth

    world = run.mapper.world
    keys = sorted(world.keyframes)
    stamps = [world.keyframes[key].stamp_ns for key in keys]
    truth = true_poses(opened.source, stamps)
    bodies = np.stack([truth[stamp] for stamp in stamps])
    camera = opened.source.rig.cameras[0]
    depths = [] if opened.depth is None else [opened.depth(stamp) for stamp in stamps]
    overlap = overlap_of(depths, camera, bodies @ camera.body_from_camera)
    return keys, bodies, PlaceTruth.of(overlap, np.array(stamps), gap_s)


def units_m(run: LoopRun, keys: Sequence[int], bodies: Array) -> list[float]:
    """Metres in the units of each keyframe: the map's scale by its alignment with the truth."""
    from mv_matcher_ros.evaluation.poses import align_positions

    world = run.mapper.world
    if world.metric:
        return [1.0] * len(keys)
    placed = [world.placed(key) for key in keys]
    places = np.stack([pose[:3, 3] for pose, _ in placed])
    scale, _ = align_positions(places, bodies[:, :3, 3], True)
    return [scale * unit for _, unit in placed]


def replayed(run: LoopRun, settings: Settings, false: Sequence[Loop]) -> PoseGraph:
    """The graph of a run once more: its odometry, what was verified, and false loops.

    Each loop comes with its later keyframe.
    """
    from mv_matcher_ros.mapping.loops import Loop
    from mv_matcher_ros.mapping.pose_graph import PoseGraph

    mapper = run.mapper
    metric = mapper.world.metric
    size = 6 if metric else 7
    known = set(mapper.pose_graph.poses()[0].tolist())
    true = [
        Loop(r.a, r.b, r.a_from_b, r.covariance[:size, :size], r.scale)
        for r in run.revisits
        if r.a in known and r.b in known
    ]
    steps: dict[int, Loop] = {}
    for measured in mapper.pose_graph.measurements():  # odometry comes first
        steps.setdefault(measured.b, measured)
    made = PoseGraph(settings.mapping.pose_graph, similarity=not metric)
    keys, poses, scales = mapper.pose_graph.poses()
    before = None
    for key, pose, scale in zip(keys.tolist(), poses, scales, strict=True):
        step = steps.get(key)
        if step is not None and step.a == before:
            made.add_odometry(step.a, key, step.a_from_b, step.covariance, step.scale)
        else:
            made.add_keyframe(key, pose, float(scale))
        made.add_loops([loop for loop in (*true, *false) if max(loop.a, loop.b) == key])
        made.update()
        before = key
    made.update(now=True)
    return made


def false_loops(
    run: LoopRun, keys: Sequence[int], truth: PlaceTruth, length: int, seed: int
) -> tuple[Loop, ...]:
    """As many loops as were verified, between keyframes that share no view.

    Each is the measurement of a true one at another place, with its covariance: what a matcher
    that mistakes one place for another would say.

    Args:
        run: with its map.
        keys: of keyframes in order of time, as `truth` numbers them.
        truth: what they share.
        length: so many keyframes in a row make one mistake together: over both ways one and the
            same transform lays the wrong place, so that loops and odometry along them agree.
        seed: of what is chosen.
    """
    from mv_matcher_ros.mapping.loops import Loop
    from mv_matcher_ros.mapping.pose_algebra import Algebra, split_scale, with_scale

    metric = run.mapper.world.metric
    algebra = Algebra(not metric)
    rng = np.random.default_rng([seed, length])
    graph_keys, poses, scales = run.mapper.pose_graph.poses()
    place = dict(zip(graph_keys.tolist(), with_scale(poses, scales), strict=True))
    nothing = np.argwhere(np.triu(truth.overlap == 0.0, length + 1))
    nothing = nothing[(nothing < len(keys) - length).all(1)]
    made: list[Loop] = []
    while len(nothing) and len(made) < len(run.revisits):
        a, b = nothing[rng.integers(len(nothing))]
        like = run.revisits[rng.integers(len(run.revisits))]
        covariance = like.covariance[: algebra.size, : algebra.size]
        one, other = place[keys[a]], place[keys[b]]
        told = with_scale(like.a_from_b, like.scale)
        right_from_wrong = one @ told @ algebra.inverse(other)
        for i in range(min(length, len(run.revisits) - len(made))):
            first, second = keys[a + i], keys[b + i]
            exact = algebra.inverse(place[first]) @ right_from_wrong @ place[second]
            noise = rng.multivariate_normal(np.zeros(algebra.size), covariance)
            rigid, scale = split_scale(exact @ algebra.exp(noise))
            unit = 1.0 if metric else float(scale)
            made.append(Loop(first, second, rigid, covariance, unit))
    return tuple(made)
