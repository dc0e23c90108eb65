# SPDX-License-Identifier: Apache-2.0
"""The folder of `--out`: it has a name, and nothing else lies in it than what we wrote."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from mv_matcher_ros.errors import MvMatcherError


def named(text: str | Path) -> Path:
    """A path of its text; no text would be the current folder.

    Raises:
        typer.BadParameter: empty.
    """
    if not str(text).strip():
        raise typer.BadParameter('the name is empty; give a folder, e.g. out/run')
    return Path(text)


def out_option(help_text: str) -> Any:
    """The option `--out` of a command that fills a folder."""
    return typer.Option(help=help_text, parser=named, metavar='FOLDER')


def check_run_folder(folder: Path, also: Collection[str] = ()) -> None:
    """Refuse to write a run among other files: new, empty and earlier run folders are fine.

    Args:
        folder: to be written.
        also: names that may be in it besides.

    Raises:
        MvMatcherError: it holds something and no run.
    """
    from mv_matcher_ros.files.results import ODOMETRY, STATUS, SUMMARY

    names = _names(folder) - set(also)
    if names and not names & {ODOMETRY, STATUS, SUMMARY}:
        raise _others(folder, names)


def check_table_folder(folder: Path) -> None:
    """The same for a folder of run folders with a table.

    Raises:
        MvMatcherError: it holds something, and neither a table nor a run.
    """
    from mv_matcher_ros.files.results import ODOMETRY

    names = _names(folder)
    depths = (f'{"*/" * depth}{ODOMETRY}' for depth in (1, 2, 3))
    if names and 'table.md' not in names and not any(any(folder.glob(p)) for p in depths):
        raise _others(folder, names)


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    try:
        return {path.name for path in folder.iterdir() if not path.name.startswith('.')}
    except OSError as error:
        raise MvMatcherError(f'{folder}: cannot be written: {error.strerror}') from None


def _others(folder: Path, names: Collection[str]) -> MvMatcherError:
    return MvMatcherError(
        f'{folder}: holds other files ({min(names)}, {len(names)} in all) and no earlier run; '
        'give --out a new or empty folder'
    )
