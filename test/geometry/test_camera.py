# SPDX-License-Identifier: Apache-2.0
"""Camera models against OpenCV, round trips over whole images, Jacobians, fold-over."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import camera as cam
from mv_matcher_ros.geometry.fold_over import valid_radius

# Published calibrations: KITTI 07, EuRoC cam0, TUM RGB-D fr2, TUM-VI cam0; `rational` is made
# up so that its denominator matters.
CALIBRATIONS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...], tuple[int, int]]] = {
    'pinhole': ('pinhole', (707.0912, 707.0912, 601.8873, 183.1104), (), (1226, 370)),
    'euroc': (
        'radtan',
        (458.654, 457.296, 367.215, 248.375),
        (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05),
        (752, 480),
    ),
    'fr2': (
        'radtan',
        (520.9, 521.0, 325.1, 249.7),
        (0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
        (640, 480),
    ),
    'rational': (
        'rational',
        (520.9, 521.0, 325.1, 249.7),
        (0.5, -2.1, 1e-3, -5e-4, 1.3, 0.4, -2.0, 1.25),
        (640, 480),
    ),
    'fisheye': (
        'equidistant',
        (190.978477, 190.973307, 254.931706, 256.897442),
        (0.00348238940225, 0.00071503484522, -0.00205323614187, 0.00020293673591),
        (512, 512),
    ),
}
NAMES = list(CALIBRATIONS)


def pixels(name: str, step: float = 16.0) -> torch.Tensor:
    width, height = CALIBRATIONS[name][3]
    u, v = torch.arange(0, width, step).double(), torch.arange(0, height, step).double()
    return torch.stack(torch.meshgrid(u, v, indexing='ij'), -1).reshape(-1, 2)


def arguments(name: str) -> tuple[Any, ...]:
    model, intrinsics, coefficients, _ = CALIBRATIONS[name]
    return intrinsics, model, coefficients


def opencv_matrix(name: str) -> np.ndarray:
    fx, fy, cx, cy = CALIBRATIONS[name][1]
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float64, 1e-9), (torch.float32, 4e-4)])
def test_round_trip_over_the_whole_image(name: str, dtype: torch.dtype, limit: float) -> None:
    there = pixels(name).to(dtype)
    rays, seen = cam.unproject(there, *arguments(name))
    assert seen.all()
    back, valid = cam.project(rays * 3.0, *arguments(name))
    assert valid.all()
    assert (back - there).abs().max() < limit
    if name == 'fisheye':
        assert (rays.norm(dim=-1) - 1).abs().max() < 1e-6
    else:
        assert (rays[:, 2] == 1).all()


@pytest.mark.parametrize('name', NAMES)
def test_projection_equals_opencv(name: str) -> None:
    model, intrinsics, coefficients, _ = CALIBRATIONS[name]
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 3, generator=generator, dtype=torch.float64) * 0.5
    points[:, 2] = points[:, 2].abs() + 1.0
    ours, valid = cam.project(points, intrinsics, model, coefficients)
    zero, matrix = np.zeros(3), opencv_matrix(name)
    if model == 'equidistant':
        theirs, _ = cv2.fisheye.projectPoints(
            points.numpy()[:, None], zero, zero, matrix, np.array(coefficients)
        )
    else:
        given = np.array(coefficients or (0.0,) * 4)
        theirs, _ = cv2.projectPoints(points.numpy(), zero, zero, matrix, given)
    assert valid.float().mean() > 0.5
    difference = np.abs(theirs.reshape(-1, 2) - ours.numpy())[valid.numpy()]
    assert difference.max() < 1e-9 * 500


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'pinhole'])
def test_undistortion_equals_opencv(name: str) -> None:
    model, intrinsics, coefficients, (width, height) = CALIBRATIONS[name]
    camera = Camera(width, height, intrinsics, model, coefficients)  # type: ignore[arg-type]
    there = pixels(name)
    # OpenCV's fisheye refuses nothing, but its iteration is only good in front of the camera.
    near = (there - torch.tensor(intrinsics[2:])).norm(dim=-1) < 0.6 * intrinsics[0]
    there = there[near]
    ours, valid = cam.camera_normalise(camera, there)
    assert valid.all()
    given, matrix = np.array(coefficients), opencv_matrix(name)
    if model == 'equidistant':
        theirs = cv2.fisheye.undistortPoints(there.numpy()[:, None], matrix, given)
    else:
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-14)
        source = there.numpy()[:, None]
        if hasattr(cv2, 'undistortPointsIter'):  # OpenCV 4
            theirs = cv2.undistortPointsIter(source, matrix, given, None, None, stop)
        else:
            theirs = cv2.undistortPoints(source, matrix, given, criteria=stop)
    assert np.abs(theirs.reshape(-1, 2) - ours.numpy()).max() < 1e-6


def test_fisheye_beyond_ninety_degrees() -> None:
    intrinsics, model, coefficients = arguments('fisheye')
    angle = torch.tensor([0.0, 1e-9, 1e-4, 1.0, 1.57, 1.5708, 2.0, 2.8], dtype=torch.float64)
    rays = torch.stack((angle.sin() * 0.6, angle.sin() * -0.8, angle.cos()), -1)
    there, valid = cam.project(5.0 * rays, intrinsics, model, coefficients)
    assert valid.all()
    back, valid = cam.unproject(there, intrinsics, model, coefficients)
    assert valid.all()
    assert (back - rays).abs().max() < 1e-12
    # The plane z = 1 ends at 90 degrees: there the coordinates are said not to exist.
    camera = Camera(512, 512, intrinsics, model, coefficients)
    _, on_plane = cam.camera_normalise(camera, there)
    assert on_plane.tolist() == [True] * 5 + [False] * 3
    behind = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    there, valid = cam.project(behind, intrinsics, model, coefficients)
    assert not valid.any()
    assert there.isfinite().all()


@pytest.mark.parametrize('name', NAMES)
def test_jacobians_equal_autograd(name: str) -> None:
    model, intrinsics, coefficients, _ = CALIBRATIONS[name]
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(8, 3, generator=generator, dtype=torch.float64) * 0.3
    points[:, 2] = points[:, 2].abs() + 1.0
    points[0, :2] = 0.0
    points[1, :2] = 1e-4
    if model == 'equidistant':
        points[2, 2] = -0.2
    k = torch.tensor(intrinsics, dtype=torch.float64)

    def each(function: Any, inputs: torch.Tensor) -> torch.Tensor:
        full = torch.autograd.functional.jacobian(function, inputs)
        return torch.stack([full[i, :, i] for i in range(len(inputs))])

    there, valid, by_point, by_intrinsics = cam.project_with_jacobian(
        points, k, model, coefficients
    )
    assert valid.all()
    expected = each(lambda p: cam.project(p, k, model, coefficients)[0], points)
    assert ((by_point - expected).abs() / (1 + expected.abs())).max() < 1e-11
    expected = torch.autograd.functional.jacobian(
        lambda c: cam.project(points, c, model, coefficients)[0], k
    )
    assert (by_intrinsics - expected).abs().max() < 1e-12

    _, valid, by_pixel, by_intrinsics = cam.unproject_with_jacobian(there, k, model, coefficients)
    assert valid.all()
    expected = each(lambda p: cam.unproject(p, k, model, coefficients)[0], there)
    assert (by_pixel - expected).abs().max() < 1e-12
    expected = torch.autograd.functional.jacobian(
        lambda c: cam.unproject(there, c, model, coefficients)[0], k
    )
    assert (by_intrinsics - expected).abs().max() < 1e-12

    xy = points[:, :2]
    expected = each(lambda p: cam.distort(p, model, coefficients) * k[:2] + k[2:], xy)
    assert (cam.pixel_jacobian(xy, k, model, coefficients) - expected).abs().max() < 1e-9


@pytest.mark.parametrize('name', ['euroc', 'fr2', 'rational', 'fisheye'])
def test_undistortion_is_differentiable_twice(name: str) -> None:
    model, _, coefficients, _ = CALIBRATIONS[name]
    k = torch.tensor(coefficients, dtype=torch.float64, requires_grad=True)
    xy = torch.tensor([[0.0, 0.0], [1e-4, 0.0], [0.3, -0.2], [0.5, 0.4]], dtype=torch.float64)
    xy = xy.requires_grad_()
    inputs = (xy, k)
    assert torch.autograd.gradcheck(lambda x, c: cam.undistort(x, model, c)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda x, c: cam.undistort(x, model, c)[0], inputs)
    assert torch.autograd.gradcheck(lambda x, c: cam.distort(x, model, c), inputs)


def test_fold_over_radius_is_where_the_distorted_radius_stops_growing() -> None:
    for model, coefficients in (
        ('radtan', (-0.35, 0.05, 0.0, 0.0, 0.0)),
        ('radtan', (0.1, -0.4)),
        ('rational', (0.2, -0.6, 0.0, 0.0, 0.0, 0.1, 0.05, 0.0)),
        ('equidistant', (-0.1, -0.05, 0.0, 0.0)),
    ):
        limit = valid_radius(model, coefficients)
        assert isinstance(limit, float)
        assert 0.3 < limit < 3.2
        radius = torch.linspace(1e-3, limit, 2000, dtype=torch.float64)
        if model == 'equidistant':
            radius = radius.tan() if limit < 1.5 else radius[radius < 1.5].tan()
        xy = torch.stack((radius, torch.zeros_like(radius)), -1)
        grown = cam.distort(xy, model, coefficients)[:, 0].diff()
        assert (grown > -1e-9).all()
        beyond = cam.distort(xy[-1:] * torch.tensor([[1.01, 1.0]]), model, coefficients)
        assert model == 'equidistant' or beyond[0, 0] < cam.distort(xy, model, coefficients)[-1, 0]
        tensor = torch.tensor([coefficients], dtype=torch.float64)
        assert abs(float(valid_radius(model, tensor)) - limit) < 1e-9  # type: ignore[arg-type]
    assert valid_radius('pinhole') == math.inf
    assert valid_radius('radtan', (0.0,) * 5) == math.inf
    assert valid_radius('radtan', (0.3, 0.1)) == math.inf
    assert valid_radius('equidistant', (0.0,) * 4) == pytest.approx(math.pi)


def test_points_beyond_the_fold_are_refused_both_ways() -> None:
    coefficients = (-0.35, 0.05, 0.0, 0.0, 0.0)
    limit = valid_radius('radtan', coefficients)
    points = torch.tensor([[0.9 * limit, 0, 1], [1.1 * limit, 0, 1]], dtype=torch.float64)
    there, valid = cam.project(points, (500.0, 500.0, 0.0, 0.0), 'radtan', coefficients)
    assert valid.tolist() == [True, False]
    # The second point folds back to where another one is seen; it must not come out as that one.
    largest = cam.distort(torch.tensor([[limit, 0.0]]).double(), 'radtan', coefficients)
    outside = torch.cat((largest * 1.05, largest * 0.999, there[:1] / 500.0)).requires_grad_()
    xy, valid = cam.undistort(outside, 'radtan', coefficients)
    assert valid.tolist() == [False, True, True]
    assert xy.isfinite().all()
    assert xy[1, 0] <= limit
    xy.sum().backward()
    assert outside.grad is not None
    assert outside.grad.isfinite().all()


def test_points_behind_and_not_finite() -> None:
    for name in NAMES:
        points = torch.tensor([[0.1, 0.1, -1.0], [0.0, 0.0, 0.0], [torch.nan, 0.0, 1.0]])
        points = points.requires_grad_()
        there, valid = cam.project(points, *arguments(name))
        assert not valid[1:].any()
        assert valid[0] == (name == 'fisheye')
        assert there[:2].isfinite().all()
        there[:2].sum().backward()
        assert points.grad is not None
        assert points.grad[:2].isfinite().all()
        _, valid = cam.unproject(torch.tensor([[torch.nan, 1.0]]), *arguments(name))
        assert not valid.any()


def test_batched_calibrations_broadcast() -> None:
    names = ('euroc', 'fr2')
    coefficients = torch.tensor(
        [list(CALIBRATIONS[n][2]) + [0.0] * (5 - len(CALIBRATIONS[n][2])) for n in names]
    )
    k = torch.tensor([CALIBRATIONS[n][1] for n in names])
    there = pixels('euroc', 64.0).float()
    rays, valid = cam.unproject(there, k[:, None], 'radtan', coefficients[:, None])
    assert rays.shape == (2, len(there), 3)
    for i, name in enumerate(names):
        single, single_valid = cam.unproject(there, *arguments(name))
        assert (single_valid == valid[i]).all()
        assert (single - rays[i])[single_valid].abs().max() < 2e-6
    empty, valid = cam.unproject(there[:0], *arguments('euroc'))
    assert empty.shape == (0, 3)
    assert valid.shape == (0,)


def test_wrong_input_is_named() -> None:
    xy = torch.zeros(2, 2)
    with pytest.raises(GeometryError, match='"thin_prism" is unknown; known: pinhole, radtan'):
        cam.distort(xy, 'thin_prism', ())
    with pytest.raises(GeometryError, match='takes 4 coefficients, got 5'):
        cam.distort(xy, 'equidistant', (0.0,) * 5)
    with pytest.raises(GeometryError, match='points must have shape'):
        cam.project(xy, (1.0, 1.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match='coefficients is'):
        cam.distort(xy, 'radtan', torch.zeros(5, dtype=torch.float64))


def test_camera_conveniences_agree_with_the_functions() -> None:
    intrinsics, model, coefficients = arguments('fr2')
    camera = Camera(640, 480, intrinsics, model, coefficients)
    there = pixels('fr2', 80.0)
    rays, _ = cam.camera_unproject(camera, there)
    xy, valid = cam.camera_normalise(camera, there)
    assert valid.all()
    assert (rays[:, :2] - xy).abs().max() == 0
    assert (cam.camera_project(camera, rays)[0] - there).abs().max() < 1e-9
    expected = cam.pixel_jacobian(xy, intrinsics, model, coefficients)
    assert (cam.camera_pixel_jacobian(camera, xy) - expected).abs().max() == 0
