# SPDX-License-Identifier: Apache-2.0
"""`report.html`: one self-contained page that shows how a run went, with or without truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult, FittedAlignment
from mv_matcher_ros.evaluation.report_links import LinkedFrames
from mv_matcher_ros.evaluation.report_sections import (
    frames_section,
    latency_section,
    path_section,
    time_section,
)
from mv_matcher_ros.evaluation.report_tables import accuracy_section, settings_section
from mv_matcher_ros.evaluation.report_tiles import lead, tiles
from mv_matcher_ros.evaluation.run_data import RunData, load_run
from mv_matcher_ros.evaluation.run_evaluation import evaluate_loaded_run
from mv_matcher_ros.evaluation.track_sampler import SampledFrame, read_samples
from mv_matcher_ros.files.truth import read_truth


@dataclass(frozen=True)
class Content:
    """A run with everything the page is made of."""

    run: RunData
    result: EvaluationResult | None
    samples: Sequence[SampledFrame]
    warning: str = ''  # why there is truth but no evaluation


def write_report(
    run_dir: Path | str,
    truth: Trajectory | Path | str | None = None,
    align: FittedAlignment | None = None,
    *,
    out: Path | str | None = None,
    result: EvaluationResult | None = None,
) -> Path:
    """Write the report of a run folder.

    Args:
        run_dir: written by a run, with the pictures of a `TrackSampler` if there was one.
        truth: trajectory, or a file or folder with one; None for a report without errors.
        align: see `evaluate_run`.
        out: file to write, by default `report.html` in the run folder.
        result: an evaluation of this run already made; spares making it again.

    Returns:
        The file written. A run that cannot be compared with the truth gets a report that says why.

    Raises:
        SourceError: the run or the truth cannot be read.
    """
    run = load_run(run_dir)
    warning = ''
    if result is None and truth is not None:
        if not isinstance(truth, Trajectory):
            truth = read_truth(truth, run.stamps_ns if run.has_frames else None)
        try:
            result = evaluate_loaded_run(run, truth, align)
        except EvaluationError as error:
            warning = f'no comparison with the truth: {error}'
    folder = run.folder if run.folder.is_dir() else run.folder.parent
    page = render_report(Content(run, result, read_samples(folder), warning), folder)
    path = Path(out) if out is not None else folder / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def render_report(content: Content, folder: Path) -> str:
    """The page as text; pictures are read from `folder`."""
    run, result = content.run, content.result
    stamps = run.stamps_ns if run.has_frames else run.trajectory.stamps_ns
    start_ns = int(stamps[0]) if len(stamps) else 0
    time_s = np.asarray((stamps - start_ns) * 1e-9, dtype=np.float64)
    linked = LinkedFrames(stamps, time_s)
    body = [
        f'<h1>{escape(run.name)}</h1><p class="lead">{lead(run, result)}</p>',
        tiles(run, result),
        _notes([content.warning] if content.warning else [], result),
        path_section(run, result, linked),
        time_section(run, result, linked),
        frames_section(content.samples, folder, start_ns),
        accuracy_section(result) if result is not None else '',
        latency_section(run, linked),
        settings_section(run.info),
        '<footer>Lengths in metres unless said otherwise; odom has x forward, y left, z up. '
        'Move the pointer over a chart to see that frame in all of them.</footer>',
    ]
    title = f'{run.name} – odometry report'
    return page(title, [part for part in body if part], linked.to_json())


def page(title: str, body: Sequence[str], frames: Mapping[str, Any] | None = None) -> str:
    """A self-contained page in the look of our reports.

    Args:
        body: HTML, one part after the other.
        frames: what links charts (`LinkedFrames.to_json`); None without charts.
    """
    template = resources.files('mv_matcher_ros.evaluation').joinpath('report_template.html')
    text = template.read_text(encoding='utf-8').replace('{{title}}', escape(title))
    # "</" would end the script element early; JSON reads "<\/" the same.
    text = text.replace('{{frames}}', json.dumps(frames or {}).replace('</', '<\\/'))
    return text.replace('{{body}}', '\n'.join(body))


def _notes(notes: list[str], result: EvaluationResult | None) -> str:
    lines = [*notes, *(result.notes if result is not None else ())]
    if not lines:
        return ''
    items = ''.join(f'<li>{escape(line[:1].upper() + line[1:])}.</li>' for line in lines)
    return f'<section class="card notes"><ul>{items}</ul></section>'
