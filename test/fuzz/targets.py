# SPDX-License-Identifier: Apache-2.0
"""The readers that are fuzzed: what each is given, and what is done with what it returns."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import contents
import numpy as np
import recordings
from mutations import mutated

from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.files import trajectory
from mv_matcher_ros.files.calibration import read_calibration
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.truth import read_truth
from mv_matcher_ros.mapping.g2o import read_g2o
from mv_matcher_ros.mapping.map_folder import load_map, save_map
from mv_matcher_ros.models import weights
from mv_matcher_ros.ros.keyframe_messages import keyframe_from_message

Tree = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: makes sound inputs, files by path, with the help of an empty folder.
        read: reads what lies in a folder, and uses it; the second folder is for what it writes.
        made: makes inputs that are unsound on purpose; every third one is of these.
        allocates: may try to allocate what a file says, as long as it does not use it: true where
            another package does the reading.
    """

    seeds: Callable[[Path], list[Tree]]
    read: Callable[[Path, Path], None]
    made: Callable[[random.Random], Tree] | None = None
    allocates: bool = False


@dataclass
class Inputs:
    """The inputs of a target, numbered: number and seed decide what one is."""

    name: str
    seed: int
    trees: list[Tree] = field(default_factory=list)

    def __post_init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.trees = TARGETS[self.name].seeds(Path(folder))

    def __getitem__(self, number: int) -> Tree:
        if number < len(self.trees):
            return self.trees[number]
        rng = random.Random(f'{self.name} {self.seed} {number}')
        made = TARGETS[self.name].made
        if made is not None and number % 3 == 0:
            tree = made(rng)
            if rng.random() < 0.8:
                return tree
        else:
            tree = dict(rng.choice(self.trees))
        names = sorted(tree)
        for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
            if rng.random() < 0.02:
                del tree[name]
            else:
                tree[name] = mutated(name, tree[name], rng)
        return tree


def read_bag(folder: Path, _: Path) -> None:
    """Every frame of what opens."""
    source = open_source(folder / 'bag')
    for frame in islice(source, 50):
        assert all(view.image.dtype == np.uint8 for view in frame.views)
    if source.truth is not None:
        assert np.isfinite(source.truth.world_from_body).all()


def read_map(folder: Path, out: Path) -> None:
    """A map that loads can be asked, shrunk and saved."""
    world = load_map(folder / 'map')
    for key, keyframe in islice(world.keyframes.items(), 5):
        world.placed(key)
        world.points_seen_by(key)
        world.neighbours(key, 3)
        keyframe.features((640, 480))
    world.remove(list(world.keyframes)[:1])
    world.compact()
    save_map(world, out / 'map')
    save_map(world, folder / 'map')


def read_weights(folder: Path, _: Path) -> None:
    """Each file by the loader of its name."""
    for path in sorted(folder.iterdir()):
        weights.read_notes(path)
        getattr(weights, f'load_{path.stem}')(path)


def read_calibrations(folder: Path, _: Path) -> None:
    """One file, or one a camera."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    rig = read_calibration(files or folder / 'cal.yaml').rig
    for camera in rig.cameras:
        assert np.isfinite(camera.matrix).all()
        assert np.isfinite(camera.distortion).all()
        assert np.isfinite(camera.body_from_camera).all()


def read_trajectories(folder: Path, _: Path) -> None:
    """By the reader that the name asks for, and by the one that guesses."""
    stamps = np.arange(4)
    readers: Mapping[str, Callable[[Path], object]] = {
        'a.tum': trajectory.read_tum,
        'a.g2o': read_g2o,
        'times.txt': trajectory.read_stamps,
        'poses.txt': lambda path: trajectory.read_kitti_poses(path, stamps),
        'data.csv': trajectory.read_euroc_truth,
        'pose_left.txt': lambda path: trajectory.read_tartanair_poses(path, stamps),
    }
    for path in sorted(folder.iterdir()):
        found = readers[path.name](path)
        if isinstance(found, trajectory.Trajectory):
            assert np.isfinite(found.world_from_body).all()
        if path.suffix != '.g2o' and path.stem != 'times':
            read_truth(path, stamps)


def read_keyframe(folder: Path, _: Path) -> None:
    """The bytes as those of a message."""
    for path in folder.iterdir():
        sent = keyframe_from_message(SimpleNamespace(data=path.read_bytes()))
        assert len(sent.record.points) == len(sent.record.observation.features)


TARGETS = {
    'bag': Target(recordings.whole_bags, read_bag, recordings.lying_bag, allocates=True),
    'map': Target(contents.maps, read_map),
    'weights': Target(contents.own_weights, read_weights, contents.odd_weights, allocates=True),
    'calibration': Target(lambda _: contents.calibrations(), read_calibrations),
    'trajectory': Target(contents.trajectories, read_trajectories),
    'keyframe': Target(lambda _: contents.keyframes(), read_keyframe),
}
REFUSED = MvMatcherError
