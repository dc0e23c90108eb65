# SPDX-License-Identifier: Apache-2.0
"""Worlds made of textured triangles, from a binary glTF file: what a ray meets, by Embree."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError, MissingDependencyError, SourceError
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels, Texture
from mv_matcher_ros.worlds.planes import Sky

# A triangle with a smaller area (m²) has no direction that rounding has not made.
_SMALLEST_AREA = 1e-12
# Texture coordinates per metre are found by dividing by det² of the edges; below this it is zero.
_SMALLEST_DETERMINANT = 1e-30


@dataclass(frozen=True)
class Hits:
    """The nearest triangles along N rays.

    Attributes:
        triangle: (N,) int64 index, -1 where nothing is met.
        distance: (N,) float64 in lengths of the ray's direction, inf where nothing is met.
    """

    triangle: NDArray[np.int64]
    distance: Array


@dataclass(frozen=True, eq=False)
class MeshWorld:
    """Textured triangles in a z-up frame, seen from both sides.

    Attributes:
        triangles: (T, 3, 3) corners, metres.
        uv: (T, 3, 2) texture coordinates of the corners, row 0 of the image at v = 0; they may
            leave [0, 1], the texture then repeats.
        texture_index: (T,) which of `textures` is painted on each.
        textures: images.
        sky: what is seen where no triangle is.
        name: for messages and file names.

    Raises:
        GeometryError: no triangles, or arrays that do not belong together.
    """

    triangles: Array
    uv: Floats
    texture_index: NDArray[np.int64]
    textures: tuple[Texture, ...] = field(repr=False)
    sky: Sky = field(default_factory=Sky)
    name: str = 'mesh'

    def __post_init__(self) -> None:
        count = len(self.triangles)
        shapes = (self.triangles.shape, self.uv.shape, self.texture_index.shape)
        if not count or shapes != ((count, 3, 3), (count, 3, 2), (count,)):
            raise GeometryError(f'{self.name}: {shapes} are no triangles, uv and texture indices')
        if not 0 <= self.texture_index.min() <= self.texture_index.max() < len(self.textures):
            raise GeometryError(f'{self.name}: a triangle names a texture that is not there')

    @cached_property
    def bounds(self) -> Array:
        """(2, 3) smallest and largest corner, metres."""
        corners = self.triangles.reshape(-1, 3)
        return np.stack([corners.min(0), corners.max(0)])

    @cached_property
    def normals(self) -> Array:
        """(T, 3) unit normals, of either sign."""
        normal = np.cross(
            self.triangles[:, 1] - self.triangles[:, 0],
            self.triangles[:, 2] - self.triangles[:, 0],
        )
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)

    @cached_property
    def normals_32(self) -> Floats:
        """`normals` in float32."""
        return self.normals.astype(np.float32)

    @cached_property
    def corners(self) -> Array:
        """(T, 3) first corner of each triangle."""
        return np.ascontiguousarray(self.triangles[:, 0])

    @cached_property
    def uv_gradients(self) -> Floats:
        """(T, 2, 3) change of u and v per metre, along the triangle: uv = uv₀ + g (p − p₀)."""
        a = self.triangles[:, 1] - self.triangles[:, 0]
        b = self.triangles[:, 2] - self.triangles[:, 0]
        aa, ab, bb = (np.einsum('ti,ti->t', *pair) for pair in ((a, a), (a, b), (b, b)))
        determinant = aa * bb - ab * ab
        safe = np.where(determinant > _SMALLEST_DETERMINANT, determinant, np.inf)[:, None]
        dual_a = (bb[:, None] * a - ab[:, None] * b) / safe
        dual_b = (aa[:, None] * b - ab[:, None] * a) / safe
        along = (self.uv[:, 1:] - self.uv[:, :1]).astype(np.float64)
        gradient = along[:, 0, :, None] * dual_a[:, None] + along[:, 1, :, None] * dual_b[:, None]
        return gradient.astype(np.float32)

    @cached_property
    def _scene(self) -> Any:
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError:
            raise MissingDependencyError('embreex', 'train', 'rendering a mesh world') from None
        scene = EmbreeScene()
        TriangleMesh(scene, np.ascontiguousarray(self.triangles, np.float32))
        return scene

    def cast(self, origin: Array, direction: Array) -> Hits:
        """What rays meet first.

        Args:
            origin: (N, 3) or (3,) world metres.
            direction: (N, 3); its length is the unit of the distances.
        """
        rays = np.ascontiguousarray(direction, np.float32)
        start = np.ascontiguousarray(np.broadcast_to(origin, rays.shape), np.float32)
        if not len(rays):
            return Hits(np.zeros(0, np.int64), np.zeros(0))
        found = self._scene.run(start, rays, output=True)
        triangle = found['primID'].astype(np.int64)
        distance = np.where(triangle >= 0, found['tfar'].astype(np.float64), np.inf)
        return Hits(triangle, distance)

    def blocked(self, start: Array, end: Array) -> NDArray[np.bool_]:
        """(N,) True where a triangle lies between `start` and `end`, (N, 3) world metres."""
        return self.cast(start, end - start).distance < 1.0


def load_mesh(path: Path | str) -> MeshWorld:
    """The world in a .glb file: z up, metres, transforms of its nodes applied.

    Raises:
        SourceError: no such file, not a glTF file, or nothing in it carries a texture.
        MissingDependencyError: trimesh is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f'{path}: no such .glb file')
    try:
        import trimesh
    except ImportError:
        raise MissingDependencyError('trimesh', 'train', 'reading a .glb world') from None
    try:
        scene = trimesh.load_scene(path, process=False)
    except Exception as error:  # trimesh raises whatever its parsers of glTF and images raise
        raise SourceError(f'{path}: cannot be read as a glTF file: {error}') from None
    found = [_part(scene, node) for node in scene.graph.nodes_geometry]
    parts = [part for part in found if part is not None and len(part[0])]
    if not parts:
        raise SourceError(f'{path}: holds no triangles')
    if all(part[2].image.size == 3 for part in parts):
        raise SourceError(
            f'{path}: nothing in it has a texture; images of one colour cannot be matched'
        )
    counts = [len(part[0]) for part in parts]
    triangles = np.concatenate([part[0] for part in parts])
    uv = np.concatenate([part[1] for part in parts])
    index = np.repeat(np.arange(len(parts)), counts)
    edges = triangles[:, 1:] - triangles[:, :1]
    kept = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) > 2 * _SMALLEST_AREA
    kept &= np.isfinite(triangles).all((1, 2)) & np.isfinite(uv).all((1, 2))
    if not kept.any():
        raise SourceError(f'{path}: all of its triangles are degenerate')
    textures = tuple(part[2] for part in parts)
    return MeshWorld(triangles[kept], uv[kept], index[kept], textures, name=path.stem)


def _part(scene: Any, node: str) -> tuple[Array, Floats, Texture] | None:
    """Triangles in the world, texture coordinates and texture of one node; None: no mesh."""
    world_from_node, name = scene.graph[node]
    mesh = scene.geometry[name]
    faces = getattr(mesh, 'faces', None)
    if faces is None:
        return None
    corners = np.asarray(mesh.vertices, np.float64)[faces]
    triangles = corners @ np.asarray(world_from_node)[:3, :3].T + world_from_node[:3, 3]
    material = getattr(mesh.visual, 'material', None)
    uv = getattr(mesh.visual, 'uv', None)
    image = getattr(material, 'baseColorTexture', None)
    if image is None:
        image = getattr(material, 'image', None)
    if uv is None or image is None:
        flat = np.full((1, 1, 3), _flat_colour(mesh, material), np.uint8)
        return triangles, np.zeros((*triangles.shape[:2], 2), np.float32), Texture(flat, True)
    pixels = cv2.cvtColor(np.asarray(image.convert('RGB'), np.uint8), cv2.COLOR_RGB2BGR)
    # trimesh counts v upwards, as OpenGL does.
    at = np.asarray(uv, np.float64)[faces] * (1.0, -1.0) + (0.0, 1.0)
    return triangles, at.astype(np.float32), Texture(np.asarray(pixels, np.uint8), True)


def _flat_colour(mesh: Any, material: Any) -> Pixels:
    """(3,) BGR of a part without texture."""
    colour = getattr(material, 'main_color', None)
    if colour is None:
        colour = getattr(mesh.visual, 'main_color', (150, 150, 150))
    return np.asarray(colour, np.uint8)[2::-1]
