# SPDX-License-Identifier: Apache-2.0
"""Tables of the report: accuracy, events, latency, settings and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mv_matcher_ros.config import Settings, flatten
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.evaluation.consistency import AXES, Consistency
from mv_matcher_ros.evaluation.drift import Drift, rotation_drift
from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult
from mv_matcher_ros.evaluation.report_tiles import (
    ALIGNMENT_NAMES,
    lengths,
    metres,
    percent,
    percentile,
)
from mv_matcher_ros.evaluation.run_data import RunData

MAX_EVENTS = 25


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """An HTML table; cells are HTML already, the first `text_columns` are left-aligned."""

    def cells(values: Sequence[str], tag: str) -> str:
        return ''.join(
            f'<{tag} class="text">{value}</{tag}>'
            if k < text_columns
            else f'<{tag}>{value}</{tag}>'
            for k, value in enumerate(values)
        )

    head = f'<thead><tr>{cells(header, "th")}</tr></thead>' if header else ''
    body = ''.join(f'<tr>{cells(row, "td")}</tr>' for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def accuracy_section(result: EvaluationResult) -> str:
    """All errors against the truth."""
    pieces = [
        '<section class="card"><h2>Accuracy</h2>',
        f'<p class="hint">{_association_text(result)}</p><div class="columns"><div>',
        '<h3>Absolute error (ATE)</h3>',
        _absolute_table(result),
        '<h3>Relative error (RPE), RMSE</h3>',
        table(
            ['over', 'translation', 'rotation', 'pairs'],
            [
                [
                    f'{error.delta:g} {_unit(error.unit, error.delta)}',
                    metres(error.translation_m.rmse),
                    f'{error.rotation_deg.rmse:.3g}°',
                    f'{error.translation_m.count}{_skipped(error.skipped)}',
                ]
                for error in result.rpe
            ],
        ),
        '</div><div>',
        _drift_tables(result),
        _consistency_text(result),
        '</div></div></section>',
    ]
    return ''.join(pieces)


def _skipped(count: int) -> str:
    return f' ({count} over gaps left out)' if count else ''


def _unit(unit: str, delta: float) -> str:
    return 'frame' if unit == 'frames' and delta == 1 else unit


def _association_text(result: EvaluationResult) -> str:
    pairs = result.pairs
    how = (
        'the truth interpolated at the stamps of the estimate'
        if pairs.method == 'interpolated'
        else 'the truth at the same stamps'
        if pairs.max_difference_s < 1e-6
        else f'the truth nearest in time, at most {1e3 * pairs.max_difference_s:.2g} ms away'
    )
    scaled = (
        f' Relative errors and drift are those of the estimate times {result.scale:.4g}.'
        if result.align == 'sim3'
        else ''
    )
    return f'{len(pairs)} poses compared with {how}.{scaled}'


def _absolute_table(result: EvaluationResult) -> str:
    rows = []
    for error in (result.se3, result.sim3, result.origin):
        # Without a scale of its own, a rigid alignment of the estimate says nothing.
        if error is None or (error is result.se3 and result.align == 'sim3'):
            continue
        name = ALIGNMENT_NAMES[error.alignment]
        position = error.translation_m
        cells = (position.rmse, position.median, position.p95, position.max)
        row = [escape(name), *lengths(cells), f'{error.attitude_deg.rmse:.3g}°']
        if error.alignment == result.align:
            row = [f'<b>{cell}</b>' for cell in row]
        rows.append(row)
    return table(['aligned', 'RMSE', 'median', '95 %', 'largest', 'attitude'], rows)


def _drift_tables(result: EvaluationResult) -> str:
    pieces = ['<h3>Drift over segments (KITTI)</h3>']
    if result.drift.note:
        pieces.append(f'<p class="hint">100 … 800 m: {escape(result.drift.note)}.</p>')
    for drift in (result.drift, result.drift_short):
        if drift is not None and drift.segments:
            pieces.append(_drift_table(drift))
    return ''.join(pieces)


def _drift_table(drift: Drift) -> str:
    rows = [
        [
            f'{segment.length_m:g} m',
            f'{segment.t_rel_percent:.3f} %',
            rotation_drift(drift, segment.r_rel_deg_per_100m),
            str(segment.count),
        ]
        for segment in drift.segments
    ]
    assert drift.t_rel_percent is not None
    assert drift.r_rel_deg_per_100m is not None
    mean = ['all', f'{drift.t_rel_percent:.3f} %', rotation_drift(drift, drift.r_rel_deg_per_100m)]
    count = str(sum(segment.count for segment in drift.segments))
    rows.append([f'<b>{cell}</b>' for cell in (*mean, count)])
    return table(['length', 'translation', 'rotation', 'segments'], rows)


def _consistency_text(result: EvaluationResult) -> str:
    found = result.nees
    if found is None:
        return ''
    meaning = {
        'consistent': 'the stated covariance fits the errors made',
        'optimistic': 'the errors are larger than the covariance says',
        'conservative': 'the errors are smaller than the covariance says',
    }[found.verdict]
    low, high = found.bounds_per_dof
    return (
        '<h3>Covariance (NEES)</h3>'
        f'<p class="hint">{found.nees_per_dof:.3g} per degree of freedom over '
        f'{len(found.nees)} motions of {found.delta} frames (translation '
        f'{found.translation_per_dof:.3g}, rotation {found.rotation_per_dof:.3g}; 95 % of '
        f'consistent runs lie in {low:.2f} … {high:.2f}): '
        f'<b>{found.verdict}</b>, {meaning}. {percent(found.share_inside)} of the motions lie '
        'inside their 95 % interval.</p>' + _coverage_table(found) + _likelihood_text(found)
    )


def _coverage_table(found: Consistency) -> str:
    rows = [
        [f'{width} σ (true: {wanted})', *(percent(share) for share in row)]
        for width, wanted, row in zip(
            (1, 2, 3), ('68.3 %', '95.4 %', '99.7 %'), found.coverage, strict=True
        )
    ]
    return table(['errors within', *AXES], rows)


def _likelihood_text(found: Consistency) -> str:
    if found.gain is None:
        return ''
    than = 'better' if found.gain > 0 else 'worse'
    return (
        f'<p class="hint">The errors are {abs(found.gain):.2f} nats a motion {than} explained '
        'by the stated covariances than by the best constant one.</p>'
    )


def events_section(run: RunData, time_s: Array, colours: Mapping[str, str]) -> str:
    """Every change of status, and every message, with its time; empty when there was none."""
    rows = []
    last = ''
    for k, status in enumerate(run.status):
        message = run.messages[k] if k < len(run.messages) else ''
        news = message and (k == 0 or message != run.messages[k - 1])
        if status == last and not news:
            continue
        dot = f'<i style="background:{colours.get(status, "#7a8699")}"></i>'
        frame = run.frame_index[k] if len(run.frame_index) else k
        rows.append([f'{time_s[k]:.2f} s', str(frame), f'{dot}{escape(status)}', escape(message)])
        last = status
    if len(rows) <= 1 and not any(run.messages):
        return ''
    more = len(rows) - MAX_EVENTS
    note = f'<p class="hint">… and {more} more.</p>' if more > 0 else ''
    header = ['time', 'frame', 'status', 'message']
    return f'<h3>What happened</h3>{table(header, rows[:MAX_EVENTS], 4)}{note}'


def latency_table(stages: Mapping[str, tuple[str, Array]], total: Array) -> str:
    """Percentiles per stage: name → (colour, (F,) ms)."""
    rows = []
    everything = float(np.nansum(total)) or 1.0
    for name, (colour, values) in stages.items():
        share = float(np.nansum(values)) / everything
        rows.append(
            [
                f'<i style="background:{colour}"></i>{escape(name)}',
                *_latency_cells(values),
                percent(share),
            ]
        )
    if len(stages) > 1:
        rows.append(['<b>total</b>', *(f'<b>{c}</b>' for c in _latency_cells(total)), ''])
    return table(['stage', 'p50', 'p95', 'p99', 'largest', 'share'], rows)


def latency_summary_table(latency: Any) -> str:
    """The same from `run.json`, for runs that did not write the latency of each frame."""
    if not isinstance(latency, Mapping) or not latency:
        return ''
    rows = [
        [escape(str(stage)), *(f'{float(values.get(p, np.nan)):.1f} ms' for p in ('p50', 'p95'))]
        for stage, values in latency.items()
        if isinstance(values, Mapping)
    ]
    return table(['stage', 'p50', 'p95'], rows)


def _latency_cells(values: Array) -> list[str]:
    return [f'{percentile(values, p):.1f} ms' for p in (50.0, 95.0, 99.0, 100.0)]


def settings_section(info: Mapping[str, Any]) -> str:
    """Settings (the changed ones first), versions and the rest of `run.json`, collapsed."""
    settings = info.get('settings')
    pieces = ['<section class="card"><h2>Settings and versions</h2>']
    if isinstance(settings, Mapping):
        defaults = flatten(Settings().model_dump())
        values = flatten(settings)
        changed = {name: v for name, v in values.items() if defaults.get(name, v) != v}
        if changed:
            rows = [
                [
                    f'<code>{escape(name)}</code>',
                    _value(value),
                    f'default {_value(defaults[name])}',
                ]
                for name, value in changed.items()
            ]
            pieces.append(
                f'<details open><summary>Changed settings ({len(changed)})</summary>'
                f'{table([], rows, 3)}</details>'
            )
        pieces.append(_details(f'All settings ({len(values)})', values))
    for key, title in (
        ('versions', 'Versions'),
        ('machine', 'Machine'),
        ('faults', 'Faults of the input'),
    ):
        part = info.get(key)
        if isinstance(part, Mapping) and part:
            pieces.append(_details(title, flatten(part)))
    known = {'settings', 'versions', 'machine', 'faults'}
    rest = flatten({key: value for key, value in info.items() if key not in known})
    if rest:
        pieces.append(_details('Everything else in run.json', rest))
    return ''.join(pieces) + '</section>' if len(pieces) > 1 else ''


def _details(title: str, values: Mapping[str, Any]) -> str:
    rows = [[f'<code>{escape(str(name))}</code>', _value(value)] for name, value in values.items()]
    return f'<details><summary>{escape(title)}</summary>{table([], rows, 2)}</details>'


def _value(value: Any) -> str:
    return escape(f'{value:.6g}' if isinstance(value, float) else str(value))
