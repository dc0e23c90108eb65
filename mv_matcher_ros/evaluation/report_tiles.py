# SPDX-License-Identifier: Apache-2.0
"""The head of the report: one sentence and the headline numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mv_matcher_ros.datatypes import Array, Status
from mv_matcher_ros.evaluation.association import path_distances
from mv_matcher_ros.evaluation.drift import rotation_drift
from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult
from mv_matcher_ros.evaluation.run_data import RunData

ALIGNMENT_NAMES = {'se3': 'SE(3)', 'sim3': 'Sim(3)', 'origin': 'at the origin'}
SENSOR_NAMES = {'mono': 'monocular', 'stereo': 'stereo', 'rgbd': 'RGB-D'}


@dataclass(frozen=True)
class Tile:
    """One headline number: `tone` is empty, `warn` or `bad`."""

    name: str
    value: str
    unit: str
    note: str
    tone: str = ''

    def html(self) -> str:
        """The tile as HTML."""
        unit = f' <small>{escape(self.unit)}</small>' if self.unit else ''
        return (
            f'<div class="tile {self.tone}"><div class="name">{escape(self.name)}</div>'
            f'<div class="value">{escape(self.value)}{unit}</div>'
            f'<div class="note">{escape(self.note)}</div></div>'
        )


def lead(run: RunData, result: EvaluationResult | None) -> str:
    """One sentence that says how the run went."""
    sensor = SENSOR_NAMES.get(run.sensor, run.sensor)
    what = f'{sensor} odometry'.strip()
    what = what[:1].upper() + what[1:]
    parts = []
    if run.has_frames:
        parts.append(
            f'{what} over <b>{len(run.stamps_ns)} frames</b> in {seconds(duration_s(run))}'
        )
        posed = _posed_share(run)
        parts.append(f'a pose for <b>{percent(posed)}</b> of them')
    else:
        parts.append(f'{what}, <b>{len(run.trajectory)} poses</b>')
    if result is not None:
        rmse = result.ate.translation_m.rmse
        parts.append(
            f'<b>{metres(rmse)}</b> RMSE from the truth over a path of {metres(result.path_m)}'
        )
    return ', '.join(parts) + '.'


def tiles(run: RunData, result: EvaluationResult | None) -> str:
    """The headline numbers as HTML."""
    chosen = _truth_tiles(result) if result is not None else _own_tiles(run)
    if run.has_frames:
        chosen.append(_coverage_tile(run, result))
    chosen.extend(_speed_tiles(run))
    # Rows as even as can be: up to five in one, else four (or three for six) a row.
    columns = len(chosen) if len(chosen) <= 5 else 3 if len(chosen) == 6 else 4
    inner = ''.join(tile.html() for tile in chosen)
    return f'<div class="tiles" style="--columns:{columns}">{inner}</div>'


def _truth_tiles(result: EvaluationResult) -> list[Tile]:
    error = result.ate.translation_m
    percent_of_path = result.percent_of_path
    share = '' if percent_of_path is None else f'{percent_of_path:.2f} % of the path'
    value, unit = split_metres(error.rmse)
    note = f'{share}, largest {metres(error.max)}'.lstrip(', ')
    chosen = [
        Tile(f'ATE after {ALIGNMENT_NAMES[result.align]} alignment', value, unit, note),
        Tile(
            'Path',
            *split_metres(result.path_m),
            f'of the truth, {len(result.pairs)} poses compared',
        ),
    ]
    if result.scale is not None:
        off = result.scale - 1.0
        if result.align == 'sim3':
            chosen.append(Tile('Scale', f'{result.scale:.4g}', '', 'estimate × scale = truth'))
        else:
            tone = 'warn' if abs(off) > 0.05 else ''
            chosen.append(
                Tile(
                    'Scale',
                    f'{result.scale:.4f}',
                    '',
                    f'{100 * off:+.2f} % against the truth',
                    tone,
                )
            )
    chosen.append(_drift_tile(result))
    return chosen


def _drift_tile(result: EvaluationResult) -> Tile:
    drift, note = result.drift, 'over 100 … 800 m'
    if drift.note and result.drift_short is not None and result.drift_short.segments:
        drift = result.drift_short
        first, last = drift.segments[0].length_m, drift.segments[-1].length_m
        note = f'over {first:g} … {last:g} m only'
    if drift.t_rel_percent is None or drift.r_rel_deg_per_100m is None:
        return Tile('Drift', '–', '', drift.note)
    rotation = rotation_drift(drift, drift.r_rel_deg_per_100m)
    return Tile('Drift', f'{drift.t_rel_percent:.2f}', '%', f'{rotation}, {note}')


def _own_tiles(run: RunData) -> list[Tile]:
    poses = run.trajectory.world_from_body
    length = float(path_distances(poses)[-1]) if len(poses) else 0.0
    if run.metric:
        return [Tile('Path', *split_metres(length), 'of the estimate; there is no truth')]
    return [Tile('Path', f'{length:.3g}', 'units', 'monocular: the scale is arbitrary')]


def _coverage_tile(run: RunData, result: EvaluationResult | None) -> Tile:
    losses = loss_count(run)
    lost = {0: 'never lost', 1: 'lost once'}.get(losses, f'lost {losses} times')
    if result is not None and result.frames_with_truth:
        share, of = result.coverage, f'{result.frames_with_truth} frames with truth'
    else:
        share, of = _posed_share(run), f'{len(run.stamps_ns)} frames'
    tone = 'bad' if share < 0.5 else 'warn' if share < 0.9 or losses else ''
    return Tile('Coverage', f'{100 * share:.1f}', '%', f'of {of}, {lost}', tone)


def _speed_tiles(run: RunData) -> list[Tile]:
    chosen = []
    if run.fps is not None:
        rate = (len(run.stamps_ns) - 1) / duration_s(run) if duration_s(run) > 0 else 0.0
        note = f'{run.fps / rate:.2g} × the camera’s {rate:.3g} Hz' if rate > 0 else ''
        slower = 'warn' if 0 < run.fps < rate else ''
        chosen.append(Tile('Speed', f'{run.fps:.1f}', 'frames/s', note, slower))
    total = total_latency_ms(run)
    middle, high = percentile(total, 50), percentile(total, 95)
    if np.isnan(middle):
        whole = (run.info.get('latency_ms') or {}).get('total') or {}
        middle, high = (float(whole.get(name, np.nan)) for name in ('p50', 'p95'))
    if np.isfinite(middle):
        note = f'median; 95 % below {high:.0f} ms'
        chosen.append(Tile('Latency', f'{middle:.0f}', 'ms', note))
    if run.keyframe.any():
        keys = int(run.keyframe.sum())
        chosen.append(
            Tile('Keyframes', str(keys), '', f'one in {len(run.keyframe) / keys:.1f} frames')
        )
    return chosen


def total_latency_ms(run: RunData) -> Array:
    """(F,) time of each frame: the stage `total` if there is one, else the sum; NaN if unknown."""
    if not run.latency_ms:
        return np.full(len(run.stamps_ns), np.nan)
    if 'total' in run.latency_ms:
        return run.latency_ms['total']
    stages = np.stack(list(run.latency_ms.values()))
    total: Array = np.where(np.isfinite(stages).any(axis=0), np.nansum(stages, axis=0), np.nan)
    return total


def loss_count(run: RunData) -> int:
    """How many times tracking was lost (runs of LOST frames)."""
    lost = np.array([name == Status.LOST.value for name in run.status], dtype=np.int64)
    return int((np.diff(np.concatenate([[0], lost])) == 1).sum())


def duration_s(run: RunData) -> float:
    """Time between the first and the last frame."""
    return float(run.stamps_ns[-1] - run.stamps_ns[0]) * 1e-9 if run.has_frames else 0.0


def percentile(values: Array, share: float) -> float:
    """Percentile of the finite values, NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, share)) if len(finite) else float('nan')


def percent(share: float) -> str:
    """A share as text; only all is 100 %."""
    return '100 %' if share >= 1.0 else f'{min(100 * share, 99.9):.1f} %'


def seconds(value: float) -> str:
    """A duration as text."""
    return f'{value:.1f} s' if value < 120 else f'{int(value // 60)} min {value % 60:.0f} s'


def metres(value: float) -> str:
    """A length as text with three digits."""
    return ' '.join(split_metres(value))


def lengths(values: Sequence[float]) -> list[str]:
    """Lengths of one table row as text, all in the unit of the largest."""
    if max(abs(value) for value in values) < 0.1:
        return [f'{1000 * value:.1f} mm' for value in values]
    return [f'{value:.3f} m' for value in values]


def split_metres(value: float) -> tuple[str, str]:
    """A length as (number, unit): millimetres below 0.1 m, kilometres from 10 km."""
    if abs(value) < 0.1:
        return f'{1000 * value:.3g}', 'mm'
    if abs(value) >= 10_000:
        return f'{value / 1000:.2f}', 'km'
    return (f'{value:.3f}' if abs(value) < 10 else f'{value:.1f}'), 'm'


def _posed_share(run: RunData) -> float:
    return len(run.trajectory) / len(run.stamps_ns) if run.has_frames else 0.0
