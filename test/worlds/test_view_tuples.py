# SPDX-License-Identifier: Apache-2.0
"""Tuples of views: the same from the same seed, with overlap, space and texture as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.covisibility import overlap_matrix
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.photo_planes import photo_planes
from mv_matcher_ros.worlds.places import MeshPlace, PhotoPlace, is_clear, photo_place, room_place
from mv_matcher_ros.worlds.planes import Quad, World
from mv_matcher_ros.worlds.view_tuples import (
    BASELINES,
    Baseline,
    ViewTuple,
    sample_tuple,
    textured_share,
)

SIZE = (128, 96)


def photo(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (30, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def found(place: MeshPlace | PhotoPlace, baseline: Baseline, views: int = 4) -> ViewTuple:
    for seed in range(20):
        views_found = sample_tuple(place, SIZE, views, baseline, np.random.default_rng(seed))
        if views_found is not None:
            return views_found
    raise AssertionError('no tuple found')


def test_overlap_is_the_share_that_stays_in_the_image() -> None:
    """A wall at 2 m; a step to the side of a quarter of the view; the wall hidden."""
    intrinsics = np.array([[80.0, 0, 79.5], [0, 80, 59.5], [0, 0, 1]])
    depth = np.full((120, 160), 2.0, np.float32)
    poses = np.stack([np.eye(4)] * 3)
    poses[1, 0, 3] = 0.25 * 160 / 80 * 2.0
    near = np.full((120, 160), 1.0, np.float32)
    overlap = overlap_matrix([depth, depth, near], np.stack([intrinsics] * 3), poses)
    assert overlap[0, 1] == overlap[1, 0] == 0.75
    assert overlap[0, 2] == 0
    assert overlap[0, 0] == 1
    nothing = overlap_matrix([0 * depth, depth], np.stack([intrinsics] * 2), poses[:2])
    assert nothing[0, 1] == 0


@pytest.mark.parametrize('baseline', BASELINES)
def test_tuples_of_a_mesh(box_world: Path, baseline: Baseline) -> None:
    from mv_matcher_ros.worlds.mesh import load_mesh

    place = MeshPlace(load_mesh(box_world))
    views = found(place, baseline)
    assert views.images.shape == views.depths.shape == (4, 96, 128)
    mean = 0.5 * (views.overlap + views.overlap.T)
    for view in range(1, 4):
        assert is_clear(place, views.world_from_camera[view, :3, 3])
        assert (
            mean[view, :view].max() > 0.25
        )  # trials are smaller: what was 0.3 there varies a bit
        assert views.depths[view][views.depths[view] > 0].min() > 0.1
        assert textured_share(views.images[view]) > 0.1
    if baseline == 'stereo':
        for left in (0, 2):
            pair = views.world_from_camera[left : left + 2]
            step = (np.linalg.inv(pair[0]) @ pair[1])[:3]
            np.testing.assert_allclose(step[:, :3], np.eye(3), atol=1e-12)
            assert step[0, 3] > 0
            np.testing.assert_allclose(step[1:, 3], 0, atol=1e-12)


def test_the_same_seed_gives_the_same_tuple(box_world: Path) -> None:
    from mv_matcher_ros.worlds.mesh import load_mesh

    first, again = (found(MeshPlace(load_mesh(box_world)), 'wide') for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.world_from_camera, again.world_from_camera)
    other = sample_tuple(
        MeshPlace(load_mesh(box_world)), SIZE, 4, 'wide', np.random.default_rng(77)
    )
    assert other is None or not np.array_equal(other.images, first.images)


def test_a_room_of_the_presets_gives_tuples() -> None:
    views = sample_tuple(room_place(3), SIZE, 3, 'video', np.random.default_rng(2))
    assert views is not None
    assert views.world == 'room'


def test_two_views_of_one_photo_are_a_homography() -> None:
    place = photo_place([photo()], 1, np.random.default_rng(0))
    views = found(place, 'wide', 2)
    normal, offset = np.array([-1.0, 0, 0]), 0.0  # the photo's plane: x = 0
    a, b = views.world_from_camera
    b_from_a = np.linalg.inv(b) @ a
    local = a[:3, :3].T @ normal
    distance = offset - normal @ a[:3, 3]
    homography = views.intrinsics[1] @ (
        b_from_a[:3, :3] + np.outer(b_from_a[:3, 3], local) / distance
    ) @ np.linalg.inv(views.intrinsics[0])  # fmt: skip
    rows, columns = np.nonzero(views.depths[0])
    pixels = np.stack([columns, rows, np.ones(len(rows))], 1).astype(float)
    mapped = pixels @ homography.T
    rays = pixels @ np.linalg.inv(views.intrinsics[0]).T
    points = rays * views.depths[0][rows, columns, None]
    carried = (points @ b_from_a[:3, :3].T + b_from_a[:3, 3]) @ views.intrinsics[1].T
    np.testing.assert_allclose(
        carried[:, :2] / carried[:, 2:], mapped[:, :2] / mapped[:, 2:], atol=1e-3
    )


def test_photos_stand_before_one_another() -> None:
    world = photo_planes([photo(i) for i in range(6)], 5, np.random.default_rng(0))
    assert len(world.quads) == 5
    assert all(quad.origin[0] + 0.5 * quad.edge_v[0] < 0.5 for quad in world.quads)
    place = PhotoPlace(world)
    views = found(place, 'video')
    assert len({round(float(d), 2) for d in views.depths[views.depths > 0][::50]}) > 5


def test_before_a_plain_wall_there_is_no_tuple() -> None:
    """One grey photo: everything is seen, and nothing could be matched."""
    plain = Texture(np.full((30, 40, 3), 128, np.uint8))
    quad = Quad(np.array((0.0, 2.6, 2.0)), np.array((0, -5.3, 0.0)), np.array((0, 0, -4.0)), plain)
    views = sample_tuple(PhotoPlace(World((quad,))), SIZE, 3, 'video', np.random.default_rng(0))
    assert views is None


def test_in_a_cupboard_there_is_no_tuple(box_world: Path) -> None:
    """Everything is nearer than a camera needs: the room a tenth as large."""
    from dataclasses import replace

    from mv_matcher_ros.worlds.mesh import load_mesh

    mesh = load_mesh(box_world)
    small = replace(mesh, triangles=0.1 * mesh.triangles)
    rng = np.random.default_rng(0)
    assert sample_tuple(MeshPlace(small), SIZE, 3, 'wide', rng) is None
    assert not is_clear(MeshPlace(mesh), np.array([2.8, 0.0, 1.5]))
    assert is_clear(MeshPlace(mesh), np.array([0.0, 0.0, 1.5]))


def test_texture_is_measured_by_corners() -> None:
    flat = np.full((96, 128), 100, np.uint8)
    edge = flat.copy()
    edge[:, 64:] = 200
    assert textured_share(flat) == 0
    assert textured_share(edge) == 0
    assert textured_share(photo()[:96, :128, 0]) > 0.5


def test_tuples_that_cannot_be_are_refused() -> None:
    place = photo_place([photo()], 1, np.random.default_rng(0))
    with pytest.raises(GeometryError, match='1 wide views'):
        sample_tuple(place, SIZE, 1, 'wide', np.random.default_rng(0))
    with pytest.raises(GeometryError, match='want 1 to 5'):
        photo_planes([photo()], 9, np.random.default_rng(0))
    camera = Camera(*SIZE, (100.0, 100.0, 63.5, 47.5))
    assert place.starts(camera, 5, np.random.default_rng(0)).shape == (5, 4, 4)
