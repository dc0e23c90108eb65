# SPDX-License-Identifier: Apache-2.0
"""Worlds made of textured rectangles: their geometry, and what a ray meets.

In homogeneous pixel rays r = (x, y, 1) of a camera, a plane's inverse depth and its texture
coordinates times inverse depth are linear: (u/z, v/z, 1/z) = M r with one 3x3 matrix M a
rectangle. Everything the renderer does, visibility, depth, texture coordinates and their
derivatives, comes from M, so it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.mipmaps import Floats, Texture

# A camera nearer to a rectangle's plane than this sees it edge-on.
EDGE_ON_M = 1e-7
# Rectangles are clipped here when their bounds in the image are worked out; visibility itself is
# unclipped.
NEAR_M = 1e-6


@dataclass(frozen=True, eq=False)
class Quad:
    """A textured rectangle, seen from both sides.

    Attributes:
        origin: (3,) corner where the texture's top-left lies, world metres.
        edge_u: (3,) from there along the texture's rows (to the right), metres.
        edge_v: (3,) from there down the texture, perpendicular to `edge_u`, metres.
        texture: what is painted on it.
        repeat: how often the texture is laid along `edge_u` and `edge_v`.
        light: (h, w) float32 factor on the texture over the rectangle, or None for 1 everywhere.
        solid: number of the closed convex body the rectangle is a face of, -1 if none. Faces of a
            body that look away from the camera need no drawing while the camera is outside it.

    Raises:
        GeometryError: an edge has no length, or the edges are not perpendicular.
    """

    origin: Array
    edge_u: Array
    edge_v: Array
    texture: Texture = field(repr=False)
    repeat: tuple[float, float] = (1.0, 1.0)
    light: Floats | None = field(default=None, repr=False)
    solid: int = -1

    def __post_init__(self) -> None:
        for name in ('origin', 'edge_u', 'edge_v'):
            vector = np.array(getattr(self, name), np.float64)
            if vector.shape != (3,) or not np.isfinite(vector).all():
                raise GeometryError(f'quad: {name} is not a finite 3-vector')
            vector.setflags(write=False)
            object.__setattr__(self, name, vector)
        lengths = self.size_m
        if min(lengths) < 1e-6 or abs(self.edge_u @ self.edge_v) > 1e-6 * lengths[0] * lengths[1]:
            raise GeometryError('quad: edges must have a length and be perpendicular')

    @property
    def size_m(self) -> tuple[float, float]:
        """Lengths of `edge_u` and `edge_v` in metres."""
        return float(np.linalg.norm(self.edge_u)), float(np.linalg.norm(self.edge_v))

    @property
    def normal(self) -> Array:
        """(3,) unit normal towards the viewer who reads the texture unmirrored."""
        normal = np.cross(self.edge_v, self.edge_u)
        return normal / np.linalg.norm(normal)

    def point(self, u: Array, v: Array) -> Array:
        """(..., 3) world points at texture fractions `u` and `v` of the rectangle."""
        return self.origin + np.multiply.outer(u, self.edge_u) + np.multiply.outer(v, self.edge_v)


@dataclass(frozen=True)
class Sky:
    """What is seen where no rectangle is: a gradient over elevation, BGR."""

    horizon: tuple[float, float, float] = (225.0, 215.0, 205.0)
    zenith: tuple[float, float, float] = (190.0, 130.0, 80.0)


@dataclass(frozen=True, eq=False)
class World:
    """A set of rectangles in a z-up frame, metres.

    Attributes:
        quads: the rectangles, at most 32767.
        sky: background.
        name: for messages and file names.

    Raises:
        GeometryError: too many rectangles.
    """

    quads: tuple[Quad, ...]
    sky: Sky = field(default_factory=Sky)
    name: str = 'world'

    def __post_init__(self) -> None:
        object.__setattr__(self, 'quads', tuple(self.quads))
        if len(self.quads) > np.iinfo(np.int16).max:
            raise GeometryError(f'{self.name}: {len(self.quads)} quads are too many')

    @cached_property
    def origins(self) -> Array:
        """(Q, 3) origins."""
        return np.array([q.origin for q in self.quads]).reshape(-1, 3)

    @cached_property
    def edges(self) -> Array:
        """(Q, 2, 3) edge_u and edge_v."""
        return np.array([(q.edge_u, q.edge_v) for q in self.quads]).reshape(-1, 2, 3)

    @cached_property
    def normals(self) -> Array:
        """(Q, 3) unit normals."""
        return np.array([q.normal for q in self.quads]).reshape(-1, 3)

    @cached_property
    def solids(self) -> NDArray[np.int64]:
        """(Q,) body numbers, -1 for none."""
        return np.array([q.solid for q in self.quads], np.int64)

    def ray_maps(self, camera_from_world: Array) -> Array:
        """(Q, 3, 3) matrices M with (u/z, v/z, 1/z) = M (x, y, 1); zeros where seen edge-on.

        With unit normal n, distance d = n·o and dual edges g (g·e = 1), all in the camera frame,
        a point z r of the plane has 1/z = n·r / d and u = g·(z r − o), hence u/z = (g − (g·o) n /
        d)·r.
        """
        rotation, translation = camera_from_world[:3, :3], camera_from_world[:3, 3]
        origin = self.origins @ rotation.T + translation
        edge = self.edges @ rotation.T
        normal = self.normals @ rotation.T
        distance = np.einsum('qi,qi->q', normal, origin)
        visible = np.abs(distance) > EDGE_ON_M
        inverse = normal / np.where(visible, distance, 1.0)[:, None]
        dual = edge / np.einsum('qei,qei->qe', edge, edge)[..., None]
        offset = np.einsum('qei,qi->qe', dual, origin)
        maps = np.concatenate([dual - offset[..., None] * inverse[:, None], inverse[:, None]], 1)
        return maps * visible[:, None, None]

    def drawable(self, world_from_camera: Array) -> NDArray[np.bool_]:
        """(Q,) False for faces of closed bodies that their own front faces hide."""
        facing = np.einsum('qi,qi->q', self.normals, world_from_camera[:3, 3] - self.origins) > 0.0
        # A camera outside a convex body is in front of at least one of its faces.
        outside = np.isin(self.solids, self.solids[facing]) & (self.solids >= 0)
        return facing | ~outside

    def bounds(self, camera_from_world: Array) -> Array:
        """(Q, 4) x_min, x_max, y_min, y_max in the plane z = 1; inf, -inf if behind the camera."""
        rotation, translation = camera_from_world[:3, :3], camera_from_world[:3, 3]
        u, v = self.edges[:, 0], self.edges[:, 1]
        corners = np.stack([0 * u, u, u + v, v], 1) + self.origins[:, None]
        corners = corners @ rotation.T + translation
        following = np.roll(corners, -1, axis=1)
        z, z_next = corners[..., 2], following[..., 2]
        crossing = (z < NEAR_M) != (z_next < NEAR_M)
        at = (NEAR_M - z) / np.where(crossing, z_next - z, 1.0)
        cut = corners + at[..., None] * (following - corners)
        points = np.concatenate([corners, cut], 1)
        valid = np.concatenate([z >= NEAR_M, crossing], 1)
        flat = (
            points[..., :2] / np.where(valid, np.maximum(points[..., 2], NEAR_M), 1.0)[..., None]
        )
        low = np.where(valid[..., None], flat, np.inf).min(1)
        high = np.where(valid[..., None], flat, -np.inf).max(1)
        return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)

    @cached_property
    def boxes(self) -> Array:
        """(Q, 2, 3) smallest and largest corner of each rectangle."""
        u, v = self.edges[:, 0], self.edges[:, 1]
        corners = np.stack([0 * u, u, v, u + v]) + self.origins
        return np.stack([corners.min(0), corners.max(0)], 1)

    def blocked(
        self, start: Array, end: Array, among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """(N,) True where a rectangle lies strictly between `start` and `end`.

        Args:
            start, end: (N, 3) world metres; neighbouring segments together are fastest.
            among: (Q,) rectangles that can block; all by default.
        """
        found = np.zeros(len(start), np.bool_)
        if not len(start):
            return found
        low, high = np.minimum(start, end).min(0), np.maximum(start, end).max(0)
        near = (self.boxes[:, 0] <= high).all(1) & (self.boxes[:, 1] >= low).all(1)
        if among is not None:
            near &= among
        direction, start = (end - start).astype(np.float32), start.astype(np.float32)
        for k in np.flatnonzero(near):
            normal, (edge_u, edge_v) = self.normals[k].astype(np.float32), self.edges[k]
            offset = start - self.origins[k].astype(np.float32)
            height, slope = offset @ normal, direction @ normal
            # The segment's ends lie on different sides, neither of them in the plane.
            beyond = height + slope
            through = np.flatnonzero((height * beyond < 0.0) & (np.abs(height) > 1e-4))
            at = -height[through] / slope[through]
            place = offset[through] + at[:, None] * direction[through]
            hit = np.ones(len(through), np.bool_)
            for edge in (edge_u, edge_v):
                along = place @ edge.astype(np.float32)
                hit &= (along >= 0.0) & (along <= edge @ edge)
            found[through[hit]] = True
        return found
