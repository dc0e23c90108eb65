# SPDX-License-Identifier: Apache-2.0
"""Worlds and what they are made of: geometry, light, textures, pictures."""

import time

import cv2
import numpy as np
import pytest

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Camera
from mv_matcher_ros.errors import GeometryError, SourceError
from mv_matcher_ros.worlds import buildings, prints, scenes, textures
from mv_matcher_ros.worlds.furniture import Builder
from mv_matcher_ros.worlds.lighting import Illumination, Lamp, bake
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.planes import Quad, World
from mv_matcher_ros.worlds.rendering import render

X, Y, Z = np.eye(3)
GREY = Texture(np.full((2, 2, 3), 128, np.uint8))
MAKERS = [
    textures.plaster,
    textures.bricks,
    textures.tiles,
    textures.wood,
    textures.asphalt,
    textures.paving,
    textures.grass,
    textures.carpet,
    prints.poster,
    prints.crate,
    prints.shelf,
    buildings.door,
    buildings.ceiling,
    buildings.facade,
    buildings.road,
    buildings.bodywork,
]


@pytest.mark.parametrize('make', MAKERS, ids=lambda make: make.__name__)
def test_surface_is_seeded_textured_and_of_the_asked_size(make):
    first, again, other = (make(np.random.default_rng(s), 3.2, 2.4, 80.0) for s in (1, 1, 2))
    assert first.shape == (192, 256, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    grey = cv2.cvtColor(first, cv2.COLOR_BGR2GRAY)
    assert 4 < grey.std() < 90
    assert 20 < grey.mean() < 240


@pytest.mark.parametrize('make', MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize('size', [(0.3, 0.02), (0.02, 0.3), (0.05, 0.05)])
def test_surface_of_any_size_can_be_made(make, size):
    assert make(np.random.default_rng(0), *size, 100.0).size > 0


@pytest.mark.parametrize('size', [(0.0, 1.0), (1.0, -1.0), (1000.0, 1.0)])
def test_surface_of_impossible_size_is_refused(size):
    with pytest.raises(GeometryError, match='texels'):
        textures.plaster(np.random.default_rng(0), *size, 100.0)


def test_natural_surfaces_have_less_detail_the_finer_it_is():
    """Like photographs, unlike white noise: energy falls from octave to octave."""

    def detail(grey):
        level, energy = grey.astype(np.float32), []
        for _ in range(2):
            coarse = cv2.pyrDown(level)
            energy.append(float((level - cv2.pyrUp(coarse, dstsize=level.shape[::-1])).std()))
            level = coarse
        return energy

    white = detail(np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8))
    assert white[0] > 3.5 * white[1]
    for make in (textures.plaster, textures.tiles, textures.asphalt, textures.bricks):
        grey = cv2.cvtColor(make(np.random.default_rng(0), 4.0, 4.0, 128.0), cv2.COLOR_BGR2GRAY)
        energy = detail(grey)
        assert energy[0] < 2.0 * energy[1]
        assert energy[0] < 0.3 * white[0]


@pytest.mark.parametrize('seed', [0, 4])
def test_photographs_are_hung_up_before_posters(tmp_path, seed):
    marked = np.zeros((40, 60, 3), np.uint8)
    marked[:] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / 'b.png'), marked)
    cv2.imwrite(str(tmp_path / 'a.png'), marked // 2)
    (tmp_path / 'notes.txt').write_text('no image')
    builder = Builder(np.random.default_rng(seed), 50.0, prints.photos(tmp_path))
    wall = builder.wall((0, 0), (5, 0), 2.5, textures.plaster)
    for at in (0.5, 1.5, 2.5):
        builder.hang(wall, (at, 1.0), (0.6, 0.6))
    hung = builder.quads[1:]
    assert [q.texture.image[0, 0, 2] for q in hung[:2]] == [127, 255]
    assert hung[0].size_m == pytest.approx((0.9, 0.6))  # the photograph's shape
    assert hung[2].size_m == pytest.approx((0.6, 0.6))
    for picture in hung:
        assert (picture.origin - wall.origin) @ wall.normal > 0
        assert picture.normal @ wall.normal == pytest.approx(1.0)


def test_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(SourceError, match='no readable image'):
        prints.photos(tmp_path)
    with pytest.raises(SourceError, match='no such folder'):
        prints.photos(tmp_path / 'missing')


def test_box_is_closed_and_its_faces_look_outwards():
    builder = Builder(np.random.default_rng(0), 20.0)
    builder.box((1.0, 2.0), (0.6, 0.4, 0.8), prints.crate, 0.7, 0.1)
    middle = np.array((1.0, 2.0, 0.5))
    assert len(builder.quads) == 6
    area = sum(np.prod(q.size_m) for q in builder.quads)
    assert area == pytest.approx(2 * (0.6 * 0.4 + 0.6 * 0.8 + 0.4 * 0.8))
    for quad in builder.quads:
        centre = quad.point(np.array(0.5), np.array(0.5))
        outwards = (centre - middle) / np.linalg.norm(centre - middle)
        assert quad.normal @ outwards == pytest.approx(1.0)


@pytest.mark.parametrize(
    ('edge_u', 'edge_v'), [(0 * X, Y), (X, X + Y), (np.array((np.nan, 0, 0)), Y)]
)
def test_what_is_no_rectangle_is_refused(edge_u, edge_v):
    with pytest.raises(GeometryError, match='quad'):
        Quad(np.zeros(3), edge_u, edge_v, GREY)


def test_segments_are_blocked_by_what_lies_between():
    world = World((Quad(np.array((-1.0, -1.0, 1.0)), 2 * X, 2 * Y, GREY),))
    start = np.array([(0, 0, 0), (0, 0, 0), (1.5, 0, 0), (0, 0, 2), (0, 0, 1.2)], float)
    end = np.array([(0, 0, 2), (0, 0, 0.9), (1.5, 0, 2), (0.9, 0.9, 0), (0, 0, 3)], float)
    assert world.blocked(start, end).tolist() == [True, False, False, True, False]
    assert not world.blocked(start[:1], end[:1], np.zeros(1, np.bool_)).any()
    assert not world.blocked(np.zeros((0, 3)), np.zeros((0, 3))).size


def test_baked_light_has_a_shadow_under_the_lamp_and_dim_corners():
    builder = Builder(np.random.default_rng(0), 10.0)
    floor = builder.floor((-2, -2), (2, 2), GREY)
    builder.wall((-2, 2), (2, 2), 2.0, GREY)
    builder.box((0.0, 0.0), (0.6, 0.6, 0.05), GREY, base_m=1.0)
    lamp = Lamp((0.0, 0.0, 2.0), 1.0, 2.0, 0.05)
    world = bake(World(tuple(builder.quads)), Illumination((lamp,), 0.0, texel_m=0.1))
    light = world.quads[0].light
    assert light.shape == (40, 40)
    assert light[20, 20] < 0.05  # under the box
    assert light[20, 32] > 0.5  # beside it
    ambient = bake(World(tuple(builder.quads)), Illumination((), 1.0, 0.0, texel_m=0.1))
    open_floor, at_wall = ambient.quads[0].light[30, 5], ambient.quads[0].light[0, 5]
    assert floor.origin[1] == 2  # row 0 lies at the wall
    assert at_wall < 0.85 * open_floor


@pytest.fixture(scope='module', params=['room', 'corridor', 'street'])
def world(request):
    return getattr(scenes, request.param)(0)


CAMERA = Camera(320, 240, (210.0, 210.0, 159.5, 119.5))
PLACES = {
    'room': [(-2.0, 0.0, 1.4), (0.5, -1.3, 1.4)],
    'corridor': [(-6.8, -4.3, 1.4), (0.0, 4.35, 1.4)],
    'street': [(-20.0, -18.5, 1.6), (24.5, 0.0, 1.6)],
}


def around(place, count=6):
    for yaw in np.arange(count) * 2 * np.pi / count + 0.2:
        pose = np.eye(4)
        pose[:3, :3] = cv2.Rodrigues(np.array((0, 0, yaw)))[0]
        pose[:3, 3] = place
        yield pose @ REP103_FROM_OPTICAL


def test_every_view_has_structure_and_a_decent_exposure(world):
    detector = cv2.SIFT_create(0, 3, 0.02)
    for place in PLACES[world.name]:
        for pose in around(place):
            image, depth = render(world, CAMERA, pose)
            assert len(detector.detect(image, None)) > 60
            assert 50 < image.mean() < 210
            assert image.std() > 12
            assert (image == 255).mean() < 0.1
            assert depth.max() < 80


def test_indoors_is_closed_and_outdoors_has_a_sky(world):
    views = [render(world, CAMERA, pose)[1] for pose in around(PLACES[world.name][0])]
    sky = np.mean([(depth == 0).mean() for depth in views])
    assert 0.02 < sky < 0.5 if world.name == 'street' else sky == 0


def test_scene_is_made_from_its_seed():
    first, again = scenes.room(0), scenes._room.__wrapped__(0, None)
    pose = next(around(PLACES['room'][0]))
    assert np.array_equal(render(first, CAMERA, pose)[0], render(again, CAMERA, pose)[0])
    assert scenes.room(seed=0, photos=None) is first  # and not made twice


def test_a_view_costs_no_more_than_finding_its_keypoints_a_few_times(world):
    """A sanity check of speed that holds on any machine: it compares two times of the same run."""
    camera = Camera(640, 480, (420.0, 420.0, 319.5, 239.5))
    pose = next(around(PLACES[world.name][0]))
    image, _ = render(world, camera, pose)
    detector = cv2.SIFT_create(1500)

    def best_of_three(function):
        seconds = []
        for _ in range(3):
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        return min(seconds)

    rendering = best_of_three(lambda: render(world, camera, pose))
    assert rendering < 6 * best_of_three(lambda: detector.detectAndCompute(image, None))
