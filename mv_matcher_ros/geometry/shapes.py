# SPDX-License-Identifier: Apache-2.0
"""Checks of shapes and types at the door of every geometric function."""

from __future__ import annotations

import torch

from mv_matcher_ros.errors import GeometryError


def check(name: str, tensor: torch.Tensor, *trailing: int) -> None:
    """Require a float32/float64 tensor whose last dimensions are `trailing` (-1: any size).

    Args:
        name: what the message calls the argument.
        tensor: the argument.
        trailing: sizes of the last dimensions; leading dimensions are free.

    Raises:
        GeometryError: not a tensor, not float32/float64, or another shape.
    """
    if not isinstance(tensor, torch.Tensor):
        raise GeometryError(f'{name} must be a torch tensor, got {type(tensor).__name__}')
    if tensor.dtype not in (torch.float32, torch.float64):
        raise GeometryError(f'{name} must be float32 or float64, got {tensor.dtype}')
    shape = tensor.shape[tensor.dim() - len(trailing) :] if tensor.dim() >= len(trailing) else ()
    if len(shape) != len(trailing) or any(
        want not in (-1, got) for want, got in zip(trailing, shape, strict=True)
    ):
        wanted = ', '.join('N' if size < 0 else str(size) for size in trailing)
        raise GeometryError(f'{name} must have shape (..., {wanted}), got {tuple(tensor.shape)}')


def check_same_type(**tensors: torch.Tensor) -> None:
    """Require one floating type and one device for all, so that nothing is promoted in silence.

    Raises:
        GeometryError: naming the two arguments that differ.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise GeometryError(
                f'{name} is {tensor.dtype} on {tensor.device}, but {first_name} is {first.dtype} '
                f'on {first.device}; convert one of them'
            )
