# SPDX-License-Identifier: Apache-2.0
"""How commands speak: tables and JSON on stdout, remarks and progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mv_matcher_ros.errors import MvMatcherError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


class Advance(Protocol):
    """Call it after each step with a few words on where the work stands."""

    def __call__(self, words: str = '') -> None: ...


def console(stderr: bool = False) -> Console:
    """A console that does not wrap or colour what a file or pipe receives."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else 200, highlight=False, markup=False
    )


def say(line: str) -> None:
    """One remark for the person at the terminal; never mixed into results on stdout."""
    print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """One line on something that was repaired or left out."""
    say(f'mv-matcher: warning: {line}')


def print_json(content: Any) -> None:
    """JSON on stdout; numbers that JSON has no word for (NaN, infinity) become null."""
    print(json.dumps(plain(content), indent=2, allow_nan=False))


def plain(content: Any) -> Any:
    """`content` as JSON can hold it: tuples and arrays as lists, NaN and infinity as None."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if hasattr(content, 'tolist'):
        return plain(content.tolist())
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()
) -> None:
    """A table on stdout.

    Args:
        title: stands above it.
        columns: their headings.
        rows: cells; None prints as a dash.
        right: indices of columns that hold numbers.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = set(right)
    for i, name in enumerate(columns):
        table.add_column(name, justify='right' if i in numbers else 'left')
    for row in rows:
        table.add_row(*('–' if cell is None else str(cell) for cell in row))
    shown = console()
    if title:
        shown.print(title, soft_wrap=True)
    shown.print(table)


def write_text(path: Path, text: str) -> None:
    """Write a result file; a place that cannot be written is the user's fault, said in a line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    except OSError as error:
        raise MvMatcherError(f'{path}: cannot be written: {error.strerror}') from None


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Advance]:
    """A bar on stderr while long work runs; silent where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda words='': None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn('{task.description}'),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn('{task.fields[words]}'),
    )
    with bars.Progress(*columns, console=console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total, words='')
        yield lambda words='': shown.update(task, advance=1, words=words)
