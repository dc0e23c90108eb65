# SPDX-License-Identifier: Apache-2.0
"""Pairs of photographs of a plane with the homography between them, in the layout of HPatches.

A scene is a folder with images 1 to N and text files `H_1_k`, 3 x 3, from pixels of 1 to those of
k. Source: Balntas et al., HPatches, CVPR 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import SourceError

SUFFIXES = ('.ppm', '.png', '.jpg', '.jpeg')


@dataclass(frozen=True)
class HomographyPair:
    """Two images and the (3, 3) that carries pixels of the first into the second."""

    first: Path
    second: Path
    second_from_first: Array

    @property
    def name(self) -> str:
        """For progress and results."""
        return f'{self.first.parent.name} {self.first.stem}-{self.second.stem}'


def homography_pairs(folder: Path) -> list[HomographyPair]:
    """The pairs of a scene, or of all scenes in a folder, in order of their names.

    Raises:
        SourceError: there is none, or one is broken; says where.
    """
    files = sorted([*folder.glob('H_1_*'), *folder.glob('*/H_1_*')])
    if not files:
        raise SourceError(f'{folder}: no H_1_2, …, here or one folder below: layout of HPatches')
    return [_pair(path) for path in files]


def _pair(path: Path) -> HomographyPair:
    try:
        matrix = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise SourceError(f'{path}: not a matrix of numbers: {error}') from None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise SourceError(f'{path}: 3 x 3 finite numbers are expected')
    number = path.name.removeprefix('H_1_')
    return HomographyPair(_image(path, '1'), _image(path, number), matrix)


def _image(path: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        found = path.with_name(stem + suffix)
        if found.is_file():
            return found
    raise SourceError(f'{path}: no image {stem} beside it ({", ".join(SUFFIXES)})')
