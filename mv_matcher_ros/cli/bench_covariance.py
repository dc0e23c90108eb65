# SPDX-License-Identifier: Apache-2.0
"""`bench covariance`: whether the stated covariance is true, over several runs together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import WidthOption, image_size, report
from mv_matcher_ros.cli.console import print_table, say
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SensorChoice,
    SetOption,
    locate,
    settings_from,
)
from mv_matcher_ros.cli.place_sources import LOOPS, loop_preset
from mv_matcher_ros.errors import EvaluationError, SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Sensor
    from mv_matcher_ros.evaluation.consistency import Consistency, Motions
    from mv_matcher_ros.runner import Source

ALL = 'all together'


def covariance(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='[SOURCE]...',
            help=f'{", ".join(LOOPS)}, or recordings with ground truth.  [default: all loops]',
        ),
    ] = None,
    sensor: Annotated[
        list[SensorChoice] | None, typer.Option(help='Repeatable.  [default: all]')
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help='Of each rendered loop.')] = 2,
    first_seed: Annotated[int, typer.Option(min=0, help='Seeds count from here.')] = 0,
    frames: Annotated[int, typer.Option(min=40, help='Of each rendered loop.')] = 250,
    delta: Annotated[int, typer.Option(min=1, help='Frames of a motion.')] = 10,
    width: WidthOption = 480,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Errors of relative motions in units of the stated covariance: NEES, coverage, likelihood.

    One constant covariance, fitted to the same errors, stands beside: what a launch file could
    say at best.
    """
    found: dict[str, Consistency] = {}
    everything: list[Motions] = []
    chosen = sensor or list(SensorChoice)
    for name in sources or LOOPS:
        rendered = name in LOOPS
        for kind in chosen:
            settings = settings_from(config, assignments, kind.value)
            of: list[Motions] = []
            for seed in range(first_seed, first_seed + (seeds if rendered else 1)):
                source = _open(name, kind.value, frames, image_size(width), seed)
                try:
                    of.append(_motions(source, settings, delta))
                except EvaluationError as error:
                    say(f'{name} {kind.value} {seed}: {error}')
            if of:
                label = f'{Path(name).name}, {kind.value}'
                found[label] = _together(of)
                say(f'{label}: {found[label].nees_per_dof:.2f} over {len(found[label].nees)}')
                everything += of
    if len(found) > 1:
        found[ALL] = _together(everything)
    report(
        {'covariance': {name: _as_json(each) for name, each in found.items()}},
        json,
        lambda: _show(found),
    )


def _open(name: str, sensor: Sensor, frames: int, size: tuple[int, int], seed: int) -> Source:
    from mv_matcher_ros.files.open import open_source

    if name in LOOPS:
        return loop_preset(name)(sensor, frames, size, seed)
    opened = open_source(locate(Path(name)), sensor)
    if opened.truth is None:
        raise SourceError(f'{name}: no ground truth to compare with')
    return opened


def _motions(source: Source, settings: Settings, delta: int) -> Motions:
    """Of a run; one camera's trajectory in the truth's scale."""
    from mv_matcher_ros.cli.run import run_recording
    from mv_matcher_ros.evaluation.association import associate
    from mv_matcher_ros.evaluation.consistency import motions_of
    from mv_matcher_ros.evaluation.run_data import load_run
    from mv_matcher_ros.evaluation.trajectory_error import absolute_error

    assert source.truth is not None
    with tempfile.TemporaryDirectory() as folder:
        run_recording(source, settings, Path(folder))
        pairs = associate(load_run(Path(folder)).trajectory, source.truth)
    if source.sensor == 'mono':
        pairs = pairs.scaled(absolute_error(pairs, 'sim3').scale)
    return motions_of(pairs, delta)


def _together(several: Sequence[Motions]) -> Consistency:
    import numpy as np

    from mv_matcher_ros.evaluation.consistency import Motions, consistency_of

    return consistency_of(
        Motions(
            np.concatenate([each.stamps_ns for each in several]),
            np.concatenate([each.error for each in several]),
            np.concatenate([each.covariance for each in several]),
            max(each.delta for each in several),
            sum(each.unusable for each in several),
        )
    )


def _as_json(found: Consistency) -> dict[str, Any]:
    from mv_matcher_ros.evaluation.evaluation_result import consistency_json

    return consistency_json(found)


def _show(found: dict[str, Consistency]) -> None:
    rows = []
    for name, each in found.items():
        within = [f'{100 * row.min():.0f}–{100 * row.max():.0f}' for row in each.coverage]
        gain = None if each.gain is None else f'{each.gain:+.2f}'
        rows.append((
            name, len(each.nees), f'{each.nees_per_dof:.2f}', f'{each.translation_per_dof:.2f}',
            f'{each.rotation_per_dof:.2f}', *within, gain,
        ))  # fmt: skip
    print_table(
        'errors of relative motions against the stated covariance',
        ('runs', 'motions', 'NEES / 6', 'translation', 'rotation', '1 σ %', '2 σ %', '3 σ %',
         'nats above a constant'),
        rows,
        right=(1, 2, 3, 4, 5, 6, 7, 8),
    )  # fmt: skip
