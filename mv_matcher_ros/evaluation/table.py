# SPDX-License-Identifier: Apache-2.0
"""One table over several runs, as plain data, JSON or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Header, attribute, format of a value; None is drawn as a dash, text as it is.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ('sequence', 'sequence', ''),
    ('sensor', 'sensor', ''),
    ('frames', 'frames', 'd'),
    ('path m', 'path_m', '.1f'),
    ('coverage %', 'coverage_percent', '.1f'),
    ('ATE SE(3) m', 'ate_se3_m', '.3f'),
    ('ATE Sim(3) m', 'ate_sim3_m', '.3f'),
    ('scale', 'scale', '.4f'),
    ('t_rel %', 't_rel', '.2f'),
    ('fps', 'fps', '.1f'),
)


@dataclass(frozen=True)
class TableRow:
    """One run. What does not exist is None; `error` says why a run has no numbers at all.

    Attributes:
        sequence, sensor: names.
        frames: processed frames.
        path_m: length of the truth's path.
        coverage: share of the frames with truth that have a pose.
        ate_se3_m, ate_sim3_m: RMSE after alignment; SE(3) has no meaning without metric scale and
            is None then.
        scale: estimate × scale = truth.
        t_rel_percent, t_rel_note: drift over 100 … 800 m, or why there is none.
        fps: frames processed per second.
        error: one line, or empty.
        notes: what must be known to read the numbers, for the lines below the table.
    """

    sequence: str
    sensor: str = ''
    frames: int | None = None
    path_m: float | None = None
    coverage: float | None = None
    ate_se3_m: float | None = None
    ate_sim3_m: float | None = None
    scale: float | None = None
    t_rel_percent: float | None = None
    t_rel_note: str = ''
    fps: float | None = None
    error: str = ''
    notes: tuple[str, ...] = ()

    @property
    def coverage_percent(self) -> float | None:
        """Coverage in percent."""
        return None if self.coverage is None else 100.0 * self.coverage

    @property
    def t_rel(self) -> float | str | None:
        """Drift in percent, or the first words of the note (`too short`)."""
        if self.t_rel_percent is not None:
            return self.t_rel_percent
        return self.t_rel_note.split(':')[0] or None


def table_cells(rows: Sequence[TableRow]) -> tuple[list[str], list[list[str]]]:
    """Header and formatted cells, for any renderer; an error stands in the second cell."""
    header = [name for name, _, _ in COLUMNS]
    body = []
    for row in rows:
        if row.error:
            body.append([row.sequence, row.error] + [''] * (len(COLUMNS) - 2))
        else:
            body.append([_cell(getattr(row, name), form) for _, name, form in COLUMNS])
    return header, body


def table_notes(rows: Sequence[TableRow]) -> list[str]:
    """The notes of all rows, each with the name of its sequence."""
    return [f'{row.sequence}: {note}' for row in rows for note in row.notes]


def table_json(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """One dictionary a row."""
    return [asdict(row) for row in rows]


def table_markdown(rows: Sequence[TableRow]) -> str:
    """A Markdown table with columns aligned also as plain text."""
    header, body = table_cells(rows)
    body = [[cell.replace('|', '\\|') for cell in cells] for cells in body]
    shown = [header] + [row if any(row[2:]) else [row[0], '', *row[2:]] for row in body]
    widths = [max(3, *(len(cells[k]) for cells in shown)) for k in range(len(header))]
    text_columns = {0, 1}

    def joined(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if k in text_columns else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f'| {" | ".join(padded)} |'

    rule = '|'.join(
        '-' * (width + 2) if k in text_columns else '-' * (width + 1) + ':'
        for k, width in enumerate(widths)
    )
    table = [joined(header), f'|{rule}|', *(joined(cells) for cells in body)]
    notes = [f'- {note}' for note in table_notes(rows)]
    return '\n'.join([*table, '', *notes] if notes else table) + '\n'


def _cell(value: Any, form: str) -> str:
    if value is None or value == '':
        return '–'
    return value if isinstance(value, str) else format(value, form)
