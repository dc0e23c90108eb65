# SPDX-License-Identifier: Apache-2.0
"""Image and exact depth of a mesh world: rays by Embree, textures by mip-maps, outlines smoothed.

The depth is the intersection of the pixel's ray with the plane of the triangle it meets, in
float64. Where neighbouring pixels meet surfaces that differ, four more rays share the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.lighting import Lamp
from mv_matcher_ros.worlds.mesh import MeshWorld
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels
from mv_matcher_ros.worlds.raster import Raster

# Four places in a pixel, no two in a row or column, relative to its centre.
_PLACES = np.array([(-0.375, 0.125), (0.125, 0.375), (0.375, -0.125), (-0.125, -0.375)])
# Neighbours whose depth differs by more than this share, or whose normals differ by more than
# this cosine, lie on different surfaces.
_DEPTH_STEP = 0.03
_BEND_COSINE = 0.9
# Shadow rays start this far in front of a surface.
_LIFT_M = 0.004
# and end short of the lamp, which may hang on a surface.
_SHADOW_SHARE = 0.97
_GREY = np.array([0.114, 0.587, 0.299], np.float32)


@dataclass(frozen=True)
class Shading:
    """Light in a mesh world: Lambert's law on the faces, nothing baked.

    Attributes:
        ambient: light that comes from everywhere.
        lamps: point lights, as in `lighting`.
        drift_m: (3,) how far the lamps move while `moment` goes from 0 to 1.
        gain: factor on everything: the exposure.
        shadows: whether lamps cast shadows.
    """

    ambient: float = 1.0
    lamps: tuple[Lamp, ...] = ()
    drift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gain: float = 1.0
    shadows: bool = True

    def at(self, moment: float) -> Shading:
        """The light at a moment, standing still."""
        x, y, z = (moment * d for d in self.drift_m)
        moved = tuple(
            replace(
                lamp, position=(lamp.position[0] + x, lamp.position[1] + y, lamp.position[2] + z)
            )
            for lamp in self.lamps
        )
        return replace(self, lamps=moved, drift_m=(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class _Samples:
    """Rays of one image and what they meet; (N,) each."""

    x: Floats  # ray (x, y, 1) in the camera
    y: Floats
    triangle: NDArray[np.int64]
    z: Array  # depth, inf for the sky


def render_mesh(
    world: MeshWorld,
    camera: Camera,
    world_from_camera: Array,
    shading: Shading | None = None,
    smooth: bool = True,
) -> tuple[Pixels, Floats]:
    """Grey image and depth of `world` as `camera` sees it.

    Args:
        world: what is seen.
        camera: any distortion model; `body_from_camera` is not used.
        world_from_camera: (4, 4) pose of the optical frame, metres.
        shading: light; None for the plain textures.
        smooth: False leaves outlines jagged, which is faster.

    Returns:
        (H, W) uint8 image, and (H, W) float32 metres along the optical axis at the pixel centres,
        0 where nothing is met.

    Raises:
        GeometryError: the pose is not a finite rigid transform.
    """
    pose = np.asarray(world_from_camera, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise GeometryError('render: world_from_camera is not a finite 4x4 transform')
    if not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6):
        raise GeometryError('render: world_from_camera has no rotation in its upper left')
    shading = Shading() if shading is None else shading
    raster = Raster.of(camera)
    seen = np.flatnonzero(raster.valid)
    samples = _cast(world, pose, *raster.at(seen))
    image = np.zeros(raster.width * raster.height, np.float32)
    depth = np.zeros(raster.width * raster.height, np.float32)
    image[seen] = _shade(world, pose, samples, raster, seen, shading)
    known = samples.triangle >= 0
    depth[seen[known]] = samples.z[known]
    if smooth:
        nearest = np.full(len(image), -1)
        nearest[seen] = samples.triangle
        shape = (raster.height, raster.width)
        pixel = np.flatnonzero(
            _outlines(world, nearest.reshape(shape), depth.reshape(shape)) & raster.valid
        )
        image[pixel] = _smoothed(world, pose, raster, pixel, shading)
    grey = np.clip(image + 0.5, 0.0, 255.0).astype(np.uint8)
    return grey.reshape(raster.height, raster.width), depth.reshape(raster.height, raster.width)


def _cast(world: MeshWorld, pose: Array, x: Floats, y: Floats) -> _Samples:
    rays = np.stack([x, y, np.ones_like(x)], 1).astype(np.float64) @ pose[:3, :3].T
    hits = world.cast(pose[:3, 3], rays)
    z = hits.distance.copy()
    met = np.flatnonzero(hits.triangle >= 0)
    normal = world.normals.take(hits.triangle[met], 0)
    offset = world.corners.take(hits.triangle[met], 0) - pose[:3, 3]
    across = np.einsum('ni,ni->n', normal, rays[met])
    plane = np.einsum('ni,ni->n', normal, offset) / np.where(np.abs(across) > 1e-9, across, 1.0)
    # Of a sliver seen edge-on the plane says less than the ray-caster.
    exact = np.abs(plane - z[met]) < 1e-3 * z[met]
    z[met[exact]] = plane[exact]
    return _Samples(x, y, hits.triangle, z)


def _outlines(world: MeshWorld, triangle: NDArray[np.int64], depth: Floats) -> NDArray[np.bool_]:
    """(H, W) True where a neighbour lies on another surface, seen as another depth or bend."""
    outline = np.zeros(triangle.shape, np.bool_)
    normals = world.normals_32
    for here, there in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        rows, columns = np.nonzero(triangle[here] != triangle[there])
        if not len(rows):
            continue
        a, b = triangle[here][rows, columns], triangle[there][rows, columns]
        near, far = depth[here][rows, columns], depth[there][rows, columns]
        differs = np.abs(near - far) > _DEPTH_STEP * np.minimum(near, far)
        differs |= np.abs(np.einsum('ni,ni->n', normals[a], normals[b])) < _BEND_COSINE
        differs |= world.texture_index[a] != world.texture_index[b]
        differs |= (a < 0) | (b < 0)
        rows, columns = rows[differs], columns[differs]
        outline[here][rows, columns] = True
        outline[there][rows, columns] = True
    return outline


def _smoothed(
    world: MeshWorld, pose: Array, raster: Raster, pixel: NDArray[np.int64], shading: Shading
) -> Floats:
    """(N,) mean grey value of the four places in each pixel."""
    x, y = raster.at(pixel)
    dx, dy = raster.derivatives(pixel)
    places = _PLACES.astype(np.float32)
    across = [x + p * dx[0] + q * dy[0] for p, q in places]
    down = [y + p * dx[1] + q * dy[1] for p, q in places]
    samples = _cast(world, pose, np.concatenate(across), np.concatenate(down))
    values = _shade(world, pose, samples, raster, np.tile(pixel, len(places)), shading)
    return np.clip(values, 0.0, 255.0).reshape(len(places), -1).mean(0)


def _shade(
    world: MeshWorld,
    pose: Array,
    samples: _Samples,
    raster: Raster,
    pixel: NDArray[np.int64],
    shading: Shading,
) -> Floats:
    """(N,) grey values of the samples, each the size of the pixel it lies in."""
    values = np.empty(len(pixel), np.float32)
    sky = np.flatnonzero(samples.triangle < 0)
    values[sky] = shading.gain * _sky(world, pose, samples.x[sky], samples.y[sky])
    met = np.flatnonzero(samples.triangle >= 0)
    if not len(met):
        return values
    triangle = samples.triangle[met]
    x, y, z = samples.x[met], samples.y[met], samples.z[met].astype(np.float32)
    rotation = pose[:3, :3].astype(np.float32)
    normal = world.normals_32.take(triangle, 0) @ rotation
    gradient = world.uv_gradients.take(triangle, 0) @ rotation
    corner = (world.corners.take(triangle, 0) - pose[:3, 3]).astype(np.float32) @ rotation
    point = np.stack([x * z, y * z, z], 1)
    offset = point - corner
    at = world.uv[:, 0].take(triangle, 0) + (gradient @ offset[:, :, None])[:, :, 0]
    footprint = _footprint(raster.derivatives(pixel[met]), x, y, z, normal, gradient)
    texture = world.texture_index.take(triangle)
    order = np.argsort(texture, kind='stable')
    starts = np.flatnonzero(np.diff(texture[order], prepend=-1))
    grey = np.empty(len(met), np.float32)
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        chosen = order[begin:end]
        pyramid = world.textures[texture[chosen[0]]].grey
        u, v = at[chosen, 0], at[chosen, 1]
        du_dx, dv_dx, du_dy, dv_dy = (f[chosen] for f in footprint)
        grey[chosen] = pyramid.look_up(u, v, (du_dx, dv_dx, du_dy, dv_dy))
    values[met] = grey * _light(world, pose, point, normal, shading)
    return values


def _footprint(
    steps: tuple[tuple[Floats, Floats], tuple[Floats, Floats]],
    x: Floats,
    y: Floats,
    z: Floats,
    normal: Floats,
    gradient: Floats,
) -> tuple[Floats, ...]:
    """du/dx, dv/dx, du/dy, dv/dy per pixel: along a plane p = z r, dp = z (dr − r n·dr / n·r)."""
    across = normal[:, 0] * x + normal[:, 1] * y + normal[:, 2]
    across = np.where(np.abs(across) > 1e-6, across, np.float32(1e-6))
    along_ray = gradient[:, :, 0] * x[:, None] + gradient[:, :, 1] * y[:, None] + gradient[:, :, 2]
    found: list[Floats] = []
    for a, b in steps:
        slope = (normal[:, 0] * a + normal[:, 1] * b) / across
        for k in (0, 1):
            moved = gradient[:, k, 0] * a + gradient[:, k, 1] * b - along_ray[:, k] * slope
            found.append((z * moved).astype(np.float32, copy=False))
    return tuple(found)


def _light(
    world: MeshWorld, pose: Array, point: Floats, normal: Floats, shading: Shading
) -> Floats:
    """(N,) factor on the texture at points (N, 3) of the camera's frame."""
    light = np.full(len(point), shading.ambient, np.float32)
    facing = normal * -np.sign(np.einsum('ni,ni->n', normal, point))[:, None]
    for lamp in shading.lamps:
        place = ((np.array(lamp.position) - pose[:3, 3]) @ pose[:3, :3]).astype(np.float32)
        toward = place - point
        distance = np.maximum(np.sqrt(np.einsum('ni,ni->n', toward, toward)), np.float32(1e-6))
        slant = np.einsum('ni,ni->n', toward, facing) / distance
        lit = np.flatnonzero(slant > 0.0)
        if shading.shadows and len(lit):
            start = (point[lit] + np.float32(_LIFT_M) * facing[lit]) @ pose[:3, :3].T + pose[:3, 3]
            end = start + _SHADOW_SHARE * (np.array(lamp.position) - start)
            lit = lit[~world.blocked(start, end)]
        falloff = 2.0 / (1.0 + (distance[lit] / np.float32(lamp.reach_m)) ** 2)
        light[lit] += np.float32(lamp.strength) * slant[lit] * falloff
    return light * np.float32(shading.gain)


def _sky(world: MeshWorld, pose: Array, x: Floats, y: Floats) -> Floats:
    up = pose[2, :3].astype(np.float32)
    elevation = (up[0] * x + up[1] * y + up[2]) / np.sqrt(x * x + y * y + 1.0)
    share = np.sqrt(np.clip(elevation, 0.0, 1.0))
    horizon, zenith = (
        float(np.array(c, np.float32) @ _GREY) for c in (world.sky.horizon, world.sky.zenith)
    )
    return (horizon + share * (zenith - horizon)).astype(np.float32)
