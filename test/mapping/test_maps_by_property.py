# SPDX-License-Identifier: Apache-2.0
"""Maps and pose graphs of any size come back from their files."""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, keyframe_of, pose_at
from test_map_folder import same

from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.mapping.g2o import Edge as Measured
from mv_matcher_ros.mapping.g2o import PoseGraphFile, read_g2o, write_g2o
from mv_matcher_ros.mapping.map import Edge, Map
from mv_matcher_ros.mapping.map_folder import load_map, save_map
from mv_matcher_ros.mapping.pose_algebra import SE3


@some.composite
def maps(draw: some.DrawFn) -> Map:
    """Keyframes with any number of features each, that see landmarks which hang anywhere."""
    rng = np.random.default_rng(draw(some.integers(0, 2**32 - 1)))
    sensor = draw(some.sampled_from(('mono', 'stereo', 'rgbd')))
    words = some.text(max_size=8)
    world = Map(Rig((CAMERA,)), sensor, draw(words))  # type: ignore[arg-type]
    keys = draw(some.integers(0, 4))
    points = draw(some.integers(0, 20)) if keys else 0
    place, look = rng.uniform((-2, -1, 4), (2, 1, 8), (points, 3)), rng.normal(size=(points, 8))
    number = world.landmarks.add(points)
    spread = np.tile(np.eye(3), (points, 1, 1))
    world.landmarks.place(number, int(rng.integers(max(keys, 1))), place, spread)
    for key in range(keys):
        scale = 1.0 if world.metric else draw(some.floats(0.1, 10))
        pose = pose_at(0.2 * key, draw(some.floats(-0.2, 0.2)))
        seen = np.where(rng.random(points) < 0.5, number, -1)
        world.add(keyframe_of(key, pose, place, look, seen, segment=key // 2), pose)
        world.pose[key] = pose * np.array([[scale] * 3 + [1.0]] * 3 + [[1.0] * 4])
        world.origin[key // 2] = draw(words)
        if key:
            step = np.linalg.inv(world.pose[key - 1]) @ world.pose[key]
            loop = draw(some.booleans())
            world.edges.append(Edge(key - 1, key, step, rng.normal(size=(7, 7)), loop))
    return world


@settings(max_examples=15)  # 40 files each
@given(maps())
def test_a_map_comes_back(world: Map) -> None:
    with tempfile.TemporaryDirectory() as folder:
        back = load_map(save_map(world, Path(folder) / 'map'))
        same(world, back)
        assert back.origin == world.origin
        same(world, load_map(save_map(back, Path(folder) / 'map')))  # over what it is read from


@given(
    some.integers(0, 2**32 - 1), some.lists(some.integers(0, 2**62 - 1), unique=True, min_size=1)
)
def test_a_pose_graph_comes_back(seed: int, keys: list[int]) -> None:
    rng = np.random.default_rng(seed)
    poses = {key: SE3.exp(rng.normal(size=6) * (1, 1, 1, 1.5, 1.5, 1.5)) for key in keys}
    edges = []
    for a, b in pairwise(keys):
        root = rng.normal(size=(6, 6))
        edges.append(Measured(a, b, SE3.exp(rng.normal(size=6)), root @ root.T))
    with tempfile.TemporaryDirectory() as folder:
        write_g2o(Path(folder) / 'a.g2o', PoseGraphFile(poses, edges, tuple(keys[:1])))
        back = read_g2o(Path(folder) / 'a.g2o')
    assert (list(back.poses), back.fixed) == (keys, tuple(keys[:1]))
    for key in keys:
        np.testing.assert_allclose(back.poses[key], poses[key], atol=1e-12)
    for one, other in zip(edges, back.edges, strict=True):
        assert (one.a, one.b) == (other.a, other.b)
        np.testing.assert_allclose(one.a_from_b, other.a_from_b, atol=1e-12)
        np.testing.assert_array_equal(np.triu(one.information), np.triu(other.information))
