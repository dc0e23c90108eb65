# SPDX-License-Identifier: Apache-2.0
"""The renderer is exact: depth, places of features, outlines, stereo, for every camera model."""

import time

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.camera import camera_normalise, camera_project
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.planes import Quad, Sky, World
from mv_matcher_ros.worlds.rendering import render
from mv_matcher_ros.worlds.textures import tiles

PINHOLE = Camera(320, 240, (250.0, 260.0, 158.3, 121.9))
RADTAN = Camera(320, 240, (250.0, 250.0, 160.0, 119.0), 'radtan', (-0.28, 0.07, 1e-3, -8e-4, 0.01))
FISHEYE = Camera(320, 240, (150.0, 150.0, 159.5, 119.5), 'equidistant', (0.03, -0.01, 0.004, 0.0))
CAMERAS = [pytest.param(c, id=c.model) for c in (PINHOLE, RADTAN, FISHEYE)]
BLACK = Sky((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
X, Y, Z = np.eye(3)


def flat(grey, rows=4, columns=4):
    return Texture(np.full((rows, columns, 3), grey, np.uint8))


def turned(yaw, pitch, roll, position):
    """A pose near the optical frame looking along world z."""
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array((pitch, yaw, roll), np.float64))[0]
    pose[:3, 3] = position
    return pose


def random_world(seed, count=12):
    rng = np.random.default_rng(seed)
    quads = []
    for _ in range(count):
        rotation = cv2.Rodrigues(rng.normal(0, 0.6, 3))[0]
        width, height = rng.uniform(0.5, 2.5, 2)
        centre = rng.uniform((-2, -1.5, 2), (2, 1.5, 7))
        edge_u, edge_v = rotation[:, 0] * width, rotation[:, 1] * height
        texture = Texture(rng.integers(0, 255, (32, 32, 3), np.uint8))
        quads.append(Quad(centre - 0.5 * (edge_u + edge_v), edge_u, edge_v, texture))
    return World(tuple(quads))


def rays_of(camera):
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    pixels = torch.tensor(np.stack([columns, rows], -1), dtype=torch.float64)
    xy, valid = camera_normalise(camera, pixels)
    return np.concatenate([xy.numpy(), np.ones((*xy.shape[:2], 1))], -1), valid.numpy()


def nearest_depth(world, camera, pose):
    """Depth by intersecting every ray with every rectangle, and where a ray touches an edge."""
    rays, valid = rays_of(camera)
    directions = rays @ pose[:3, :3].T
    best = np.full(rays.shape[:2], np.inf)
    doubtful = ~valid
    for quad in world.quads:
        slope = directions @ quad.normal
        z = ((quad.origin - pose[:3, 3]) @ quad.normal) / slope
        place = pose[:3, 3] + z[..., None] * directions - quad.origin
        u = place @ quad.edge_u / (quad.edge_u @ quad.edge_u)
        v = place @ quad.edge_v / (quad.edge_v @ quad.edge_v)
        margin = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
        doubtful |= np.abs(margin) < 1e-5
        hit = (z > 0) & (margin >= 0)
        best = np.where(hit & (z < best), z, best)
    return np.where(np.isfinite(best), best, 0.0), doubtful


@pytest.mark.parametrize('camera', CAMERAS)
@pytest.mark.parametrize('seed', [0, 1])
def test_depth_equals_brute_force_intersection(camera, seed):
    world = random_world(seed)
    pose = turned(0.1, -0.07, 0.3, (0.2, -0.1, 0.3))
    _, depth = render(world, camera, pose)
    expected, doubtful = nearest_depth(world, camera, pose)
    assert doubtful.mean() < 0.05
    assert 0.2 < (expected > 0).mean() < 0.98  # both sky and surfaces are in view
    close = np.isclose(depth, expected, rtol=1e-6, atol=0)
    assert (close | doubtful).all()


def dots(cells, texels_per_cell, width=0.048):
    """Gaussian dots, one in the middle of each cell, on black."""
    at = (np.arange(texels_per_cell) + 0.5) / texels_per_cell - 0.5
    bell = np.exp(-0.5 * (at / width) ** 2)
    image = np.tile(np.round(250 * np.outer(bell, bell)).astype(np.uint8), (cells, cells))
    return Texture(np.repeat(image[..., None], 3, 2))


def measured_peak(image, near_xy, radius):
    """Middle of a Gaussian dot: the vertex of the paraboloid through its logarithm."""
    column, row = np.round(near_xy).astype(int)
    y, x = np.mgrid[row - radius : row + radius + 1, column - radius : column + radius + 1]
    grey = image[y, x].astype(np.float64).ravel()
    dx, dy = (x - column).ravel(), (y - row).ravel()
    weight = np.where(grey > 20, grey, 0.0)  # the logarithm's error grows as the grey value falls
    terms = np.stack([dx * dx, dx * dy, dy * dy, dx, dy, np.ones_like(dx)], 1)
    right = weight * np.log(np.maximum(grey, 1.0))
    a, b, c, d, e, _ = np.linalg.lstsq(terms * weight[:, None], right, rcond=None)[0]
    vertex = np.linalg.solve(np.array([[2 * a, b], [b, 2 * c]]), np.array((-d, -e)))
    return vertex + np.array((column, row))


@pytest.mark.parametrize('camera', CAMERAS)
@pytest.mark.parametrize(('distance_m', 'cells', 'texels'), [(1.1, 7, 40), (3.0, 5, 160)])
def test_rendered_features_lie_where_their_points_project(camera, distance_m, cells, texels):
    """Magnified (1.1 m) and mip-mapped (3 m), slanted, all lenses: below 0.05 px."""
    size = 1.4 if distance_m < 2 else 2.4
    tilt = cv2.Rodrigues(np.array((0.45, -0.35, 0.1)))[0]
    edge_u, edge_v = tilt[:, 0] * size, tilt[:, 1] * size
    centre = np.array((0.05, -0.02, distance_m))
    quad = Quad(centre - 0.5 * (edge_u + edge_v), edge_u, edge_v, dots(cells, texels))
    pose = turned(0.03, 0.05, 0.2, (0.01, 0.02, 0.0))
    image, _ = render(World((quad,), BLACK), camera, pose)
    u, v = ((a.ravel() + 0.5) / cells for a in np.meshgrid(np.arange(cells), np.arange(cells)))
    points = quad.origin + u[:, None] * edge_u + v[:, None] * edge_v
    local = torch.from_numpy((points - pose[:3, 3]) @ pose[:3, :3])
    pixels, valid = camera_project(camera, local)
    pixels = pixels.numpy()
    inside = valid.numpy() & (local[:, 2].numpy() > 0.6)
    inside &= ((pixels > 12) & (pixels < np.array((camera.width, camera.height)) - 13)).all(1)
    assert inside.sum() >= 20
    found = np.array([measured_peak(image, xy, 4) for xy in pixels[inside]])
    error = np.linalg.norm(found - pixels[inside], axis=1)
    assert error.max() < 0.05
    assert (
        np.abs((found - pixels[inside]).mean(0)).max() < 0.02
    )  # a dot in perspective is askew by 0.01


def test_outlines_cover_exactly_their_share_of_pixels():
    """A white rectangle on black: grey mass is projected area, its centre the centroid."""
    quad = Quad(np.array((-0.31, -0.22, 2.0)), 0.6 * X + 0.1 * Y, -0.08 * X + 0.48 * Y, flat(255))
    image, _ = render(World((quad,), BLACK), PINHOLE, np.eye(4))
    corners = quad.point(np.array((0.0, 1.0, 1.0, 0.0)), np.array((0.0, 0.0, 1.0, 1.0)))
    polygon = (corners[:, :2] / corners[:, 2:]) * (250.0, 260.0) + (158.3, 121.9)
    x, y = polygon.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = 0.5 * cross.sum()
    centroid = [(((a + np.roll(a, -1)) * cross).sum()) / (6 * area) for a in (x, y)]
    mass = image.astype(np.float64) / 255
    rows, columns = np.indices(mass.shape)
    assert mass.sum() == pytest.approx(abs(area), rel=2e-3)
    assert (mass * columns).sum() / mass.sum() == pytest.approx(centroid[0], abs=0.02)
    assert (mass * rows).sum() / mass.sum() == pytest.approx(centroid[1], abs=0.02)
    assert ((mass > 0.05) & (mass < 0.95)).sum() > 100  # outlines are smooth, not stairs


def test_stereo_disparity_is_focal_length_times_baseline_over_depth():
    """Along the left image's pixels the right camera sees the same surface f·b/z to the left."""
    baseline = 0.11
    slant = np.cos(0.4) * X + np.sin(0.4) * Z
    plane = Quad(3 * Z - 20 * slant - 20 * Y, 40 * slant, 40 * Y, flat(9))
    world = World((plane,))
    right_pose = np.eye(4)
    right_pose[0, 3] = baseline
    _, left = render(world, PINHOLE, np.eye(4))
    _, right = render(world, PINHOLE, right_pose)
    rows, columns = np.nonzero(left)
    x = columns - 250.0 * baseline / left[rows, columns].astype(np.float64)
    whole = np.floor(x).astype(int)
    usable = (whole >= 0) & (whole < PINHOLE.width - 1)
    rows, whole, x, columns = rows[usable], whole[usable], x[usable], columns[usable]
    assert len(rows) > 20_000
    # Inverse depth of a plane is linear in the image: interpolation is exact.
    assert right.all()
    inverse = 1.0 / right.astype(np.float64)
    there = inverse[rows, whole] * (1 - (x - whole)) + inverse[rows, whole + 1] * (x - whole)
    np.testing.assert_allclose(there * left[rows, columns], 1.0, rtol=5e-7)


def test_right_image_shows_what_the_disparity_says():
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (512, 512, 3), np.uint8), (0, 0), 2.0)
    quad = Quad(np.array((-2.0, -1.6, 2.0)), 4 * X + 1.2 * Z, 3.4 * Y, Texture(picture))
    world, baseline = World((quad,)), 0.1
    pose = np.eye(4)
    pose[0, 3] = baseline
    left, depth = render(world, PINHOLE, np.eye(4))
    right, _ = render(world, PINHOLE, pose)
    rows, columns = np.indices(left.shape, np.float32)

    def residual(offset_px):
        disparity = np.divide(
            250.0 * baseline, depth, out=np.full_like(depth, 1e3), where=depth > 0
        )
        moved = cv2.remap(
            right.astype(np.float32),
            columns - disparity + np.float32(offset_px),
            rows,
            cv2.INTER_CUBIC,
        )
        inner = (slice(20, -20), slice(40, -20))
        return float(((moved - left)[inner] ** 2)[depth[inner] > 0].mean())

    errors = [residual(offset) for offset in (-0.25, 0.0, 0.25)]
    # The parabola through three residuals has its vertex at the shift between the images.
    shift = 0.125 * (errors[0] - errors[2]) / (errors[0] - 2 * errors[1] + errors[2])
    assert errors[1] < 0.25 * min(errors[0], errors[2])
    assert abs(shift) < 0.01


def test_image_is_the_average_of_a_finer_image():
    """Texture is filtered, so it does not shimmer. Point sampling misses this by far."""
    rng = np.random.default_rng(0)
    floor = Quad(
        np.array((-20.0, 20.0, 0.0)),
        40 * X,
        -40 * Y,
        Texture(tiles(rng, 4.0, 4.0, 256.0), wrap=True),
        repeat=(10.0, 10.0),
    )
    pose = turned(0.0, 0.0, 0.0, (0.01, 0.02, 1.5))
    pose[:3, :3] = cv2.Rodrigues(np.array((0.0, 0.0, 0.5)))[0]
    pose = pose @ REP103_FROM_OPTICAL
    factor = 6
    finer = PINHOLE.resized(PINHOLE.width * factor, PINHOLE.height * factor)
    world = World((floor,))
    image, depth = render(world, PINHOLE, pose)
    fine, _ = render(world, finer, pose)
    expected = fine.reshape(240, factor, 320, factor).mean((1, 3))
    for nearest, farthest in ((3.0, 6.0), (6.0, 15.0)):
        chosen = (depth > nearest) & (depth < farthest)
        contrast = expected[chosen].std()
        assert contrast > 8
        assert (image - expected)[chosen].std() < 0.13 * contrast  # point sampling: 0.55 and 0.89
        assert image[chosen].std() > 0.95 * contrast  # and it is not blurred either
        assert image[chosen].mean() == pytest.approx(expected[chosen].mean(), abs=0.5)


def test_slanted_texture_stays_sharp_across_the_view():
    """Stripes along the direction of view survive on a floor: no isotropic blur."""
    stripes = ((np.arange(1024) // 16) % 2 * 200 + 20).astype(np.uint8)
    texture = Texture(np.tile(stripes[None, :, None], (1024, 1, 3)))
    # texture columns run across the view: x forward, so u runs along y
    floor = Quad(np.array((20.0, 8.0, 0.0)), -16 * Y, -20 * X, texture)
    pose = np.eye(4)
    pose[2, 3] = 1.2
    image, depth = render(World((floor,)), PINHOLE, pose @ REP103_FROM_OPTICAL)
    row = int(
        np.argmin(np.abs(depth[:, 160] - 9.0))
    )  # a stripe is 7 px wide there, 27 rows a metre
    contrast = np.ptp(image[row, 60:260].astype(float))
    assert contrast > 150


def test_nearer_rectangle_hides_the_farther_one_and_both_sides_are_seen():
    far = Quad(np.array((-5.0, -5.0, 4.0)), 10 * X, 10 * Y, flat(200))
    near = Quad(np.array((0.5, -0.5, 2.0)), -1 * X, 1 * Y, flat(60))  # seen from behind
    for order in ((far, near), (near, far)):
        image, depth = render(World(order), PINHOLE, np.eye(4))
        assert image[122, 158] == 60
        assert depth[122, 158] == pytest.approx(2.0, rel=1e-6)
        assert image[20, 20] == 200
        assert depth[20, 20] == pytest.approx(4.0, rel=1e-6)


def test_colour_image_agrees_with_grey_image():
    world, pose = random_world(5), turned(0.0, 0.0, 0.0, (0, 0, 0))
    grey, depth = render(world, PINHOLE, pose)
    colour, depth_too = render(world, PINHOLE, pose, colour=True)
    assert grey.shape == (240, 320)
    assert colour.shape == (240, 320, 3)
    assert np.array_equal(depth, depth_too)
    converted = cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY).astype(int)
    assert np.abs(converted - grey).max() <= 3


def box_world():
    from mv_matcher_ros.worlds.furniture import Builder
    from mv_matcher_ros.worlds.prints import crate

    builder = Builder(np.random.default_rng(0), 60.0)
    builder.box((0.0, 0.0), (2.0, 2.0, 2.0), crate)
    builder.box((5.0, 0.0), (1.0, 1.0, 1.0), crate)
    return World(tuple(builder.quads))


def test_camera_inside_a_box_sees_its_walls():
    pose = np.eye(4)
    pose[2, 3] = 1.0
    image, depth = render(box_world(), PINHOLE, pose @ REP103_FROM_OPTICAL)
    assert depth.min() > 0
    assert depth.max() <= 1.0 + 1e-6  # the wall ahead is 1 m away, nothing lies behind it
    assert image.std() > 3


def test_faces_that_look_away_are_skipped_without_a_trace():
    world = box_world()
    pose = np.eye(4)
    pose[:3, 3] = (-3.0, 0.6, 2.6)
    pose = pose @ REP103_FROM_OPTICAL
    open_world = World(tuple(Quad(q.origin, q.edge_u, q.edge_v, q.texture) for q in world.quads))
    assert world.drawable(pose).sum() < len(world.quads) / 2 + 1
    assert open_world.drawable(pose).all()
    for a, b in zip(render(world, PINHOLE, pose), render(open_world, PINHOLE, pose), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize('camera', CAMERAS)
def test_sky_and_empty_world_have_no_depth(camera):
    up = np.eye(4)
    up[:3, :3] = cv2.Rodrigues(np.array((np.pi / 2, 0.0, 0.0)))[0] @ REP103_FROM_OPTICAL[:3, :3]
    for world in (World(()), box_world()):
        pose = np.array(up)
        pose[:3, 3] = (0.0, 0.0, 5.0)
        pose[:3, :3] = np.array([(0, 1, 0), (1, 0, 0), (0, 0, -1)]).T @ np.diag((1, 1, -1))
        pose[:3, :3] = np.stack([X, Y, Z], 1)  # optical z along world z: straight up
        image, depth = render(world, camera, pose)
        assert not depth.any()
        assert image.dtype == np.uint8
        assert image[100:140, 140:180].std() < 30


def test_camera_in_the_plane_of_a_rectangle_does_not_see_it():
    quad = Quad(np.array((-1.0, 0.0, 1.0)), 2 * X, 2 * Z, flat(200))
    image, depth = render(World((quad,)), PINHOLE, np.eye(4))  # y = 0 holds camera and rectangle
    assert np.isfinite(depth).all()
    assert not depth.any()
    assert image.shape == (240, 320)


@pytest.mark.parametrize('offset', [1e-5, 1e-3])
def test_camera_almost_touching_a_wall_gives_a_finite_image(offset):
    quad = Quad(np.array((-1.0, -1.0, offset)), 2 * X, 2 * Y, flat(200))
    image, depth = render(World((quad,)), PINHOLE, np.eye(4))
    np.testing.assert_allclose(depth, offset, rtol=1e-5)
    assert (image == 200).all()


def test_rays_the_lens_cannot_have_are_black_and_without_depth():
    """A fisheye whose image circle is smaller than the image."""
    camera = Camera(320, 240, (60.0, 60.0, 159.5, 119.5), 'equidistant')
    wall = Quad(np.array((-500.0, -500.0, 1.0)), 1000 * X, 1000 * Y, flat(200))
    image, depth = render(World((wall,)), camera, np.eye(4))
    assert depth[120, 160] == pytest.approx(1.0, rel=1e-6)
    assert (image[:, 0] == 0).all()
    assert (depth[:, 0] == 0).all()


@pytest.mark.parametrize(
    'pose', [np.eye(3), np.full((4, 4), np.nan), np.diag((1.0, 2.0, 1.0, 1.0))]
)
def test_bad_pose_is_refused(pose):
    with pytest.raises(GeometryError, match='world_from_camera'):
        render(random_world(0), PINHOLE, pose)


def test_same_input_gives_the_same_bits():
    pose = turned(0.1, 0.2, 0.0, (0.1, 0.0, 0.0))
    first, second = (render(random_world(7), RADTAN, pose) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def best_of(times, function):
    seconds = []
    for _ in range(times):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_what_is_not_in_view_costs_little():
    seen, rng = random_world(0, 30), np.random.default_rng(1)
    texture = seen.quads[0].texture
    behind = tuple(
        Quad(np.array((*rng.uniform(-5, 5, 2), -3.0)), X, Y, texture) for _ in range(600)
    )
    large = World(seen.quads + behind)
    for world in (seen, large):
        render(world, PINHOLE, np.eye(4))  # pyramids are built once
    alone = best_of(7, lambda: render(seen, PINHOLE, np.eye(4)))
    together = best_of(7, lambda: render(large, PINHOLE, np.eye(4)))
    assert together < 3 * alone
