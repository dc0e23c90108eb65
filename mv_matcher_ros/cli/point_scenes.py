# SPDX-License-Identifier: Apache-2.0
"""Scenes for `bench points`: views to make a map of, others to be found in it, true poses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.files.recording import Recording
    from mv_matcher_ros.worlds.places import Place

SIZE = (640, 480)
# A query sees between these shares of what the keyframe sees that it was derived from.
_OVERLAP = (0.3, 0.9)
_LARGEST_TURN_RAD = 0.6
_TRIES = 60
# Of a recording: the first part is the map, the last one queries, and frames between are left out.
_MAP_SHARE, _QUERY_SHARE = 0.5, 0.4
# A true pose belongs to a frame within this time.
_NEAR_NS = 20_000_000


@dataclass(frozen=True)
class SceneView:
    """One view.

    Attributes:
        image: (H, W) or (H, W, 3) uint8.
        depth: (H, W) float32 metres, 0 where unknown: only to say which views see the same.
        world_from_camera: (4, 4) true.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    world_from_camera: Array


@dataclass(frozen=True)
class Scene:
    """Views of one camera: those of the map in order of time, and queries."""

    name: str
    camera: Camera
    mapped: Sequence[SceneView]
    queries: Sequence[SceneView]

    def overlap(self, query: int) -> Array:
        """(K,) how much a query has in common with each view of the map."""
        from mv_matcher_ros.worlds.covisibility import seen_share

        one = self.queries[query]
        matrix = np.stack([self.camera.matrix] * 2)
        found = []
        for other in self.mapped:
            poses = np.stack([one.world_from_camera, other.world_from_camera])
            forth = seen_share((one.depth, other.depth), matrix, poses)
            back = seen_share((other.depth, one.depth), matrix, poses[::-1])
            found.append(0.5 * (forth + back))
        return np.array(found)


def scenes_of(
    source: Path, scenes: int, keyframes: int, queries: int, seed: int
) -> Iterator[Scene]:
    """Scenes of a `.glb` world, or the one of a recording with depth and true poses.

    Raises:
        SourceError: neither of both, or no good views are found.
    """
    if source.suffix == '.glb':
        from mv_matcher_ros.worlds.mesh import load_mesh
        from mv_matcher_ros.worlds.places import MeshPlace

        yield from rendered(MeshPlace(load_mesh(source)), scenes, keyframes, queries, seed)
    else:
        yield _recorded(source, scenes * keyframes, scenes * queries)


def rendered(
    place: Place, scenes: int, keyframes: int, queries: int, seed: int
) -> Iterator[Scene]:
    """Short ways through a place, and queries around each, every one in a light of its own.

    Raises:
        SourceError: no good views are found.
    """
    from mv_matcher_ros.worlds.view_tuples import sample_tuple

    made = 0
    for attempt in range(_TRIES * scenes):
        rng = np.random.default_rng((seed, attempt))
        way = sample_tuple(place, SIZE, keyframes, 'video', rng)
        if way is None:
            continue
        fx, fy, cx, cy = way.intrinsics[0][[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        camera = Camera(*SIZE, (fx, fy, cx, cy))
        parts = zip(way.images, way.depths, way.world_from_camera, strict=True)
        mapped = [SceneView(*part) for part in parts]
        found = _queries(place, camera, mapped, queries, rng)
        if len(found) == queries:
            made += 1
            yield Scene(f'{place.name} {made}', camera, mapped, found)
        if made == scenes:
            return
    raise SourceError(f'{place.name}: {made} of {scenes} ways with views around were found')


def _queries(
    place: Place,
    camera: Camera,
    mapped: Sequence[SceneView],
    count: int,
    rng: np.random.Generator,
) -> list[SceneView]:
    from mv_matcher_ros.worlds.covisibility import seen_share
    from mv_matcher_ros.worlds.places import is_clear
    from mv_matcher_ros.worlds.view_motion import around
    from mv_matcher_ros.worlds.view_tuples import textured_share

    found: list[SceneView] = []
    matrix = np.stack([camera.matrix] * 2)
    for _ in range(_TRIES):
        parent = mapped[int(rng.integers(len(mapped)))]
        before = parent.world_from_camera
        pose = around(before, parent.depth, camera, _LARGEST_TURN_RAD, rng)
        if pose is None or not is_clear(place, pose[:3, 3]):
            continue
        if place.blocked(before[None, :3, 3], pose[None, :3, 3]).any():
            continue
        image, depth = place.lit(camera, pose, rng).look(camera, pose)
        shared = seen_share((parent.depth, depth), matrix, np.stack([before, pose]))
        if _OVERLAP[0] <= shared <= _OVERLAP[1] and textured_share(image) > 0.2:
            found.append(SceneView(image, depth, pose))
        if len(found) == count:
            break
    return found


def _recorded(source: Path, keyframes: int, queries: int) -> Scene:
    """The first part of a recording as the map, the last one as queries."""
    from mv_matcher_ros.cli.run import open_recording
    from mv_matcher_ros.config import Settings

    opened = open_recording(source, Settings(sensor='rgbd'), start=0, end=None, stride=1)
    if opened.truth is None:
        raise SourceError(f'{source}: no true poses to compare with')
    count = len(opened)
    last = int(_MAP_SHARE * count)
    first = int((1.0 - _QUERY_SHARE) * count)
    of_map = np.unique(np.linspace(0, last - 1, min(keyframes, last)).astype(int))
    asked = np.unique(np.linspace(first, count - 1, min(queries, count - first)).astype(int))
    views = _views(opened, {*of_map.tolist(), *asked.tolist()})
    return Scene(
        opened.name,
        opened.rig.cameras[0],
        [views[number] for number in of_map.tolist() if number in views],
        [views[number] for number in asked.tolist() if number in views],
    )


def _views(opened: Recording, wanted: set[int]) -> dict[int, SceneView]:
    """Views of frames that have depth and a true pose, by number."""
    truth = opened.truth
    assert truth is not None
    mount = opened.rig.cameras[0].body_from_camera
    found = {}
    for number, frame in enumerate(opened):
        if number not in wanted or frame.views[0].depth is None:
            continue
        apart = np.abs(truth.stamps_ns - frame.stamp_ns)
        nearest = int(apart.argmin())
        if apart[nearest] <= _NEAR_NS:
            depth = np.nan_to_num(np.asarray(frame.views[0].depth, np.float32))
            pose = truth.world_from_body[nearest] @ mount
            found[number] = SceneView(np.array(frame.views[0].image), depth, pose)
    return found
