# SPDX-License-Identifier: Apache-2.0
"""`eval`: errors of a run against the truth, as a table, JSON and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import print_json, print_table, say
from mv_matcher_ros.cli.options import (
    Alignment,
    BodyOption,
    CalibrationOption,
    JsonOption,
    TopicOption,
    locate,
    parse_topics,
)

if TYPE_CHECKING:
    from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult
    from mv_matcher_ros.evaluation.trajectory_error import ErrorStatistics


def evaluate(
    run: Annotated[
        Path, typer.Argument(help='Run folder, or a TUM trajectory file.', metavar='RUN')
    ],
    truth: Annotated[
        Path, typer.Option(help='TUM, KITTI or EuRoC poses; or the sequence folder or bag.')
    ],
    align: Annotated[
        Alignment | None, typer.Option(help='Default: se3, for mono sim3.', show_default=False)
    ] = None,
    max_difference_s: Annotated[
        float, typer.Option(min=0.0, help='Largest time difference of a pose and its truth.')
    ] = 0.01,
    interpolate: Annotated[
        bool, typer.Option('--interpolate', help='Interpolate the truth at the stamps of the run.')
    ] = False,
    calibration: CalibrationOption = None,
    topic: TopicOption = None,
    body_frame: BodyOption = None,
    report: Annotated[bool, typer.Option(help='Write report.html into the run folder.')] = True,
    json: JsonOption = False,
) -> None:
    """Trajectory errors of a run against the truth."""
    from mv_matcher_ros.evaluation.run_data import load_run
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_run
    from mv_matcher_ros.files.truth import read_truth

    data = load_run(run)
    known = read_truth(
        locate(truth), data.stamps_ns if data.has_frames else None, sensor=data.sensor or None,
        calibration=calibration or None, topics=parse_topics(topic or ()), body_frame=body_frame,
    )  # fmt: skip
    result = evaluate_run(
        run, known, align.value if align else None,
        max_difference_s=max_difference_s, interpolate=interpolate,
    )  # fmt: skip
    if json:
        print_json(result.to_json())
    else:
        print_result(str(run), result)
    if report and run.is_dir():
        say(f'report: {write_page(run, known, result)}')


def write_page(run: Path, truth: Any, result: EvaluationResult | None) -> Path:
    """Write the report of a run folder; `truth` as `write_report` takes it."""
    from mv_matcher_ros.errors import MvMatcherError
    from mv_matcher_ros.evaluation.report import write_report

    try:
        return write_report(run, truth, result.align if result else None, result=result)
    except OSError as error:
        raise MvMatcherError(f'{run}: the report cannot be written: {error.strerror}') from None


def print_result(name: str, result: EvaluationResult) -> None:
    """The errors a person looks at first, with what must be known to read them."""
    fitted = 'SE(3)' if result.align == 'se3' else 'Sim(3)'
    share = result.percent_of_path
    of_path = '' if share is None else f'{share:.2f} % of path'
    turned = result.turned_deg
    by_positions = '' if turned is None else f'{turned:.1f}° by positions'
    rows = [
        (f'ATE after {fitted}', *_cells(result.ate.translation_m, 'm'), of_path),
        ('  attitude, aligned by itself', *_cells(result.ate.attitude_deg, '°'), by_positions),
    ]  # fmt: skip
    other = result.sim3 if result.align == 'se3' else None
    if other is not None:
        rows.append(('ATE after Sim(3)', *_cells(other.translation_m, 'm'), ''))
    for error in result.rpe:
        frames = 'frame' if error.delta == 1 else 'frames'
        unit = f'{error.delta:g} {frames if error.unit == "frames" else error.unit}'
        rows.append((f'RPE over {unit}', *_cells(error.translation_m, 'm'), ''))
        rows.append(('  rotation', *_cells(error.rotation_deg, '°'), ''))
    print_table(
        f'{name}: {len(result.pairs)} poses compared over {_path(result)}, '
        f'coverage {100 * result.coverage:.1f} %',
        ('error', 'RMSE', 'median', 'p95', 'max', ''),
        rows,
        right=range(1, 6),
    )
    print_table('', ('figure', 'value'), _figures(result), right=(1,))
    for note in result.notes:  # not on stderr: the table is misread without them
        print(f'note: {note}')


def _cells(statistics: ErrorStatistics, unit: str) -> tuple[str, ...]:
    values = (statistics.rmse, statistics.median, statistics.p95, statistics.max)
    return tuple(f'{value:.4f} {unit}' for value in values)


def _path(result: EvaluationResult) -> str:
    return f'{result.path_m:.1f} m' if result.path_m >= 1.0 else f'{result.path_m:.2g} m'


def _figures(result: EvaluationResult) -> list[tuple[str, str | None]]:
    from mv_matcher_ros.evaluation.drift import MIN_PATH_M, rotation_drift

    scale = 'none: hardly any motion' if result.scale is None else f'{result.scale:.4f}'
    figures: list[tuple[str, str | None]] = [('scale factor (estimate × scale = truth)', scale)]
    if result.path_m < MIN_PATH_M:
        short = f'none: the path is below {MIN_PATH_M:g} m'
        figures.append(('error and drift per distance travelled', short))
    drift, label = result.drift, 'over 100 … 800 m'
    if drift.t_rel_percent is None and result.drift_short is not None:
        drift, label = result.drift_short, 'over short segments, not comparable with tables'
    if drift.t_rel_percent is not None and drift.r_rel_deg_per_100m is not None:
        figures.append((f't_rel {label}', f'{drift.t_rel_percent:.3f} %'))
        figures.append((f'r_rel {label}', rotation_drift(drift, drift.r_rel_deg_per_100m)))
    if result.nees is not None:
        figures.append(
            (
                'NEES per degree of freedom',
                f'{result.nees.nees_per_dof:.2f} ({result.nees.verdict})',
            )
        )
        low, high = 100.0 * result.nees.coverage[1].min(), 100.0 * result.nees.coverage[1].max()
        figures.append(('motions within 2 σ, by axis (95 %)', f'{low:.0f} to {high:.0f} %'))
        if result.nees.gain is not None:
            figures.append((
                'likelihood against the best constant covariance',
                f'{result.nees.gain:+.2f} nats a motion',
            ))  # fmt: skip
    return figures
