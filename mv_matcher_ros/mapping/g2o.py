# SPDX-License-Identifier: Apache-2.0
"""Pose graphs of rigid transforms in g2o's text form.

`VERTEX_SE3:QUAT id x y z qx qy qz qw`; `EDGE_SE3:QUAT a b x y z qx qy qz qw` and the upper
triangle of the 6x6 information, row by row, in the order translation, rotation; `FIX id …`. g2o
itself measures rotations by the vector part of the quaternion, half the angle; most files, and
GTSAM, which reads them, mean rad. So do we.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.geometry.se3 import matrix_from_quaternion_xyzw, quaternion_xyzw_from_matrix

VERTEX, EDGE, FIX = 'VERTEX_SE3:QUAT', 'EDGE_SE3:QUAT', 'FIX'
FIELDS = {VERTEX: 8, EDGE: 30}
_KEYS = 1 << 62
# Elements beyond it are no measurement, and their squares no numbers.
_LARGEST = 1e100
_UPPER = np.triu_indices(6)


@dataclass(frozen=True)
class Edge:
    """A measured pose of keyframe `b` from keyframe `a`.

    Attributes:
        a, b: keys.
        a_from_b: (4, 4).
        information: (6, 6) inverse covariance of a perturbation on the right, in the order
            x y z rx ry rz.
    """

    a: int
    b: int
    a_from_b: Array
    information: Array


@dataclass(frozen=True)
class PoseGraphFile:
    """What a file says.

    Attributes:
        poses: (4, 4) map_from_body of each key.
        edges: in the order of the file.
        fixed: keys whose pose is held.
    """

    poses: dict[int, Array]
    edges: Sequence[Edge]
    fixed: Sequence[int] = field(default_factory=tuple)


def read_g2o(path: Path | str) -> PoseGraphFile:
    """Read a pose graph.

    Raises:
        SourceError: missing file, a line of another kind, numbers that are missing or not finite,
            a quaternion of zero length, an edge between unknown vertices; names the line.
    """
    path = Path(path)
    vertices: dict[int, Array] = {}
    edges: list[tuple[str, int, int, Array]] = []
    fixed: list[tuple[str, int]] = []
    for where, tag, fields in _rows(path):
        if tag == FIX:
            fixed += [(where, _key(where, text)) for text in fields]
            continue
        if tag not in FIELDS:
            raise SourceError(f'{where}: "{tag}" is not read here; known: {VERTEX}, {EDGE}, {FIX}')
        if len(fields) != FIELDS[tag]:
            raise SourceError(f'{where}: {tag} has {len(fields)} fields instead of {FIELDS[tag]}')
        key = _key(where, fields[0])
        if tag == EDGE:
            edges.append((where, key, _key(where, fields[1]), _numbers(where, fields[2:])))
            continue
        if key in vertices:
            raise SourceError(f'{where}: vertex {key} stands there twice')
        vertices[key] = _numbers(where, fields[1:])
    if not vertices:
        raise SourceError(f'{path}: no poses')
    named = [(where, key) for where, a, b, _ in edges for key in (a, b)] + fixed
    for where, key in named:
        if key not in vertices:
            raise SourceError(f'{where}: there is no vertex {key}')
    poses = dict(zip(vertices, _poses(list(vertices.values())), strict=True))
    measured = _poses([numbers[:7] for *_, numbers in edges])
    return PoseGraphFile(
        poses,
        tuple(
            Edge(a, b, pose, _symmetric(numbers[7:]))
            for (_, a, b, numbers), pose in zip(edges, measured, strict=True)
        ),
        tuple(key for _, key in fixed),
    )


def write_g2o(path: Path | str, content: PoseGraphFile) -> None:
    """Write a pose graph in full precision; what `read_g2o` reads is what was written."""
    lines = [
        f'{VERTEX} {key} {_text(row)}'
        for key, row in zip(content.poses, _pose_rows(content.poses.values()), strict=True)
    ]
    lines += [f'{FIX} {key}' for key in content.fixed]
    rows = _pose_rows([edge.a_from_b for edge in content.edges])
    lines += [
        f'{EDGE} {edge.a} {edge.b} {_text(row)} {_text(np.asarray(edge.information)[_UPPER])}'
        for edge, row in zip(content.edges, rows, strict=True)
    ]
    Path(path).write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')


def _rows(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(file and line, tag, fields) of every line that is not blank or a comment."""
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise SourceError(f'{path}: no such file') from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f'{path}: not a readable text file ({error})') from None
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split('#', 1)[0].split()
        if fields:
            yield f'{path}:{number}', fields[0], fields[1:]


def _key(where: str, text: str) -> int:
    try:
        key = int(text)
    except ValueError:
        key = -1
    if not 0 <= key < _KEYS:
        raise SourceError(f'{where}: "{text}" is not the number of a vertex')
    return key


def _numbers(where: str, fields: Sequence[str]) -> Array:
    """Numbers that begin with x y z qx qy qz qw."""
    try:
        numbers = np.array([float(text) for text in fields])
    except ValueError as error:
        raise SourceError(f'{where}: {error}') from None
    if not np.isfinite(numbers).all():
        raise SourceError(f'{where}: a number is not finite')
    if np.abs(numbers).max() > _LARGEST:
        raise SourceError(f'{where}: a number is larger than {_LARGEST:g}')
    if np.linalg.norm(numbers[3:7]) < 1e-6:
        raise SourceError(f'{where}: the quaternion is zero')
    return numbers


def _poses(rows: Sequence[Array]) -> Array:
    """(N, 4, 4) of rows x y z qx qy qz qw."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    poses = np.tile(np.eye(4), (len(table), 1, 1))
    poses[:, :3, 3] = table[:, :3]
    poses[:, :3, :3] = matrix_from_quaternion_xyzw(torch.from_numpy(table[:, 3:].copy())).numpy()
    return poses


def _symmetric(upper: Array) -> Array:
    """(6, 6) of its upper triangle, row by row."""
    matrix = np.zeros((6, 6))
    matrix[_UPPER] = upper
    return np.asarray(matrix + np.triu(matrix, 1).T)


def _pose_rows(poses: Iterable[Array]) -> Array:
    """(N, 7) x y z qx qy qz qw."""
    stacked = np.array(list(poses), dtype=np.float64).reshape(-1, 4, 4)
    turns = quaternion_xyzw_from_matrix(torch.from_numpy(stacked[:, :3, :3].copy())).numpy()
    return np.hstack([stacked[:, :3, 3], turns])


def _text(numbers: Array) -> str:
    return ' '.join(repr(float(n)) for n in numbers)
