# SPDX-License-Identifier: Apache-2.0
"""A camera in one row of a text file: `fx fy cx cy [k1 k2 p1 p2 k3 [width height]]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.files.camera_info import distortion_model, image_size
from mv_matcher_ros.files.text import read_lines, read_rows

FORM = 'fx fy cx cy [k1 k2 p1 p2 k3 [width height]]'


def is_row(text: str) -> bool:
    """Whether the first line that is no comment consists of numbers."""
    lines = (line.split('#', 1)[0].replace(',', ' ').split() for line in text.splitlines())
    fields = next((fields for fields in lines if fields), [])
    try:
        return len([float(field) for field in fields]) > 1
    except ValueError:
        return False


def read_row(
    path: Path, size: Callable[[], tuple[int, int]] | None = None
) -> tuple[Camera, float | None]:
    """Camera and depth scale (stored value of one metre) of such a file.

    Args:
        path: text file; a comment `depth_scale S` gives the depth scale.
        size: asked for (width, height) when the row has none; without it they must be there.

    Raises:
        CalibrationError: no such row.
    """
    rows = [fields for _, fields in read_rows(path)]
    try:
        values = [float(v) for v in rows[0]] if rows else []
    except ValueError as error:
        raise CalibrationError(f'{path}: {error}') from None
    if len(values) not in (4, 9, 11):
        raise CalibrationError(f'{path}: {len(values)} values; expected "{FORM}"')
    if len(values) == 11:
        width, height = image_size(values[9:], str(path))
    elif size is None:
        raise CalibrationError(
            f'{path}: the row has no image size; append "k1 k2 p1 p2 k3 width height" (zeros '
            'without distortion)'
        )
    else:
        width, height = size()
    scale = re.search(r'\bdepth_scale[\s:=]+([0-9]+(?:\.[0-9]*)?)', '\n'.join(read_lines(path)))
    camera = camera_of_row(values, (width, height), str(path))
    return camera, float(scale.group(1)) if scale else None


def camera_of_row(values: Sequence[float], size: tuple[int, int], where: str) -> Camera:
    """The camera of `fx fy cx cy [k1 k2 p1 p2 k3 …]`."""
    fx, fy, cx, cy, *distortion = values
    model = distortion_model('plumb_bob', distortion[:5], where)
    coefficients = () if model == 'pinhole' else tuple(distortion[:5])
    return Camera(size[0], size[1], (fx, fy, cx, cy), model, coefficients, name='rgb')
