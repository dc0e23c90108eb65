# SPDX-License-Identifier: Apache-2.0
"""Keyframes for `bench places`, of recordings and of rendered loops, and which see the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mv_matcher_ros.datatypes import Array, Camera, Frame, Sensor
    from mv_matcher_ros.worlds.mesh import MeshWorld
    from mv_matcher_ros.worlds.recording import SyntheticSource

ROUNDS = 2
LOOPS = ('room_loop', 'corridor_loop', 'street_drive')
# Overlap is counted on every so many pixels of the depth images.
_STEP = 4
# Views farther from each other have nothing in common.
_FAR_M = 30.0
# Pictures on the walls of a mesh world.
_PICTURES = 80


@dataclass(frozen=True)
class PlaceSource:
    """Frames with poses.

    Attributes:
        name: of the recording or loop.
        camera: the first one.
        frames: of the keyframes, in order of time.
        world_from_camera: (N, 4, 4).
        count: how many there are.
    """

    name: str
    camera: Camera
    frames: Iterator[Frame]
    world_from_camera: Array
    count: int


def open_places(
    source: str, every_s: float, size: tuple[int, int], photos: Path | None, seed: int
) -> PlaceSource:
    """A recording; a loop by name (`LOOPS`), twice round; or a walk through a .glb world.

    Args:
        source: path or name.
        every_s: time between keyframes.
        size: width and height of what is rendered.
        photos: folder of photographs; the held-out ones are hung on the walls of a .glb world.
        seed: of what is rendered.

    Raises:
        SourceError: neither of these, or without ground truth.
    """
    if source in LOOPS:
        return _loop(source, every_s, size, seed)
    if source.endswith('.glb'):
        return _walk(Path(source), every_s, size, photos, seed)
    return _recording(Path(source), every_s)


def loop_preset(name: str) -> Callable[..., SyntheticSource]:
    """The preset of a loop by name (`LOOPS`)."""
    from mv_matcher_ros.worlds import presets

    return {
        'room_loop': presets.room_loop,
        'corridor_loop': presets.corridor_loop,
        'street_drive': presets.street_drive,
    }[name]


def rendered_rounds(
    name: str, sensor: Sensor, rounds: float, size: tuple[int, int], seed: int
) -> tuple[SyntheticSource, float]:
    """So many rounds of a loop by name (`LOOPS`), and the time of one, s."""
    from mv_matcher_ros.worlds.trajectories import Loop, Shaken

    make = loop_preset(name)
    once = make(sensor, size=size, seed=seed)
    assert isinstance(once.path, Shaken)
    assert isinstance(once.path.path, Loop)
    round_s = once.path.path.round_s
    return make(sensor, int(rounds * round_s * once.rate_hz), size, seed), round_s


def _loop(name: str, every_s: float, size: tuple[int, int], seed: int) -> PlaceSource:
    import numpy as np

    made, _ = rendered_rounds(name, 'rgbd', ROUNDS, size, seed)
    chosen = np.arange(0, len(made), max(1, round(every_s * made.rate_hz)))
    camera = made.rig.cameras[0]
    assert made.truth is not None
    poses = made.truth.world_from_body[chosen] @ camera.body_from_camera
    frames = (made.frame(int(index)) for index in chosen)
    return PlaceSource(name, camera, frames, poses, len(chosen))


def _walk(
    path: Path, every_s: float, size: tuple[int, int], photos: Path | None, seed: int
) -> PlaceSource:
    from mv_matcher_ros.worlds.mesh import load_mesh
    from mv_matcher_ros.worlds.mesh_walk import MeshWalk
    from mv_matcher_ros.worlds.presets import make_rig

    world = _furnished(load_mesh(path), photos, seed)
    made = MeshWalk(world, make_rig('mono', size).cameras[0], 1.0 / every_s, seed=seed)
    assert made.truth is not None
    frames = (made.frame(index) for index in range(len(made)))
    name = f'{made.name}_{seed}'
    return PlaceSource(name, made.rig.cameras[0], frames, made.truth.world_from_body, len(made))


def _furnished(world: MeshWorld, photos: Path | None, seed: int) -> MeshWorld:
    """With a ceiling, and with photos that no training has seen on its plain walls."""
    import numpy as np

    from mv_matcher_ros.training.data.tuple_sources import TupleSources, read_photo
    from mv_matcher_ros.worlds.pictures import hang_pictures, roofed

    rng = np.random.default_rng(seed)
    world = roofed(world, rng)
    if photos is None:
        return world
    held_out = TupleSources.find(None, photos).photos_of('val')
    images = [image for image in map(read_photo, held_out) if image.ndim == 3]
    return hang_pictures(world, images, _PICTURES, rng)


def _recording(path: Path, every_s: float) -> PlaceSource:
    import numpy as np

    from mv_matcher_ros.cli.bench_recording import true_poses
    from mv_matcher_ros.cli.options import locate
    from mv_matcher_ros.files.open import open_source

    opened = open_source(locate(path))
    if opened.truth is None:
        raise SourceError(f'{path}: no ground truth to compare with')
    frames: list[Frame] = []
    for frame in opened:
        if not frames or frame.stamp_ns - frames[-1].stamp_ns >= round(every_s * 1e9) - 1_000_000:
            frames.append(frame)
    bodies = true_poses(opened, [frame.stamp_ns for frame in frames])
    camera = opened.rig.cameras[0]
    poses = np.stack([bodies[frame.stamp_ns] @ camera.body_from_camera for frame in frames])
    return PlaceSource(opened.name, camera, iter(frames), poses, len(frames))


def overlap_of(
    depths: list[NDArray[np.float32]], camera: Camera, world_from_camera: Array
) -> NDArray[np.float32]:
    """(N, N) share of the view that keyframes have in common, mean of both ways; by place and
    direction alone where there are no depths (empty list)."""
    import numpy as np

    from mv_matcher_ros.evaluation.place_recall import overlap_without_depth
    from mv_matcher_ros.worlds.covisibility import seen_share

    if not depths:
        return overlap_without_depth(world_from_camera)
    first = _STEP // 2
    small = [np.ascontiguousarray(depth[first::_STEP, first::_STEP]) for depth in depths]
    matrix = camera.matrix
    matrix[:2, 2] -= first
    matrix[:2] /= _STEP
    intrinsics = np.stack([matrix, matrix])
    count = len(small)
    found = np.eye(count, dtype=np.float32)
    for a in range(count):
        for b in range(a):
            poses = world_from_camera[[a, b]]
            apart = float(np.linalg.norm(poses[0, :3, 3] - poses[1, :3, 3]))
            if apart > _FAR_M:
                continue
            there = seen_share((small[a], small[b]), intrinsics, poses)
            back = seen_share((small[b], small[a]), intrinsics, poses[::-1])
            found[a, b] = found[b, a] = 0.5 * (there + back)
    return found
