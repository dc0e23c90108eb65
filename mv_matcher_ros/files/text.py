# SPDX-License-Identifier: Apache-2.0
"""Rows of text files, with `#` comments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mv_matcher_ros.errors import SourceError


def read_lines(path: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        SourceError: missing, or not text.
    """
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except FileNotFoundError:
        raise SourceError(f'{path}: no such file') from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f'{path}: not a readable text file ({error})') from None


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line that is not blank or a comment; commas count as blanks.

    Raises:
        SourceError: missing, or not text.
    """
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split('#', 1)[0].replace(',', ' ').split()
        if fields:
            yield number, fields
