# SPDX-License-Identifier: Apache-2.0
"""The map that `run --mapping` makes beside the odometry."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv_matcher_ros.cli.console import say, warn, write_text
from mv_matcher_ros.errors import MvMatcherError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Estimate, Frame, Rig
    from mv_matcher_ros.mapping.map import Map
    from mv_matcher_ros.mapping.mapper import Mapper, MapUpdate
    from mv_matcher_ros.models.choice import Models
    from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord

TRAJECTORY, SUMMARY, GRAPH = 'map.tum', 'map.json', 'graph.g2o'


class MappingSink:
    """Gives the records of the odometry to the mapper, after the frame that brought them.

    Args:
        mapper: makes the map.
    """

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper
        mapper.world.gone = {}  # for the poses of all frames
        # A recording that is run twice makes two parts of a map.
        self.run = uuid.uuid4().hex
        self.updates: list[MapUpdate] = []
        self.milliseconds: list[float] = []
        self._waiting: list[KeyframeRecord] = []

    def take(self, record: KeyframeRecord) -> None:
        """What the odometry calls: it does not wait for the map."""
        self._waiting.append(record)

    def write(self, frame: Frame, estimate: Estimate) -> None:
        """Work on what came with the frame."""
        self.work()

    def work(self) -> None:
        """Work on what waits."""
        waiting, self._waiting = self._waiting, []
        for record in waiting:
            begin = time.perf_counter()
            update = self.mapper.add(record, self.run)
            if update is not None:
                self.updates.append(update)
            self.milliseconds.append((time.perf_counter() - begin) * 1e3)

    def close(self) -> None:
        """Nothing: what the odometry still has comes later."""


def mapper_for(settings: Settings, rig: Rig, models: Models, world: Map | None = None) -> Mapper:
    """A mapper with the networks of the odometry, going on with a map if there is one."""
    from mv_matcher_ros.mapping.mapper import Mapper
    from mv_matcher_ros.models.choice import place_describer

    return Mapper(settings, rig, models, place_describer(settings, models), world)


def summary_of(sink: MappingSink) -> dict[str, Any]:
    """What a run says of its map."""
    world, updates = sink.mapper.world, sink.updates
    loops = [edge for edge in world.edges if edge.loop]
    ordered = sorted(sink.milliseconds)
    return {
        'keyframes': len(world),
        'landmarks': int((world.landmarks.anchor[: len(world.landmarks)] >= 0).sum()),
        'loops': [[world.keyframes[e.a].stamp_ns, world.keyframes[e.b].stamp_ns] for e in loops],
        'verified': sum(len(u.revisits) for u in updates),
        'refused': [reason for u in updates for reason in u.refused],
        'keyframe_ms': {
            'p50': ordered[len(ordered) // 2], 'max': ordered[-1],
        } if ordered else {},
    }  # fmt: skip


def write_map(sink: MappingSink, out: Path, folder: Path | None) -> None:
    """What the run made: `map.tum`, `map.json` and `graph.g2o` (metric sensors: that form has no
    scales) in the run folder, the map where it is wanted.

    Args:
        sink: which has all keyframes but those that the odometry reported at its end.
        out: run folder, with the published poses.
        folder: of the map; None: it is not kept.
    """
    from mv_matcher_ros.files.results import ODOMETRY
    from mv_matcher_ros.files.trajectory import read_tum, write_tum
    from mv_matcher_ros.mapping.corrected import on_map
    from mv_matcher_ros.mapping.g2o import write_g2o
    from mv_matcher_ros.mapping.graph_files import file_from_graph
    from mv_matcher_ros.mapping.map_folder import save_map

    sink.work()
    sink.mapper.finish()
    write_text(out / SUMMARY, json.dumps(summary_of(sink), indent=2) + '\n')
    if sink.mapper.world.metric and len(sink.mapper.world):
        write_g2o(out / GRAPH, file_from_graph(sink.mapper.pose_graph))
    if folder is not None:
        save_map(sink.mapper.world, folder)
        say(f'map: {folder}')
    try:
        write_tum(out / TRAJECTORY, on_map(read_tum(out / ODOMETRY), sink.mapper.world, sink.run))
    except MvMatcherError as error:
        warn(f'no {TRAJECTORY}: {error}')
