# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of somebody else, as tensors and nothing more: what is in them is not run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mv_matcher_ros.errors import ModelError

COUNTER = 'num_batches_tracked'
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_public(path: Path) -> dict[str, Tensor]:
    """The tensors of somebody else's checkpoint; executes nothing of it.

    Raises:
        ModelError: not a checkpoint of plain tensors.
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > size:
                    raise ModelError('a compressed checkpoint: it could unpack to any size')
        content: Any = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise ModelError('no such checkpoint') from None
    except ModelError:
        raise
    except Exception as error:  # torch.load raises whatever pickle and zip raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if 'weights_only' in reason:  # and pages of advice to trust the file
            reason = 'it holds more than tensors, which is not unpickled'
        raise ModelError(f'not a readable checkpoint: {reason}') from None
    if isinstance(content, dict) and isinstance(content.get('state_dict'), dict):
        content = content['state_dict']
    if not isinstance(content, dict) or not all(torch.is_tensor(t) for t in content.values()):
        raise ModelError('not a checkpoint of plain tensors')
    # A tensor may be a view that repeats a few numbers as often as it likes.
    if sum(tensor.numel() * tensor.element_size() for tensor in content.values()) > size:
        raise ModelError('its tensors are larger than the file')
    check_numbers(content, 'not a checkpoint of plain tensors')
    return content


def check_numbers(tensors: Mapping[Any, Any], fault: str) -> None:
    """Raise a ModelError that begins with `fault` unless all are dense finite real numbers.

    Counters of batch norms, which are whole, are nobody's weights.
    """
    for name, tensor in tensors.items():
        plain = torch.is_tensor(tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if plain and tensor.dtype == torch.int64 and str(name).endswith(COUNTER):
            continue
        if not (isinstance(name, str) and plain and tensor.dtype in _REAL):
            raise ModelError(f'{fault}: {name!r} holds no real numbers')
        if not torch.isfinite(tensor.float()).all():  # as the networks have them
            raise ModelError(f'{fault}: a number of {name!r} is not finite')
