# SPDX-License-Identifier: Apache-2.0
"""The back-end: keyframes of the odometry in, a map that hangs together out.

Each keyframe is put behind the one before it, compared with all places seen, and where it shows
one of them, verified and tied to it; the graph then moves what has to move. Nothing here is needed
to publish the pose of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Rig
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.mapping.culling import cull
from mv_matcher_ros.mapping.insertion import Insertion
from mv_matcher_ros.mapping.loop_closure import LoopVerifier, Refusal, Revisit, similarity
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.map import Edge, Map
from mv_matcher_ros.mapping.map_adjustment import adjust_map
from mv_matcher_ros.mapping.map_matching import MapMatcher
from mv_matcher_ros.mapping.place_index import PlaceIndex
from mv_matcher_ros.mapping.places import PlaceCandidate, PlaceRecogniser
from mv_matcher_ros.mapping.pose_graph import GraphUpdate, PoseGraph
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.place_descriptor import PlaceDescriber
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord

# Variance that every step has at least: the graph wants covariances that can be inverted.
LEAST_VARIANCE = 1e-10
# Keyframes of a map that was loaded are no neighbours in time of what comes, also where a
# recording is played again.
LONG_AGO_NS = -(1 << 62)
# The graph begins again from what the map has kept once it has so many times more keyframes than
# that, and at least so many more.
GONE_SHARE, GONE_LEAST = 2.0, 200
# Keyframes after which a place is looked for again, where there is no time.
FOUND_KEYFRAMES = 3
# So many verified loops may wait to be believed for what they say of landmarks.
MOST_WAITING = 1000
# A step over keyframes that were lost on the way is so many times less certain (variance).
LOST_BETWEEN = 9.0


@dataclass(frozen=True)
class MapUpdate:
    """What a keyframe changed.

    Attributes:
        key: of the keyframe.
        map_from_odom: (4, 4) rigid; takes what the odometry publishes to the map, exactly so at
            this keyframe. Without metric scale lengths in odom may be others than on the map:
            away from the keyframe the error is the difference in scale times the way since.
        scale: units of the odometry on the map; 1 for metric sensors.
        revisits: places that it shows, verified.
        refused: candidates that were not, and why.
        taken, dropped: loops that are believed now, or no longer.
    """

    key: int
    map_from_odom: Array
    scale: float
    revisits: tuple[Revisit, ...]
    refused: tuple[str, ...]
    taken: int
    dropped: int


class Mapper:
    """Makes a map of what the odometry reports.

    Args:
        settings: all settings.
        rig: calibrated cameras.
        models: those of the odometry; the graph network verifies places.
        describer: of places.
        world: a map to go on with; None: an empty one.

    Raises:
        MissingDependencyError: gtsam is not installed.
        ModelError: the map was made with another detector, sensor or camera.
    """

    def __init__(
        self,
        settings: Settings,
        rig: Rig,
        models: Models,
        describer: PlaceDescriber,
        world: Map | None = None,
    ) -> None:
        self.world = Map(rig, settings.sensor, detector_of(models)) if world is None else world
        check_fits(self.world, settings, rig, models)
        self._settings = settings.mapping
        self._describer = describer
        self._insertion = Insertion(rig.cameras[0], settings.mapping.keypoints)
        matcher = MapMatcher(models.matcher, rig.cameras[0])
        self._verifier = LoopVerifier(settings.mapping.loops, matcher, rig.cameras[0])
        self._measured: dict[tuple[int, int], Revisit] = {}
        self._last: tuple[int, KeyframeRecord] | None = None
        self._segment = -1
        self._found_at = -FOUND_KEYFRAMES
        self._passed: list[int] = []  # since then, without a look
        self._spare: set[int] = set()
        self._first_key = self.world.next_key
        self._begin()

    def _begin(self) -> None:
        """Graph and index of what the map holds.

        What was measured is taken to be what the map says by now, and as certain as it was: the
        graph is at its optimum, and stays there until a new loop moves it (factors recovered at
        the estimate: Mazuran et al., IJRR 2016, without their choice of covariances).
        """
        world, settings = self.world, self._settings
        self._graph = PoseGraph(settings.pose_graph, similarity=not world.metric)
        self._index = PlaceIndex(self._describer.size)
        self._recogniser = PlaceRecogniser(self._index, settings.places)
        steps = {edge.b: edge for edge in world.edges if not edge.loop}
        for key, keyframe in world.keyframes.items():
            step = steps.get(key)
            if step is None:
                self._graph.add_keyframe(key, *world.placed(key))
            else:
                # Maps of before say nothing of the drift of the scale.
                size = 7 if step.covariance[6, 6] > 0.0 else 6
                pose, scale = world.between(step.a, key)
                self._graph.add_odometry(step.a, key, pose, step.covariance[:size, :size], scale)
            stamp_ns = keyframe.stamp_ns if key >= self._first_key else LONG_AGO_NS
            self._index.append(key, stamp_ns, torch.tensor(keyframe.place))
        size = 6 if world.metric else 7
        loops = [
            Loop(edge.a, edge.b, pose, edge.covariance[:size, :size], scale)
            for edge in world.edges
            if edge.loop
            for pose, scale in [world.between(edge.a, edge.b)]
        ]
        self._graph.add_loops(loops, trusted=True)
        self._graph.update(now=True)

    # ------------------------------------------------------------- one keyframe

    def add(self, record: KeyframeRecord, run: str = '', hurry: bool = False) -> MapUpdate | None:
        """A keyframe of the odometry, in order of time.

        Args:
            run: of the odometry, where several make one map: segments are numbered in each.
            hurry: others wait; where a place was found a moment ago, none is looked for.

        Returns:
            None for a keyframe that the map has already.
        """
        origin = f'{run}/{record.segment}'
        if self._knows(record, origin):
            return None
        place = self._describer.describe(record.observation.features)
        follows = self._last is not None and self.world.origin.get(self._segment) == origin
        if not follows:
            self._recogniser.forget()
            self._found_at, self._passed = -FOUND_KEYFRAMES, []
            self._segment = self.world.next_segment
            self.world.origin[self._segment] = origin
        candidates = self._recogniser.recognise(place, record.stamp_ns)
        key = self.world.next_key
        self._tie(key, record, follows)
        pose, scale = self._graph.pose(key)
        keyframe = self._insertion.add(
            self.world, record, self._segment, similarity(pose, scale), place.numpy()
        )
        self._index.append(key, keyframe.stamp_ns, place)
        self._last = key, record
        if hurry and key - self._found_at < FOUND_KEYFRAMES:
            candidates = []
            self._passed.append(key)
        revisits, refused = self._revisits(key, candidates)
        believed = self._graph.add_loops([_loop(found, self.world.metric) for found in revisits])
        if any(believed):
            # What was passed by since the last place that was found is known, too.
            if key - self._found_at <= FOUND_KEYFRAMES:
                self._spare.update(self._passed)
            self._found_at, self._passed = key, []
        update = self._settle(self._graph.update())
        if (key + 1) % self._settings.culling.every == 0:
            self._cull()
        return MapUpdate(
            key, self.map_from_odom, self._scale_of(key), tuple(revisits), tuple(refused),
            len(update.taken), len(update.dropped),
        )  # fmt: skip

    def _cull(self) -> None:
        """Let go of what the map does not need. The graph keeps it for a while: it costs little
        there, and holds the rest."""
        gone = cull(self.world, self._settings.culling, self._spare)
        self._spare.difference_update(gone)
        for key in gone:
            self._index.remove(key)
        if gone:
            self._write_loops()
        if len(self._graph) > GONE_SHARE * len(self.world) + GONE_LEAST:
            self._begin_again()

    def _begin_again(self) -> None:
        """A graph, an index and landmarks of what is left only: in a place that is known they do
        not grow for ever."""
        self.settle()
        self._insertion.renumbered(self.world.compact())
        self._measured = {}
        self._begin()

    def _write_loops(self) -> None:
        """The loops of the graph between the keyframes that the map still has."""
        loops = self._graph.loops_among(list(self.world.keyframes))
        steps = [edge for edge in self.world.edges if not edge.loop]
        self.world.edges = [*steps, *(_edge(loop) for loop in loops)]

    def settle(self) -> None:
        """Work in every loop that waits, and every move too small to be worth it: the map is then
        all that is known."""
        self._settle(self._graph.update(now=True))
        self._move(*self._graph.poses())

    def finish(self) -> None:
        """Work in every loop that waits, and adjust the map: there will be no more keyframes."""
        self.settle()
        self._cull()
        if self._settings.adjustment.enabled and self.world.keyframes:
            adjust_map(self.world, self._settings.adjustment)

    @property
    def pose_graph(self) -> PoseGraph:
        """Keyframes, odometry and loops that are believed; before the map was adjusted."""
        return self._graph

    @property
    def map_from_odom(self) -> Array:
        """(4, 4) rigid, at the newest keyframe; the identity before there is one."""
        if self._last is None:
            return np.eye(4)
        key, record = self._last
        pose, _ = self.world.placed(key)
        return pose @ np.linalg.inv(record.odom_from_body.numpy())

    def _knows(self, record: KeyframeRecord, origin: str) -> bool:
        """Whether the map has it; what comes next then goes on from there."""
        if self._last is not None and self._last[1].stamp_ns < record.stamp_ns:
            return False
        of_it = [
            keyframe
            for keyframe in self.world.keyframes.values()
            if self.world.origin.get(keyframe.segment) == origin
        ]
        newest = max(of_it, key=lambda keyframe: keyframe.stamp_ns, default=None)
        if newest is None or newest.stamp_ns < record.stamp_ns:
            return False
        # Those before it were there, too, even if they have gone since.
        if newest.stamp_ns == record.stamp_ns and newest.key == self.world.next_key - 1:
            self._last, self._segment = (newest.key, record), newest.segment
        return True

    def _scale_of(self, key: int) -> float:
        return self.world.placed(key)[1]

    def _tie(self, key: int, record: KeyframeRecord, follows: bool) -> None:
        """The keyframe's place in the graph: behind the last one, or where odom has it."""
        if not follows:
            start = self.map_from_odom @ record.odom_from_body.numpy()
            scale = 1.0 if self._last is None else self._scale_of(self._last[0])
            self._graph.add_keyframe(key, start, scale)
            return
        assert self._last is not None
        before, last = self._last
        step = se3.inverse(last.segment_from_body) @ record.segment_from_body
        covariance = record.step_covariance.numpy() + self._unknown(step.numpy())
        if record.before_ns != last.stamp_ns:
            covariance = LOST_BETWEEN * covariance
        self._graph.add_odometry(before, key, step.numpy(), covariance)
        whole = np.zeros((7, 7))
        whole[:6, :6] = covariance
        if not self.world.metric:
            whole[6, 6] = self._settings.pose_graph.log_scale_sigma**2
        self.world.edges.append(Edge(before, key, step.numpy(), whole, False))

    def _unknown(self, step: Array) -> Array:
        """(6, 6) what a step of the odometry errs by beside what its covariance says."""
        settings = self._settings.pose_graph
        length = settings.drift_share * float(np.linalg.norm(step[:3, 3]))
        turn = np.radians(settings.drift_deg)
        return np.diag([length**2] * 3 + [turn**2] * 3) + LEAST_VARIANCE * np.eye(6)

    def _revisits(
        self, key: int, candidates: Sequence[PlaceCandidate]
    ) -> tuple[list[Revisit], list[str]]:
        """The first candidate that is verified, and why others were not."""
        refused = []
        for candidate in [c for c in candidates if c.accepted][: self._settings.loops.tried]:
            keys = [k for k in candidate.keys if k in self.world.keyframes]
            if not keys:
                continue
            found = self._verifier.verify(self.world, key, keys)
            if isinstance(found, Refusal):
                refused.append(f'{key} -> {keys[0]}: {found.reason}')
                continue
            self._measured[found.a, found.b] = found
            if len(self._measured) > MOST_WAITING:
                del self._measured[next(iter(self._measured))]
            return [found], refused
        return [], refused

    def _move(self, keys: NDArray[np.int64], poses: Array, scales: Array) -> None:
        """Keyframes that the map still has to where the graph has them."""
        self.world.move({
            int(key): similarity(pose, float(scale))
            for key, pose, scale in zip(keys, poses, scales, strict=True)
            if int(key) in self.world.keyframes
        })  # fmt: skip

    def _settle(self, update: GraphUpdate) -> GraphUpdate:
        """Move the map, and make landmarks one that loops say are the same."""
        self._move(update.keys, update.new, update.new_scale)
        known = self.world.keyframes
        if update.dropped or any({loop.a, loop.b} - known.keys() for loop in update.taken):
            self._write_loops()
        else:
            self.world.edges += [_edge(loop) for loop in update.taken]
        pairs: list[tuple[int, int]] = []
        for loop in update.taken:
            found = self._measured.pop((loop.a, loop.b), None)
            if found is not None:
                there = (self.world.landmarks.anchor[found.same] >= 0).all(1)
                pairs += [(int(one), int(other)) for one, other in found.same[there]]
        if pairs:
            self._insertion.fused(self.world.fuse(pairs))
        return update


def _loop(found: Revisit, metric: bool) -> Loop:
    covariance = found.covariance[:6, :6] if metric else found.covariance
    return Loop(found.a, found.b, found.a_from_b, covariance, found.scale)


def _edge(loop: Loop) -> Edge:
    covariance, size = np.zeros((7, 7)), len(loop.covariance)
    covariance[:size, :size] = loop.covariance
    return Edge(loop.a, loop.b, similarity(loop.a_from_b, loop.scale), covariance, True)


def detector_of(models: Models) -> str:
    """Hash of the network whose descriptors features have, empty where there is none."""
    use = models.networks.get('detector')
    return '' if use is None else use.describes


def check_fits(world: Map, settings: Settings, rig: Rig, models: Models) -> None:
    """Refuse a map of another sensor, camera or detector.

    Raises:
        ModelError: says what differs.
    """
    if world.sensor != settings.sensor and 'mono' in (world.sensor, settings.sensor):
        raise ModelError(
            f'the map was made with sensor {world.sensor}, this is {settings.sensor}: one of them '
            'has no metric scale'
        )
    detector = detector_of(models)
    if world.detector != detector:
        raise ModelError(
            f'the map holds features of a detector with the hash {world.detector[:12] or "none"}, '
            f'this one has {detector[:12] or "none"}: load the map with the detector it was made '
            'with'
        )
    one, other = world.rig.cameras[0], rig.cameras[0]
    if (one.width, one.height) != (other.width, other.height):
        raise ModelError(
            f'the map was made with images of {one.width}x{one.height}, '
            f'this camera has {other.width}x{other.height}'
        )
