# SPDX-License-Identifier: Apache-2.0
"""`bench rig`: several stereo pairs together against each of them alone, on rendered loops."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import WidthOption, image_size, report
from mv_matcher_ros.cli.console import print_table, say
from mv_matcher_ros.cli.options import ConfigOption, JsonOption, SetOption, settings_from
from mv_matcher_ros.cli.place_sources import LOOPS, loop_preset
from mv_matcher_ros.errors import SettingsError, SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.cli.faults import Clip
    from mv_matcher_ros.config import Settings

# Frames of a relative motion: half a second to a second.
DELTA = 10
FIGURES = ('ate_mm', 'drift_percent', 'motion_mm', 'motion_deg', 'frame_ms')
TOGETHER = 'together'


def rig(
    worlds: Annotated[
        list[str] | None,
        typer.Argument(metavar='[WORLD]...', help=f'{", ".join(LOOPS)}.  [default: all]'),
    ] = None,
    pairs: Annotated[int, typer.Option(min=2, max=4, help='Ahead, back, left, right.')] = 2,
    seeds: Annotated[int, typer.Option(min=1, help='Of each world.')] = 5,
    first_seed: Annotated[int, typer.Option(min=0, help='Seeds count from here.')] = 0,
    frames: Annotated[int, typer.Option(min=20, help='Of each run.')] = 200,
    width: WidthOption = 480,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Stereo pairs that look in several directions as one rig, and each pair alone.

    Of the same images: error of the trajectory, of motions over ten frames, time of a frame.
    """
    from mv_matcher_ros.cli.faults import Clip

    settings = settings_from(config, assignments, 'stereo')
    if 'pairs' in settings.stereo.model_fields_set:
        raise SettingsError('stereo.pairs is what `bench rig` varies: say --pairs')
    for name in worlds or ():
        if name not in LOOPS:
            raise SourceError(f'{name}: not a rendered loop; known: {", ".join(LOOPS)}')
    found: dict[str, list[dict[str, Any]]] = {}
    for name in worlds or LOOPS:
        found[name] = []
        for seed in range(first_seed, first_seed + seeds):
            made = loop_preset(name)('stereo', frames, image_size(width), seed, pairs=pairs)
            found[name].append(_compared(Clip.of(made), pairs, settings))
            say(f'{name} {seed}: {_in_words(found[name][-1])}')
    report({'rig': found}, json, lambda: _show(found))


def _compared(clip: Clip, pairs: int, settings: Settings) -> dict[str, Any]:
    """Figures of a rig, by who sees: all pairs together, then each."""
    from mv_matcher_ros.cli.faults import Clip

    measured = {TOGETHER: _measured(clip, settings)}
    for number in range(pairs):
        seen = slice(2 * number, 2 * number + 2)
        alone = tuple(replace(frame, views=frame.views[seen]) for frame in clip.frames)
        part = Clip(clip.name, clip.sensor, clip.rig.pair(number), alone, clip.truth)
        measured[f'pair {number + 1}'] = _measured(part, settings)
    return measured


def _measured(clip: Clip, settings: Settings) -> dict[str, float]:
    """Figures of one run: `drift_percent` is where it ends, in percent of the path."""
    import numpy as np

    from mv_matcher_ros.cli.run import run_recording
    from mv_matcher_ros.evaluation.association import associate
    from mv_matcher_ros.evaluation.run_data import load_run
    from mv_matcher_ros.evaluation.trajectory_error import (
        absolute_error,
        relative_error,
        relative_pose_errors,
    )

    stereo = settings.stereo.model_copy(update={'pairs': len(clip.rig.cameras) // 2})
    settings = settings.model_copy(update={'stereo': stereo})
    assert clip.truth is not None
    with tempfile.TemporaryDirectory() as folder:
        info = run_recording(clip, settings, Path(folder))
        compared = associate(load_run(Path(folder)).trajectory, clip.truth)
    motion = relative_error(compared, DELTA, 'frames')
    whole = relative_pose_errors(compared, np.array([0]), np.array([len(compared) - 1]))
    drift_m = float(np.linalg.norm(whole[0, :3, 3]))
    return {
        'ate_mm': 1e3 * absolute_error(compared, 'se3').translation_m.rmse,
        'drift_percent': 100.0 * drift_m / compared.path_m,
        'motion_mm': 1e3 * motion.translation_m.rmse,
        'motion_deg': motion.rotation_deg.rmse,
        'frame_ms': 1e3 / info['fps'],
        'posed': len(compared.stamps_ns) / len(clip),
    }


def _in_words(measured: Mapping[str, Mapping[str, float]]) -> str:
    return ', '.join(f'{who} {figures["ate_mm"]:.1f} mm' for who, figures in measured.items())


def _show(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    import numpy as np

    rows = []
    for name, runs in found.items():
        for who in runs[0]:
            of = {key: np.array([run[who][key] for run in runs]) for key in (*FIGURES, 'posed')}
            best = sum(
                run[who]['ate_mm'] == min(r['ate_mm'] for r in run.values()) for run in runs
            )
            ratio = of['frame_ms'] / [run['pair 1']['frame_ms'] for run in runs]
            rows.append((
                name, who, f'{np.median(of["ate_mm"]):.1f}',
                f'{of["ate_mm"].min():.1f}–{of["ate_mm"].max():.1f}', f'{best} of {len(runs)}',
                f'{np.median(of["drift_percent"]):.2f}',
                f'{np.median(of["motion_mm"]):.1f}', f'{np.median(of["motion_deg"]):.3f}',
                f'{np.median(of["frame_ms"]):.0f}', f'{np.median(ratio):.2f}',
                f'{100 * of["posed"].min():.0f}',
            ))  # fmt: skip
    print_table(
        'stereo pairs together and alone, medians over the seeds',
        ('world', 'sees', 'ATE mm', 'from–to', 'best', 'drift %', f'{DELTA} frames mm', '°',
         'ms a frame', 'times pair 1', 'poses %'),
        rows,
        right=range(2, 11),
    )  # fmt: skip
