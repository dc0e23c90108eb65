# SPDX-License-Identifier: Apache-2.0
"""Unit quaternions (x, y, z, w), the order of ROS, to and from rotation matrices.

Source: Bar-Itzhack, New method for extracting the quaternion from a rotation matrix, 2000.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.shapes import check

# 4 q q^T of q = (x, y, z, w) as a linear function of the nine entries of R and of 1.
_QUATERNION_ROWS = (
    ((1, 0, 0, 0, -1, 0, 0, 0, -1, 1), (0, 1, 0, 1, 0, 0, 0, 0, 0, 0)),
    ((0, 0, 1, 0, 0, 0, 1, 0, 0, 0), (0, 0, 0, 0, 0, -1, 0, 1, 0, 0)),
    ((0, 1, 0, 1, 0, 0, 0, 0, 0, 0), (-1, 0, 0, 0, 1, 0, 0, 0, -1, 1)),
    ((0, 0, 0, 0, 0, 1, 0, 1, 0, 0), (0, 0, 1, 0, 0, 0, -1, 0, 0, 0)),
    ((0, 0, 1, 0, 0, 0, 1, 0, 0, 0), (0, 0, 0, 0, 0, 1, 0, 1, 0, 0)),
    ((-1, 0, 0, 0, -1, 0, 0, 0, 1, 1), (0, -1, 0, 1, 0, 0, 0, 0, 0, 0)),
    ((0, 0, 0, 0, 0, -1, 0, 1, 0, 0), (0, 0, 1, 0, 0, 0, -1, 0, 0, 0)),
    ((0, -1, 0, 1, 0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1, 1)),
)


@lru_cache(maxsize=64)
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A small constant, made once: a new tensor costs more than the arithmetic it is used in.

    It is made in a thread of its own, outside of any torch.func transform or inference mode that
    the caller is in: a tensor of theirs must not be kept when they end.
    """
    with ThreadPoolExecutor(max_workers=1) as outside:
        return outside.submit(torch.tensor, values, dtype=dtype, device=device).result()


def quaternion_xyzw_from_matrix(rotation: torch.Tensor) -> torch.Tensor:
    """Unit quaternion (x, y, z, w) with w >= 0 of a rotation matrix.

    The matrix 4 q q^T is linear in the rotation; its row with the largest diagonal, normalised,
    is q. That row never vanishes, so values and gradients are regular everywhere.

    Args:
        rotation: (..., 3, 3).

    Returns:
        (..., 4), order xyzw.

    Raises:
        GeometryError: wrong shape.
    """
    check('rotation', rotation, 3, 3)
    table = constant(_QUATERNION_ROWS, rotation.dtype, rotation.device)
    # Products and a sum rather than a matrix product: exact also where TF32 is allowed.
    rows = (rotation.flatten(-2)[..., None, None, :] * table[..., :9]).sum(-1) + table[..., 9]
    rows = rows.flatten(-2)  # (..., 16)
    best = rows[..., ::5].argmax(-1, keepdim=True)[..., None]
    row = rows.unflatten(-1, (4, 4)).gather(-2, best.expand(*best.shape[:-1], 4)).squeeze(-2)
    sign = torch.where(row[..., 3:] < 0, -1.0, 1.0).to(row.dtype)
    return row * (sign / row.norm(dim=-1, keepdim=True))


def matrix_from_quaternion_xyzw(quaternion: torch.Tensor) -> torch.Tensor:
    """Rotation matrix of a quaternion, which need not be normalised.

    Args:
        quaternion: (..., 4), order xyzw.

    Returns:
        (..., 3, 3).

    Raises:
        GeometryError: wrong shape, or a quaternion of length zero or not finite.
    """
    check('quaternion', quaternion, 4)
    norm = quaternion.norm(dim=-1, keepdim=True)
    if not bool(((norm > 1e-12) & norm.isfinite()).all()):
        raise GeometryError('a quaternion of length zero or not finite has no rotation')
    x, y, z, w = (quaternion / norm).unbind(-1)
    xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
    xw, yw, zw = x * w, y * w, z * w
    rows = (
        torch.stack((1 - 2 * (yy + zz), 2 * (xy - zw), 2 * (xz + yw)), -1),
        torch.stack((2 * (xy + zw), 1 - 2 * (xx + zz), 2 * (yz - xw)), -1),
        torch.stack((2 * (xz - yw), 2 * (yz + xw), 1 - 2 * (xx + yy)), -1),
    )
    return torch.stack(rows, -2)
