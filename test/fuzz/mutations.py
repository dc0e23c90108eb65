# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a file: blindly, and with a knowledge of what its bytes mean."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
# What a reader is told a number is.
NUMBERS = (
    'nan', '.nan', 'inf', '-.inf', '1e308', '-1e308', '1e-320', '1e999', '-1', '0', '-0.0', '1',
    '2', '65536', '2147483648', '4294967295', '9223372036854775807', '9223372036854775808',
    '18446744073709551616', '1' + 40 * '0', 5000 * '9', '0x7f', '1_0', '²', '1e400000',
    '2001-99-99',
)  # fmt: skip
WORDS = (
    '../../../outside', '/etc/passwd', '', ' ', 'null', '~', '[]', '{}', '[[]]', '&a [*a]',
    '!!int x',
    '!!python/object/apply:os.system [touch executed]', '\x00', '\x1b[31m', 'a\nb', 300 * '[',
    50_000 * 'x', '%YAML:1.0', '---', '<<: *x', 'é\udc80'.encode('utf-8', 'replace').decode(), "'",
)  # fmt: skip
# What stands in JSON in place of something else.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64, 10**40, 0.5,
    -0.0, 1e308, float('nan'), float('inf'), '', 'x', '../../../outside', '/etc', '.', '..',
    5000 * 'a', 'a\nb\x1b[0m', [], [[]], {}, {'x': 1}, [0, 0], [2**40, 2**40], [2**62, 4], [-1, 4],
)  # fmt: skip
LENGTHS = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1)
LONG_LENGTHS = (*LENGTHS, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TYPES = (
    '|O', '<f8', '<f2', '>f4', '|u1', '<i8', '<U5', '<U99999999', '<c16', '|V8', '<M8[ns]', '|b1',
    '<f16', '|S0', '<U0', '<g', 'x', [['a', '<f4']], [['a', '<f4', [2**30, 4]]],
)  # fmt: skip


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch executed',)


def mutated(name: str, content: bytes, rng: random.Random) -> bytes:
    """A spoiled version of a file; what its name says it is decides which ways there are."""
    ways = BY_SUFFIX.get(PurePath(name).suffix, (any_bytes,))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(ways)(content, rng)
    return content


# ------------------------------------------------------------------------ bytes


def any_bytes(content: bytes, rng: random.Random) -> bytes:
    """One of the blind ways."""
    if not content:
        return rng.randbytes(rng.choice((1, 8, 100)))
    return rng.choice((_flip, _flip, _overwrite, _length, _length, _cut, _splice, _repeat))(
        content, rng
    )


def _flip(content: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        spoiled[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    at, count = _place(content, rng), rng.choice((1, 2, 4, 8, 64))
    kind = rng.choice((b'\x00', b'\xff', b'\x80', b'\n', b'/'))
    put = kind * count if rng.random() < 0.5 else rng.randbytes(count)
    return content[:at] + put + content[at + len(put) :]


def _length(content: bytes, rng: random.Random) -> bytes:
    """Where a length may stand, a large one."""
    order, at = rng.choice('<>'), _place(content, rng)
    if rng.random() < 0.5:
        put = struct.pack(f'{order}I', rng.choice(LENGTHS))
    else:
        put = struct.pack(f'{order}Q', rng.choice(LONG_LENGTHS))
    return content[:at] + put + content[at + len(put) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] if rng.random() < 0.7 else content[at:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    """Bytes of one place at another."""
    here, there, count = _place(content, rng), _place(content, rng), rng.choice((1, 4, 16, 256))
    return content[:here] + content[there : there + count] + content[here + count :]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    """A piece once more, or not at all."""
    at, count = _place(content, rng), rng.choice((1, 4, 16, 256, 4096))
    times = rng.choice((0, 2, 2, 50))
    return content[:at] + times * content[at : at + count] + content[at + count :]


def _place(content: bytes, rng: random.Random) -> int:
    """Headers stand at the beginning and the end, so these are spoiled more often."""
    size = len(content)
    near = min(size, rng.choice((16, 200, 4000)))
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


# ------------------------------------------------------------------------- text


def text(content: bytes, rng: random.Random) -> bytes:
    """Numbers, words and lines replaced."""
    said = content.decode('utf-8', 'replace')
    way = rng.random()
    if way < 0.5:
        said = _token(said, r'-?\d+(?:\.\d+)?(?:e-?\d+)?', NUMBERS, rng)
    elif way < 0.75:
        said = _token(said, r'[A-Za-z_]\w*|:|- |\[|\]|,', (*WORDS, *NUMBERS), rng)
    else:
        lines = said.split('\n')
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[other]], [''] * 3))
        said = '\n'.join(lines)
    return said.encode('utf-8', 'surrogateescape')


def _token(said: str, pattern: str, instead: tuple[str, ...], rng: random.Random) -> str:
    found = list(re.finditer(pattern, said))
    if not found:
        return said + rng.choice(instead)
    token = rng.choice(found)
    return said[: token.start()] + rng.choice(instead) + said[token.end() :]


def json_text(content: bytes, rng: random.Random) -> bytes:
    """A value of a JSON replaced by one of another kind, size or sign, or nested too deep."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return any_bytes(content, rng)
    if rng.random() < 0.05:
        return (100_000 * rng.choice(('[', '{"a":'))).encode()
    return json.dumps(with_other_value(said, rng)).encode()


def with_other_value(said: Any, rng: random.Random) -> Any:
    """A tree with one of its values replaced, dropped or copied."""
    if not isinstance(said, dict | list) or not said or rng.random() < 0.1:
        return rng.choice(VALUES)
    changed: Any = said.copy()
    keys = list(said) if isinstance(said, dict) else range(len(said))
    key: Any = rng.choice(list(keys))
    way = rng.random()
    if way < 0.1:
        del changed[key]
    elif way < 0.2 and isinstance(said, dict):
        changed[rng.choice(('x', '../x', '/x', '', '__class__'))] = said[key]
    else:
        changed[key] = with_other_value(said[key], rng)
    return changed


# ----------------------------------------------------------------- numpy arrays


def npy(content: bytes, rng: random.Random) -> bytes:
    """The header of a .npy: another type, shape, order or version; or a pickle as the data."""
    if rng.random() < 0.1:
        header = {'descr': '|O', 'fortran_order': False, 'shape': (rng.choice((1, 3)),)}
        return npy_file(header, pickle.dumps([Evil()]))
    try:
        start = 10 + int.from_bytes(content[8:10], 'little')
        header = ast.literal_eval(content[10:start].decode())
        shape = [*header['shape']]
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):
        return any_bytes(content, rng)
    way = rng.random()
    if way < 0.5:
        if shape and rng.random() < 0.7:
            shape[rng.randrange(len(shape))] = rng.choice(VALUES[4:17])
        else:
            shape.insert(0, rng.choice(VALUES[3:17]))
        header['shape'] = tuple(shape)
    elif way < 0.8:
        header['descr'] = rng.choice(TYPES)
    else:
        key = rng.choice(list(header))
        header[key] = rng.choice(VALUES)
    if rng.random() < 0.1:
        literal = rng.choice((4000 * '(', 3000 * '-' + '1', '{' * 90, '"', '1\n  2', '1L', '\x00'))
        return npy_file(literal, content[start:], rng.choice((1, 2, 3, 9)))
    return npy_file(header, content[start:])


def npy_file(header: Any, data: bytes, version: int = 1) -> bytes:
    """A .npy of a header as it is."""
    said = (header if isinstance(header, str) else repr(header)).encode() + b'\n'
    size = struct.pack('<H' if version == 1 else '<I', len(said))
    return b'\x93NUMPY' + bytes((version, 0)) + size + said + data


def npz(content: bytes, rng: random.Random) -> bytes:
    """A member of an archive spoiled, dropped, there twice, or larger than the archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # whatever a spoiled archive leads to
        return any_bytes(content, rng)
    if not members:
        return content
    at, way, packed = rng.randrange(len(members)), rng.random(), zipfile.ZIP_STORED
    name, data = members[at]
    if way < 0.7:
        members[at] = name, rng.choice((npy, npy, any_bytes))(data, rng)
    elif way < 0.8:
        members[at] = rng.choice(('../../../outside.npy', '/x.npy', 'x', 'a/b.npy')), data
    elif way < 0.87:
        del members[at]
    elif way < 0.9:
        header = {'descr': '|u1', 'fortran_order': False, 'shape': (3 * 2**28,)}
        members[at], packed = (name, npy_file(header, bytes(2**24))), zipfile.ZIP_DEFLATED
    else:
        members.insert(at, (f'more{at}.npy', data))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', packed) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


# ---------------------------------------------------------------------- weights


def safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file: types, shapes, offsets, names, profile, notes."""
    try:
        size = int.from_bytes(content[:8], 'little')
        header = json.loads(content[8 : 8 + size])
        if rng.random() < 0.6:
            about = header['__metadata__']
            key = rng.choice(
                ('profile', 'profile', 'profile', 'notes', 'kind', 'sha256', 'format')
            )
            if key in ('profile', 'notes') and rng.random() < 0.9:
                about[key] = json.dumps(with_other_value(json.loads(about[key]), rng))
            else:
                about[key] = str(rng.choice(VALUES))
        else:
            header = with_other_value(header, rng)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return any_bytes(content, rng)
    said = json.dumps(header).encode()
    return struct.pack('<Q', len(said)) + said + content[8 + size :]


_TEXT: tuple[Mutation, ...] = (text, text, text, any_bytes)
BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    '.json': (json_text, json_text, text, any_bytes),
    '.npy': (npy, npy, any_bytes),
    '.npz': (npz, npz, npz, any_bytes),
    '.safetensors': (safetensors, safetensors, any_bytes),
    **dict.fromkeys(('.yaml', '.txt', '.csv', '.g2o', '.tum'), _TEXT),
}
