# SPDX-License-Identifier: Apache-2.0
"""Mesh worlds against geometry with a known answer, and against the worlds of rectangles."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Array, Camera
from mv_matcher_ros.errors import GeometryError, MissingDependencyError, SourceError
from mv_matcher_ros.worlds.lighting import Lamp
from mv_matcher_ros.worlds.mesh import MeshWorld, load_mesh
from mv_matcher_ros.worlds.mesh_rendering import Shading, render_mesh
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.pictures import hang_pictures, retextured, roofed
from mv_matcher_ros.worlds.planes import Quad, World
from mv_matcher_ros.worlds.rendering import render
from mv_matcher_ros.worlds.trajectories import pose_matrices

pytest.importorskip('embreex', reason='embreex has no wheel for Linux on aarch64')
CAMERA = Camera(160, 120, (110.0, 112.0, 80.3, 58.9))


def pose(x: float, y: float, z: float, yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Array:
    body = pose_matrices(np.array([[x, y, z]]), np.array([[roll, pitch, yaw]]))
    return body[0] @ REP103_FROM_OPTICAL


def wall(image: np.ndarray, repeat: float = 1.0) -> tuple[MeshWorld, World]:
    """A wall of 4 x 3 m at x = 2 that faces −x, as two triangles and as a rectangle."""
    texture = Texture(image, True)
    origin, right, down = np.array((2.0, 2.0, 3.0)), np.array((0, -4.0, 0)), np.array((0, 0, -3.0))
    corners = np.stack([origin, origin + right, origin + right + down, origin + down])
    at = repeat * np.array(((0, 0), (1, 0), (1, 1), (0, 1)), np.float32)
    halves = np.array(((0, 1, 2), (0, 2, 3)))
    mesh = MeshWorld(corners[halves], at[halves], np.zeros(2, np.int64), (texture,))
    return mesh, World((Quad(origin, right, down, texture, (repeat, repeat)),))


def checks(cells: int = 8, texels: int = 16) -> np.ndarray:
    grey = np.kron(np.indices((cells, cells)).sum(0) % 2 * 200 + 20, np.ones((texels, texels)))
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


def test_a_wall_is_the_same_as_mesh_and_as_rectangle() -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    mesh, flat = wall(image, 2.0)
    for place in (pose(0, 0.3, 1.4, 0.1), pose(1.2, -0.5, 1.0, 0.6, 0.2, 0.3)):
        seen, depth = render_mesh(mesh, CAMERA, place)
        wanted, exact = render(flat, CAMERA, place)
        np.testing.assert_allclose(depth, exact, rtol=1e-6)
        inside = exact > 0
        inside[1:] &= inside[:-1]
        inside[:-1] &= inside[1:]
        off = np.abs(seen.astype(int) - wanted.astype(int))[inside]
        assert np.percentile(off, 98) <= 2


def test_depth_of_a_room_is_that_of_its_walls(box_world: Path) -> None:
    """Every pixel's point lies on a wall or on the crate; both sides of a wall are seen."""
    mesh = load_mesh(box_world)
    for place in (pose(-1, -0.5, 1.5, 0.4), pose(5, 4, 4, -2.4, 0.4)):
        _, depth = render_mesh(mesh, CAMERA, place)
        rows, columns = np.nonzero(depth)
        assert len(rows) > 5000
        rays = np.stack([columns, rows, np.ones(len(rows))], 1) @ np.linalg.inv(CAMERA.matrix).T
        points = rays * depth[rows, columns, None].astype(float) @ place[:3, :3].T + place[:3, 3]
        off = np.concatenate(
            [np.abs(points - (-3, -2.5, 0)), np.abs(points - (3, 2.5, 3)),
             np.abs(points - (0.7, 0.7, 0)), np.abs(points - (1.3, 1.3, 0.8))], 1,
        ).min(1)  # fmt: skip
        assert off.max() < 2e-6 * depth.max() + 1e-6


def test_a_distorted_camera_sees_the_same_depth_along_its_rays() -> None:
    mesh, flat = wall(checks())
    camera = Camera(160, 120, (110.0, 112.0, 80.3, 58.9), 'radtan', (-0.2, 0.03, 0.001, 0.0))
    place = pose(0, 0.3, 1.4, 0.1)
    np.testing.assert_allclose(
        render_mesh(mesh, camera, place)[1], render(flat, camera, place)[1], rtol=1e-6
    )


def test_fine_patterns_far_away_become_grey() -> None:
    mesh, _ = wall(checks(64, 2), 8.0)
    near = render_mesh(mesh, CAMERA, pose(1.6, 0, 1.5, 0.0))[0]
    image, depth = render_mesh(mesh, CAMERA, pose(-25, 0, 1.5, 0.0))
    inner = depth > 0
    inner &= np.roll(inner, 1, 0) & np.roll(inner, -1, 0) & np.roll(inner, 1, 1)
    inner &= np.roll(inner, -1, 1)
    assert near.std() > 50
    assert image[inner].std() < 6
    assert abs(float(image[inner].mean()) - 120) < 4


def test_outlines_are_smooth() -> None:
    mesh, _ = wall(np.zeros((4, 4, 3), np.uint8))
    place = pose(-3, 0.1, 1.7, 0.0, 0.0, 0.1)
    levels = [
        len(np.unique(render_mesh(mesh, CAMERA, place, smooth=smooth)[0][60]))
        for smooth in (True, False)
    ]
    assert levels[0] > levels[1]


def test_light_falls_on_what_faces_it_and_casts_shadows(box_world: Path) -> None:
    mesh = load_mesh(box_world)
    place = pose(-1, -0.8, 2.4, 0.6, 0.5)
    dim = render_mesh(mesh, CAMERA, place, Shading(0.3))[0].astype(float)
    lamp = Shading(0.3, (Lamp((-1.0, 1.0, 2.0), 0.5),))
    lit = render_mesh(mesh, CAMERA, place, lamp)[0].astype(float)
    free = render_mesh(
        mesh, CAMERA, place, Shading(0.3, lamp.lamps, shadows=False)
    )[0].astype(float)  # fmt: skip
    assert lit.mean() > 1.3 * dim.mean()
    assert (free - lit).max() > 10  # behind the crate
    moved = Shading(0.3, lamp.lamps, (1.0, 0.0, 0.0))
    assert moved.at(0.5).lamps[0].position == (-0.5, 1.0, 2.0)
    assert (render_mesh(mesh, CAMERA, place, moved.at(1.0))[0] != lit).mean() > 0.1


def test_pictures_hang_flat_on_plain_walls_only(box_world: Path) -> None:
    mesh = load_mesh(box_world)
    photos = [checks(), checks(4, 40)]
    hung = hang_pictures(mesh, photos, 3, np.random.default_rng(1))
    corners = hung.triangles[len(mesh.triangles) :].reshape(-1, 3)
    assert len(corners) >= 6
    np.testing.assert_allclose(corners[:, 0], 3.0 - 0.012, atol=1e-6)
    again = hang_pictures(mesh, photos, 3, np.random.default_rng(1))
    np.testing.assert_array_equal(again.triangles, hung.triangles)
    place = pose(0, 0, 1.5, 0.0)
    before = render_mesh(mesh, CAMERA, place)[0]
    assert (render_mesh(hung, CAMERA, place)[0] != before).mean() > 0.02


def test_other_textures_leave_the_geometry(box_world: Path) -> None:
    mesh = load_mesh(box_world)
    other = retextured(mesh, [checks()], 1.0, np.random.default_rng(0))
    place = pose(0, 0, 1.5, 2.0)
    (seen, depth), (new, same) = (render_mesh(w, CAMERA, place) for w in (mesh, other))
    np.testing.assert_array_equal(depth, same)
    assert (seen != new).mean() > 0.5


def test_only_a_world_without_ceiling_gets_one(box_world: Path) -> None:
    mesh = load_mesh(box_world)
    rng = np.random.default_rng(0)
    assert roofed(mesh, rng) is mesh
    below = mesh.triangles[:, :, 2].min(1) < 2.9
    open_above = MeshWorld(
        mesh.triangles[below], mesh.uv[below], mesh.texture_index[below], mesh.textures
    )
    up = np.array([[0.0, 0.0, 1.0]])
    assert not np.isfinite(open_above.cast(np.array([0.0, 0, 1.5]), up).distance[0])
    above = roofed(open_above, rng).cast(np.array([0.0, 0, 1.5]), up).distance[0]
    np.testing.assert_allclose(above, 1.5, rtol=1e-6)


def test_faulty_files_are_said(tmp_path: Path) -> None:
    import trimesh

    plain = tmp_path / 'plain.glb'
    plain.write_bytes(trimesh.Scene(trimesh.creation.box()).export(file_type='glb'))
    with pytest.raises(SourceError, match='nothing in it has a texture'):
        load_mesh(plain)
    with pytest.raises(SourceError, match=r'no such \.glb'):
        load_mesh(tmp_path / 'none.glb')
    cut = tmp_path / 'cut.glb'
    cut.write_bytes(plain.read_bytes()[:100])
    with pytest.raises(SourceError, match='cannot be read'):
        load_mesh(cut)


@pytest.mark.parametrize('package', ['trimesh', 'embreex.mesh_construction'])
def test_what_is_not_installed_is_said(
    package: str, box_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'mv_matcher_ros\[train\]'):
        load_mesh(box_world).cast(np.zeros(3), np.array([[1.0, 0, 0]]))


def test_poses_and_arrays_that_make_no_sense_are_refused() -> None:
    mesh, _ = wall(checks())
    with pytest.raises(GeometryError, match='finite'):
        render_mesh(mesh, CAMERA, np.full((4, 4), np.nan))
    with pytest.raises(GeometryError, match='rotation'):
        render_mesh(mesh, CAMERA, np.diag((2.0, 2, 2, 1)))
    with pytest.raises(GeometryError, match='no triangles'):
        MeshWorld(np.zeros((0, 3, 3)), np.zeros((0, 3, 2), np.float32), np.zeros(0, int), ())
    with pytest.raises(GeometryError, match='not there'):
        MeshWorld(mesh.triangles, mesh.uv, np.full(2, 3), mesh.textures)


@pytest.mark.data
@pytest.mark.parametrize('name', ['small_house', 'bookstore', 'hospital'])
def test_public_worlds_are_read(data_root: Path, name: str) -> None:
    path = data_root / 'worlds' / f'{name}.glb'
    if not path.is_file():
        pytest.skip('no worlds')
    mesh = load_mesh(path)
    assert len(mesh.triangles) > 90_000
    assert np.ptp(mesh.bounds[:, 2]) < 7  # z is up
