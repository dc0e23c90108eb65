# SPDX-License-Identifier: Apache-2.0
"""Arrays out of strangers' files: what numpy wrote is read, what lies is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from mv_matcher_ros.npy import array_from_npy, mapped_npy

KINDS = (
    arrays.boolean_dtypes() | arrays.integer_dtypes() | arrays.unsigned_integer_dtypes()
    | arrays.floating_dtypes() | arrays.complex_number_dtypes()
    | arrays.unicode_string_dtypes(min_len=1)
)  # fmt: skip


def npy(header: Any, data: bytes = b'', version: int = 1) -> bytes:
    """A .npy of a header as it is."""
    said = (header if isinstance(header, str) else repr(header)).encode() + b'\n'
    size = len(said).to_bytes(2 if version == 1 else 4, 'little')
    return b'\x93NUMPY' + bytes((version, 0)) + size + said + data


def header(descr: Any = '<f4', shape: Any = (2,)) -> dict[str, Any]:
    return {'descr': descr, 'fortran_order': False, 'shape': shape}


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, min_side=0, max_side=4)))
def test_what_numpy_writes_is_read(array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    back = array_from_npy(stream.getvalue())
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    'content',
    [
        b'', b'\x93NUMPY', b'\x93NUMPY\x01\x00\xff\xff', npy(header()), npy(header(), bytes(9)),
        npy(header(), bytes(8), version=2), npy(header('|O', (1,)), pickle.dumps([print])),
        npy(header('|S0', (2**40,))), npy(header('|V0', (1,))), npy(header(shape=(-2,)), bytes(8)),
        npy(header(shape=(2**62, 4))), npy(header(shape=(10**30,))),
        npy(header(shape=2), bytes(8)),
        npy(header([['a', '<f4', [2**30, 4]]])), npy(header('<U999999999', (1,))), npy('('),
        npy(4000 * '('), npy(9000 * '-' + '1'), npy('1\n  2'), npy({'shape': ()}),
        npy(header('x')),
    ],
)  # fmt: skip
def test_what_is_no_array_of_its_size_is_refused(tmp_path: Path, content: bytes) -> None:
    """An element of no size makes numpy's own mapping of a file divide by zero and die."""
    with pytest.raises(ValueError, match=r'header of a \.npy|not read|bytes are no'):
        array_from_npy(content)
    (tmp_path / 'a.npy').write_bytes(content)
    with pytest.raises(ValueError, match=r'header of a \.npy|not read|bytes are no'):
        mapped_npy(tmp_path / 'a.npy')


def test_a_mapped_file_is_the_same_and_stays_one(tmp_path: Path) -> None:
    wanted = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / 'a.npy', wanted)
    found = mapped_npy(tmp_path / 'a.npy')
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(array_from_npy((tmp_path / 'a.npy').read_bytes()), wanted)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('code', [0x110000, 0xFFFFFFFF, 0xD800, 0xDFFF])
def test_text_is_of_characters(order: str, code: int) -> None:
    """Python's strings break when a character is none: printing one raises SystemError."""
    data = np.array([65, code], f'{order}u4').tobytes()
    with pytest.raises(ValueError, match='characters that there are not'):
        array_from_npy(npy(header(f'{order}U2', ()), data))
    data = np.array([65, 0x10FFFF], f'{order}u4').tobytes()
    assert str(array_from_npy(npy(header(f'{order}U2', ()), data))) == 'A\U0010ffff'


@pytest.mark.parametrize('descr', [[('a', '<f4')], '<M8[s]', '|S4', '|V4'])
def test_only_numbers_and_text_are_read(descr: Any) -> None:
    size = np.dtype(descr).itemsize
    with pytest.raises(ValueError, match='is not read'):
        array_from_npy(npy(header(descr, (1,)), bytes(size)))
