# SPDX-License-Identifier: Apache-2.0
"""Arrays in numpy's .npy form, out of files and messages of strangers.

`np.load` believes the header: it makes room for what that says, and dies by a signal when it
maps a file of elements of no size. Here nothing is unpickled, and what the bytes do not hold is
refused.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

# Of version 1, which is what numpy writes unless there are thousands of named columns.
_KINDS = 'biufcU'  # numbers and text
_LONGEST_HEADER = 10 + 0xFFFF


def array_from_npy(data: bytes) -> NDArray[Any]:
    """The array of the bytes of a .npy, read-only and without a copy.

    Raises:
        ValueError: not one, of columns, of characters that there are not, or another number of
            bytes than its shape and type need.
    """
    shape, order, dtype, start = _header(data[:_LONGEST_HEADER], len(data))
    if dtype.kind not in _KINDS:
        raise ValueError(f'{dtype} is not read')
    if dtype.kind == 'U' and 0 not in shape:
        # numpy hands any 32 bits on to Python, whose strings break when they are no character.
        codes = np.frombuffer(data, np.dtype('u4').newbyteorder(dtype.byteorder), offset=start)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError('text of characters that there are not')
    return np.ndarray(shape, dtype, data, start, order=order)


def mapped_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file; it stays in the file until it is used.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `array_from_npy`.
    """
    with path.open('rb') as file:
        shape, order, dtype, start = _header(file.read(_LONGEST_HEADER), path.stat().st_size)
        return np.memmap(file, dtype, 'r', start, shape, order)


def _header(head: bytes, size: int) -> tuple[tuple[int, ...], Any, np.dtype[Any], int]:
    """Shape, order ('C' or 'F'), type and place of the data, which fills `size` bytes up."""
    stream = io.BytesIO(head)
    try:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError('a version that is not read')
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    except (
        Exception
    ) as error:  # numpy has Python parse it: SyntaxError, RecursionError, TokenError
        raise ValueError(f'no header of a .npy ({error})') from None
    start = stream.tell()
    if dtype.hasobject or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError(f'{dtype} of shape {shape} is not read')
    if math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(f'{size - start} bytes are no {dtype} of shape {shape}')
    return shape, 'F' if fortran else 'C', dtype, start
