# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from mv_matcher_ros.evaluation.table import (
    TableRow,
    table_cells,
    table_json,
    table_markdown,
    table_notes,
)

ROWS = [
    TableRow(
        '07', 'mono', 160, 90.3, 0.98125, None, 0.4621, 4.76543, None, 'too short: 90 m', 13.44
    ),
    TableRow('00', 'stereo', 4541, 3722.2, 1.0, 1.2345, 1.1, 0.9991, 0.701, '', 9.0),
    TableRow('x|y', error='no such folder'),
]


def test_cells_are_formatted_and_what_is_missing_is_a_dash():
    header, cells = table_cells(ROWS)
    assert cells[0] == [
        '07', 'mono', '160', '90.3', '98.1', '–', '0.462', '4.7654', 'too short', '13.4',
    ]  # fmt: skip
    assert cells[1][header.index('t_rel %')] == '0.70'
    assert cells[1][header.index('ATE SE(3) m')] == '1.234'
    assert cells[2][:2] == ['x|y', 'no such folder']
    assert all(len(row) == len(header) for row in cells)


def test_json_keeps_full_numbers_and_names():
    content = json.loads(json.dumps(table_json(ROWS), allow_nan=False))
    assert content[0]['ate_sim3_m'] == 0.4621
    assert content[0]['ate_se3_m'] is None
    assert content[0]['t_rel_note'] == 'too short: 90 m'
    assert content[2]['error'] == 'no such folder'


def test_markdown_has_a_rule_and_equal_columns():
    lines = table_markdown(ROWS).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith('| sequence')
    assert set(lines[1]) <= set('|-:')
    assert [line.replace('\\|', '').count('|') for line in lines] == [11] * 5
    assert len(lines[0]) == len(lines[1]) == len(lines[2]) == len(lines[3])
    assert 'no such folder' in lines[4]


def test_notes_stand_below_the_table_with_their_sequence():
    rows = [*ROWS, TableRow('rest', notes=('no scale: it stood', 'too short'))]
    notes = ['rest: no scale: it stood', 'rest: too short']
    assert table_notes(rows) == notes
    assert table_markdown(rows).splitlines()[-3:] == ['', *(f'- {note}' for note in notes)]
