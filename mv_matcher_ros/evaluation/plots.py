# SPDX-License-Identifier: Apache-2.0
"""Plots of a run as PNG files, for papers and slides; the report draws its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mv_matcher_ros.datatypes import Array, Status
from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult
from mv_matcher_ros.evaluation.poses import invert
from mv_matcher_ros.evaluation.report_tiles import ALIGNMENT_NAMES, total_latency_ms
from mv_matcher_ros.evaluation.run_data import RunData, load_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = 'plots'
DPI = 150


def save_plots(run_dir: Path | str, result: EvaluationResult | None = None) -> tuple[Path, ...]:
    """Write `trajectory.png`, `error.png` (with a result), `latency.png` (if known) to `plots/`.

    Args:
        run_dir: written by a run.
        result: its evaluation, for the truth and the errors.

    Returns:
        The files written.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SourceError: the run cannot be read.
    """
    run = load_run(run_dir)
    figures: dict[str, Figure] = {}
    if len(run.trajectory):
        figures['trajectory'] = _trajectory_figure(run, result)
    if result is not None:
        figures['error'] = _error_figure(result)
    if np.isfinite(total_latency_ms(run)).any():
        figures['latency'] = _latency_figure(run)
    folder = (run.folder if run.folder.is_dir() else run.folder.parent) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = folder / f'{name}.png'
        figure.savefig(path, dpi=DPI)
        paths.append(path)
    return tuple(paths)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError('matplotlib', 'report', 'saving plots') from None
    # Not through pyplot: it keeps global state and may look for a display.
    return Figure(figsize=(width, height), layout='constrained')


def _trajectory_figure(run: RunData, result: EvaluationResult | None) -> Figure:
    figure = _new_figure(8.0, 7.0)
    above, side = figure.subplots(2, 1, height_ratios=(3, 1))
    estimate = run.trajectory.world_from_body[:, :3, 3]
    unit = 'm'
    if result is not None:
        ate = result.ate
        truth = (invert(ate.truth_from_odom) @ result.pairs.truth)[:, :3, 3]
        estimate = estimate * ate.scale
        errors = np.interp(run.trajectory.stamps_ns, ate.stamps_ns, ate.translation_errors_m)
    elif not run.metric:
        unit = 'arbitrary units'
    for axes, vertical, name in ((above, 1, 'y left'), (side, 2, 'z up')):
        if result is not None:
            axes.plot(truth[:, 0], truth[:, vertical], '--', color='0.45', lw=1.0, label='truth')
            dots = axes.scatter(
                estimate[:, 0],
                estimate[:, vertical],
                c=errors,
                s=7,
                cmap='plasma',
                label='estimate',
            )
        else:
            axes.plot(estimate[:, 0], estimate[:, vertical], lw=1.4, label='estimate')
        axes.plot(*estimate[0, [0, vertical]], 'o', color='black', mfc='white', label='start')
        axes.set(xlabel=f'x forward [{unit}]', ylabel=f'{name} [{unit}]')
        axes.set_aspect('equal', adjustable='datalim')
        axes.grid(alpha=0.3)
    above.legend(loc='best', fontsize='small')
    if result is not None:
        bar = figure.colorbar(dots, ax=[above, side], shrink=0.6)
        bar.set_label(f'position error after {ALIGNMENT_NAMES[result.align]} alignment [m]')
    above.set_title(run.name)
    return figure


def _error_figure(result: EvaluationResult) -> Figure:
    figure = _new_figure(8.0, 4.5)
    position, rotation = figure.subplots(2, 1, sharex=True)
    ate = result.ate
    time_s = (ate.stamps_ns - ate.stamps_ns[0]) * 1e-9
    _line(position, time_s, ate.translation_errors_m, 'position error [m]')
    position.axhline(ate.translation_m.rmse, color='0.4', lw=1.0, ls='--')
    position.set_title(
        f'{ALIGNMENT_NAMES[result.align]} alignment: RMSE {ate.translation_m.rmse:.4g} m'
    )
    _line(rotation, time_s, ate.attitude_errors_deg, 'attitude error [deg]')
    rotation.set_xlabel('time [s]')
    return figure


def _latency_figure(run: RunData) -> Figure:
    figure = _new_figure(8.0, 3.2)
    axes = figure.subplots()
    time_s = (run.stamps_ns - run.stamps_ns[0]) * 1e-9
    stages = {name: values for name, values in run.latency_ms.items() if name != 'total'}
    if stages:
        layers = np.nan_to_num(np.stack(list(stages.values())))
        axes.stackplot(time_s, layers, labels=list(stages), alpha=0.85)
        axes.legend(loc='upper right', fontsize='x-small', ncols=2)
    else:
        _line(axes, time_s, run.latency_ms['total'], '')
    lost = np.array([name == Status.LOST.value for name in run.status])
    if lost.any():
        top = axes.get_ylim()[1]
        axes.fill_between(time_s, 0, top, where=lost.tolist(), color='red', alpha=0.15)
    axes.set(xlabel='time [s]', ylabel='time per frame [ms]', title=run.name)
    axes.grid(alpha=0.3)
    return figure


def _line(axes: Axes, x: Array, y: Array, name: str) -> None:
    axes.plot(x, y, lw=1.2)
    axes.set_ylabel(name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
