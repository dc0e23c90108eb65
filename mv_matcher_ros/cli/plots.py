# SPDX-License-Identifier: Apache-2.0
"""One picture of a run: what was tracked, where the camera went, how far off it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from mv_matcher_ros.errors import MissingDependencyError

if TYPE_CHECKING:
    from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult

TRUTH, ESTIMATE, ERROR = '#9a9a9a', '#1f6feb', '#c4432b'


def write_overview(run: Path, result: EvaluationResult) -> Path:
    """Draw overview.png into a run folder that has pictures of its frames.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError('matplotlib', 'report', 'drawing plots') from None
    figure = Figure(figsize=(12.0, 4.2), layout='constrained')
    frame, path, error = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.0))
    _draw_frame(frame, run)
    _draw_path(path, result)
    _draw_error(error, result)
    file = run / 'overview.png'
    figure.savefig(file, dpi=110)
    return file


def _draw_frame(axes: Any, run: Path) -> None:
    from mv_matcher_ros.evaluation.track_sampler import read_samples

    axes.set_axis_off()
    samples = read_samples(run)
    if not samples:
        return
    sample = samples[len(samples) // 2]
    image = cv2.imread(str(run / sample.file))
    if image is not None:
        axes.imshow(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        axes.set_title(f'tracks at frame {sample.index}', fontsize=10)


def _draw_path(axes: Any, result: EvaluationResult) -> None:
    """Top view after alignment."""
    aligned = result.ate.truth_from_odom @ result.pairs.scaled(result.ate.scale).estimate
    truth, estimate = result.pairs.truth[:, :3, 3], aligned[:, :3, 3]
    axes.plot(truth[:, 0], truth[:, 1], color=TRUTH, linewidth=4, alpha=0.6, label='truth')
    axes.plot(estimate[:, 0], estimate[:, 1], color=ESTIMATE, linewidth=1.4, label='odometry')
    axes.plot(*truth[0, :2], 'o', color='black', markersize=5)
    axes.set_aspect('equal', adjustable='datalim')
    axes.set_title(f'path from above, {result.path_m:.1f} m', fontsize=10)
    axes.set_xlabel('m')
    axes.legend(loc='center', frameon=False)
    axes.grid(alpha=0.25)


def _draw_error(axes: Any, result: EvaluationResult) -> None:
    ate = result.ate
    seconds = (ate.stamps_ns - ate.stamps_ns[0]) * 1e-9
    axes.plot(seconds, 100.0 * ate.translation_errors_m, color=ERROR, linewidth=1.4)
    share = result.percent_of_path
    of_path = '' if share is None else f' ({share:.2f} % of path)'
    axes.set_title(
        f'position error, RMSE {100 * ate.translation_m.rmse:.1f} cm{of_path}', fontsize=10
    )
    axes.set_xlabel('s')
    axes.set_ylabel('cm')
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.25)
