# SPDX-License-Identifier: Apache-2.0
"""`dataset`: run and evaluate every sequence of a public data set's folder into one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.console import print_json, print_table, say, write_text
from mv_matcher_ros.cli.options import (
    ConfigOption,
    EndOption,
    JsonOption,
    SensorOption,
    SetOption,
    locate,
    settings_from,
)
from mv_matcher_ros.cli.out_folder import check_run_folder, check_table_folder, out_option
from mv_matcher_ros.errors import MvMatcherError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.evaluation.table import TableRow


def dataset(
    root: Annotated[
        Path, typer.Argument(help='Folder of KITTI, TUM or EuRoC sequences.', metavar='ROOT')
    ],
    out: Annotated[Path, out_option('Folder for one run folder a sequence and the table.')] = Path(
        'out/dataset'
    ),
    sensor: SensorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    end: EndOption = None,
    json: JsonOption = False,
) -> None:
    """Run and evaluate every sequence below ROOT; one table over all."""
    from mv_matcher_ros.evaluation.table import (
        table_cells,
        table_json,
        table_markdown,
        table_notes,
    )

    check_table_folder(out)
    settings = settings_from(config, assignments, sensor.value if sensor else None)
    folders = _sequences(locate(root))
    rows = []
    for number, (name, folder) in enumerate(folders, start=1):
        say(f'{number}/{len(folders)}  {name}')
        rows.append(_row(name, folder, settings, out / name, end))
        # After each one: a table of half a data set is worth having when the rest breaks.
        write_text(out / 'table.md', table_markdown(rows))
    content = table_json(rows)
    if json:
        print_json(content)
    else:
        print_table(f'{root}', *table_cells(rows), right=range(2, 10))
        for note in table_notes(rows):
            print(f'note: {note}')
        say(f'table: {out / "table.md"}')
    if all(row.error for row in rows):
        raise MvMatcherError(f'{root}: none of {len(rows)} sequences could be evaluated')


def _sequences(root: Path) -> list[tuple[str, Path]]:
    from mv_matcher_ros.files.open import find_sequences

    found = find_sequences(root)
    # `..` has a name only when it is resolved; as it stands it would lead out of --out.
    return [(str(f.relative_to(root)) if f != root else f.resolve().name, f) for f in found]


def _row(name: str, folder: Path, settings: Settings, out: Path, end: int | None) -> TableRow:
    """Run and evaluate one sequence; what goes wrong is said in the row, not raised."""
    from mv_matcher_ros.cli.evaluate import write_page
    from mv_matcher_ros.cli.run import open_recording, run_recording
    from mv_matcher_ros.evaluation.run_data import load_run
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_run, table_row
    from mv_matcher_ros.evaluation.table import TableRow

    try:
        check_run_folder(out)
        recording = open_recording(folder, settings, end=end)
        run_recording(recording, settings, out)
        if recording.truth is None:
            return TableRow(name, recording.sensor, len(recording), error='no ground truth')
        result = evaluate_run(out, recording.truth)
        write_page(out, recording.truth, result)
        return table_row(name, result, load_run(out), recording.sensor)
    except MvMatcherError as error:
        return TableRow(name, error=' '.join(str(error).split()))
