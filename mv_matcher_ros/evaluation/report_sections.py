# SPDX-License-Identifier: Apache-2.0
"""The sections of the report that hold charts and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Status
from mv_matcher_ros.evaluation import report_figures as figures
from mv_matcher_ros.evaluation import report_svg as svg
from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult
from mv_matcher_ros.evaluation.poses import invert
from mv_matcher_ros.evaluation.report_links import LinkedFrames
from mv_matcher_ros.evaluation.report_tables import (
    events_section,
    latency_summary_table,
    latency_table,
)
from mv_matcher_ros.evaluation.report_tiles import (
    ALIGNMENT_NAMES,
    metres,
    percentile,
    total_latency_ms,
)
from mv_matcher_ros.evaluation.run_data import RunData
from mv_matcher_ros.evaluation.track_sampler import LONG_TRACK, SampledFrame

STATUS_COLOURS = {
    Status.TRACKING.value: '#1d9a6c',
    Status.RELOCALISED.value: '#2f7bf5',
    Status.DEGRADED.value: '#f59320',
    Status.LOST.value: '#dc3d43',
    Status.INITIALISING.value: '#8a94a6',
}
# Title, counts worth a line, height: landmarks are many more than the rest and would flatten them.
COUNT_CHARTS = (
    ('Features of each frame', ('inliers', 'matches', 'features', 'keypoints'), 150.0),
    ('Map', ('landmarks',), 80.0),
)
MAX_STAGES = 8


def path_section(run: RunData, result: EvaluationResult | None, linked: LinkedFrames) -> str:
    poses = run.trajectory.world_from_body
    if len(poses) == 0:
        text = 'The run has no poses.'
        return f'<section class="card"><h2>Path</h2><p class="hint">{text}</p></section>'
    stamps = run.trajectory.stamps_ns
    scale, truth, values, limit = 1.0, None, None, 1.0
    if result is not None:
        ate = result.ate
        scale = ate.scale
        # The truth comes into odom, so that z is up whatever the axes of the truth are.
        truth = (invert(ate.truth_from_odom) @ result.pairs.truth)[:, :3, 3]
        values = np.interp(stamps, ate.stamps_ns, ate.translation_errors_m)
        limit = max(ate.translation_m.p95, 1e-9)
    keyframe = np.zeros(len(poses), dtype=np.bool_)
    breaks = _breaks(stamps)
    if run.has_frames:
        frame = linked.frame_of(stamps)
        keyframe = run.keyframe[frame] if len(run.keyframe) else keyframe
        breaks = np.diff(frame) > 1
    unit = 'm' if run.metric or result is not None else 'units'
    figure = figures.PathFigure(
        poses[:, :3, 3] * scale, truth, values, limit, breaks, keyframe, unit
    )
    above, side, at_above, at_side = figures.path_figures(figure)
    for at in (at_above, at_side):
        linked.add_path(linked.spread(stamps, at))
    return (
        '<section class="card"><h2>Path</h2>'
        f'{_path_legend(figure, limit)}'
        f'<h3>From above</h3><div class="scroll">{above}</div>'
        f'<h3>From the side, at the same scale</h3><div class="scroll">{side}</div></section>'
    )


def _breaks(stamps_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Without the list of frames: an interval of more than 2.5 usual ones misses a pose."""
    interval = np.diff(stamps_ns)
    if len(interval) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(interval > 2.5 * np.median(interval), dtype=np.bool_)


def _path_legend(figure: figures.PathFigure, limit: float) -> str:
    pieces = []
    if figure.values is not None:
        ramp = ','.join(svg.ERROR_RAMP)
        pieces.append(
            f'<span>estimate, error 0<i class="ramp" '
            f'style="background:linear-gradient(90deg,{ramp})"></i>'
            f'{metres(limit)} and more</span><span><i class="dash"></i>truth</span>'
        )
    else:
        pieces.append('<span><i style="background:var(--accent)"></i>estimate</span>')
    pieces.append('<span><i class="ring"></i>start</span><span><i class="square"></i>end</span>')
    if figure.keyframe.any():
        pieces.append('<span><i class="dot"></i>keyframe</span>')
    if figure.breaks.any():
        pieces.append('<span><i class="dash gap"></i>no pose</span>')
    return f'<div class="legend">{"".join(pieces)}</div>'


def time_section(run: RunData, result: EvaluationResult | None, linked: LinkedFrames) -> str:
    pieces: list[str] = []
    if result is not None:
        pieces.extend(_error_charts(result, linked))
    if run.has_frames and run.status:
        used = {name: colour for name, colour in STATUS_COLOURS.items() if name in run.status}
        entries = [(c, f'{n} {run.status.count(n)}') for n, c in used.items()]
        pieces.append('<h3>Status of each frame; ticks are keyframes</h3>' + svg.legend(entries))
        chart = figures.status_chart(linked.time_s, run.status, run.keyframe, STATUS_COLOURS)
        pieces.append(f'<div class="scroll">{chart}</div>')
    for title, names, height in COUNT_CHARTS:
        pieces.append(_count_chart(run, linked, title, names, height))
    if run.has_frames:
        pieces.append(events_section(run, linked.time_s, STATUS_COLOURS))
    if not pieces:
        return ''
    return f'<section class="card"><h2>Over time</h2>{"".join(pieces)}</section>'


def _error_charts(result: EvaluationResult, linked: LinkedFrames) -> list[str]:
    ate = result.ate
    pieces: list[str] = []
    charts = [
        ('Position error', ate.translation_errors_m, ' m', figures.SERIES[0], 150.0),
        ('Attitude error', ate.attitude_errors_deg, '°', figures.SERIES[3], 90.0),
    ]
    for name, errors, unit, colour, height in charts:
        values = linked.spread(ate.stamps_ns, errors)
        title = name if pieces else f'{name} after {ALIGNMENT_NAMES[result.align]} alignment'
        field = linked.add_field(f'{title}, {_unit_name(unit)}', values, unit)
        series = [figures.TimeSeries(name, values, colour)]
        chart = figures.line_chart(
            linked.time_s, series, title=f'{name} over time', height=height, filled=True
        )
        pieces.append(f'<h3>{field}</h3><div class="scroll">{chart}</div>')
    return pieces


def _unit_name(unit: str) -> str:
    return {' m': 'metres', '°': 'degrees'}[unit]


def _count_chart(
    run: RunData, linked: LinkedFrames, title: str, names: Sequence[str], height: float
) -> str:
    lines = [
        figures.TimeSeries(name, run.counts[name], figures.SERIES[k])
        for k, name in enumerate(names)
        if name in run.counts
    ]
    if not lines:
        return ''
    spans = ''.join(
        f'<span><i style="background:{line.colour}"></i>'
        f'{linked.add_field(line.name, line.values, "")}</span>'
        for line in lines
    )
    chart = figures.line_chart(linked.time_s, lines, title=f'{title} over time', height=height)
    return f'<h3>{title}</h3><div class="legend">{spans}</div><div class="scroll">{chart}</div>'


def latency_section(run: RunData, linked: LinkedFrames) -> str:
    total = total_latency_ms(run)
    if not len(total) or not np.isfinite(total).any():
        summary = latency_summary_table(run.info.get('latency_ms'))
        return f'<section class="card"><h2>Latency</h2>{summary}</section>' if summary else ''
    stages = _stages(run)
    series = [
        figures.TimeSeries(name, values, colour) for name, (colour, values) in stages.items()
    ]
    limit = max(1.25 * percentile(total, 95), percentile(total, 50) * 1.5)
    chart = figures.stacked_chart(
        linked.time_s, series, title='Latency per stage over time', limit=limit
    )
    field = linked.add_field('Time per frame, milliseconds', total, ' ms')
    cut = ' Peaks above the chart are cut; the table has them.' if np.nanmax(total) > limit else ''
    return (
        '<section class="card"><h2>Latency</h2>'
        f'<p class="hint">Each frame’s processing time by stage.{cut}</p>'
        f'<h3>{field}</h3><div class="scroll">{chart}</div>'
        f'{latency_table(stages, total)}</section>'
    )


def _stages(run: RunData) -> dict[str, tuple[str, Array]]:
    """Stages with their colours: the most expensive ones, the rest together."""
    values = {name: v for name, v in run.latency_ms.items() if name != 'total'}
    if not values:
        return {'total': (figures.SERIES[0], run.latency_ms['total'])}
    order = sorted(values, key=lambda name: -float(np.nansum(values[name])))
    shown, rest = order[:MAX_STAGES], order[MAX_STAGES:]
    if rest:
        shown, rest = order[: MAX_STAGES - 1], order[MAX_STAGES - 1 :]
    stages = {name: (figures.SERIES[k], values[name]) for k, name in enumerate(shown)}
    if rest:
        together = np.nansum(np.stack([values[name] for name in rest]), axis=0)
        stages['other'] = (figures.SERIES[MAX_STAGES - 1], together)
    return stages


def frames_section(samples: Sequence[SampledFrame], folder: Path, start_ns: int) -> str:
    cells = []
    for sample in samples:
        path = folder / sample.file
        if not path.is_file():
            continue
        image = base64.b64encode(path.read_bytes()).decode('ascii')
        colour = STATUS_COLOURS.get(sample.status, '#7a8699')
        inliers = sample.counts.get('inliers')
        caption = (
            f'{(sample.stamp_ns - start_ns) * 1e-9:.2f} s · frame {sample.index} · '
            f'<span class="status" style="color:{colour}">{escape(sample.status)}</span>'
            f'{"" if inliers is None else f" · {inliers} inliers"}'
        )
        cells.append(
            f'<figure><img src="data:image/jpeg;base64,{image}" loading="lazy" '
            f'alt="Frame {sample.index} with its tracks">'
            f'<figcaption>{caption}</figcaption></figure>'
        )
    if not cells:
        return ''
    entries = [
        ('#f59320', 'new track'),
        ('#fadc5a', 'older'),
        ('#28d28c', f'{LONG_TRACK} keyframes and more'),
    ]
    entries.append(('#e63c46', 'disagrees with the pose'))
    return (
        '<section class="card"><h2>What the camera saw</h2>'
        '<p class="hint">Tracked points and their way since the last keyframe.</p>'
        f'{svg.legend(entries)}<div class="frames">{"".join(cells)}</div></section>'
    )
