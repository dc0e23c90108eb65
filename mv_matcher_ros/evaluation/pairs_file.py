# SPDX-License-Identifier: Apache-2.0
"""Lists of image pairs with known relative pose, in the text form of SuperGlue's evaluation.

One pair a line, 38 fields: `name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)`, matrices row by row, X1
= T_0to1 X0. Empty lines and lines that begin with `#` are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError

FIELDS = 38


@dataclass(frozen=True)
class ImagePair:
    """Two images of one scene and what is known of them.

    Attributes:
        names: as they stand in the file.
        paths: of the image files.
        quarter_turns: by which each stored image must be turned counter-clockwise (`np.rot90`) to
            be upright.
        matrices: (3, 3) pinhole matrix of each stored image.
        b_from_a: (4, 4) pose of the first camera in the second's frame, X_b = b_from_a X_a.
    """

    names: tuple[str, str]
    paths: tuple[Path, Path]
    quarter_turns: tuple[int, int]
    matrices: tuple[Array, Array]
    b_from_a: Array

    def upright(self, sizes: tuple[tuple[int, int], tuple[int, int]]) -> ImagePair:
        """The pair after turning both images upright: matrices and pose of the turned images.

        Args:
            sizes: (width, height) in pixels of each stored image.
        """
        matrices, turns = [], []
        for matrix, quarters, (width, height) in zip(
            self.matrices, self.quarter_turns, sizes, strict=True
        ):
            turned, rotation = matrix, np.eye(4)
            for _ in range(quarters % 4):
                turned, width, height = _turned_matrix(turned, width), height, width
                rotation = _QUARTER_TURN @ rotation
            matrices.append(turned)
            turns.append(rotation)
        return ImagePair(
            self.names,
            self.paths,
            (0, 0),
            (matrices[0], matrices[1]),
            turns[1] @ self.b_from_a @ turns[0].T,
        )


# A pixel (x, y) of an image turned counter-clockwise comes to (y, width - 1 - x), so a ray (X, Y,
# Z) to (Y, -X, Z).
_QUARTER_TURN = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def _turned_matrix(matrix: Array, width: int) -> Array:
    turned_from_pixel = np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]])
    return np.asarray(turned_from_pixel @ matrix @ _QUARTER_TURN[:3, :3].T)


def read_pairs(file: Path | str, images: Path | str | None = None) -> tuple[ImagePair, ...]:
    """Read a list of pairs.

    Args:
        file: the list.
        images: folder the names are relative to; by default that of the file.

    Raises:
        EvaluationError: the file is missing or empty, or a line is not of the form; names file and
            line.
    """
    path = Path(file)
    folder = path.parent if images is None else Path(images)
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except FileNotFoundError:
        raise EvaluationError(f'{path}: no such list of pairs') from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f'{path}: not a readable text file ({error})') from None
    if not folder.is_dir():
        raise EvaluationError(f'{folder}: no such folder of images')
    pairs = tuple(
        _read_line(line.split(), folder, f'{path}:{number}')
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith('#')
    )
    if not pairs:
        raise EvaluationError(f'{path}: the list holds no pairs')
    return pairs


def _read_line(fields: list[str], folder: Path, where: str) -> ImagePair:
    if len(fields) != FIELDS:
        raise EvaluationError(
            f'{where}: {len(fields)} fields instead of {FIELDS} '
            '(name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)); names must not contain spaces'
        )
    try:
        turns = (int(fields[2]), int(fields[3]))
        numbers = np.array([float(field) for field in fields[4:]])
    except ValueError as error:
        raise EvaluationError(f'{where}: not a number: {error}') from None
    matrices = (numbers[:9].reshape(3, 3), numbers[9:18].reshape(3, 3))
    pose = numbers[18:].reshape(4, 4)
    for name, matrix in zip(('K0', 'K1'), matrices, strict=True):
        if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise EvaluationError(f'{where}: {name} is no camera matrix (focal lengths > 0)')
        if not np.allclose(matrix[2], [0, 0, 1]) or abs(matrix[1, 0]) > 1e-9:
            raise EvaluationError(
                f'{where}: {name} is no pinhole matrix [fx s cx; 0 fy cy; 0 0 1]'
            )
    rotation = pose[:3, :3]
    rigid = (
        np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    )
    if not (np.isfinite(pose).all() and rigid and np.allclose(pose[3], [0, 0, 0, 1])):
        raise EvaluationError(f'{where}: T_0to1 is not a rigid transform')
    names = (fields[0], fields[1])
    return ImagePair(names, (folder / names[0], folder / names[1]), turns, matrices, pose)
