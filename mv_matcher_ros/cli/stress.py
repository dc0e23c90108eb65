# SPDX-License-Identifier: Apache-2.0
"""`stress`: the fault suite, on a synthetic recording or on one of your own."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.console import print_json, print_table, progress
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SensorOption,
    SetOption,
    settings_from,
)
from mv_matcher_ros.errors import SettingsError

if TYPE_CHECKING:
    from mv_matcher_ros.cli.faults import Clip, Fault, Outcome
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Sensor

SYNTHETIC_SIZE = (320, 240)
FRAMES, LIVE_FRAMES = 40, 400


def stress(
    source: Annotated[
        Path | None,
        typer.Argument(help='Recording; default: a synthetic one.', metavar='[SOURCE]'),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=12, help=f'Frames of the recording to use; default {FRAMES}, live {LIVE_FRAMES}.'
        ),
    ] = None,
    only: Annotated[str, typer.Option(help='Only faults with this in their name.')] = '',
    live: Annotated[
        bool,
        typer.Option(
            '--live', help='Faults on the wire, to a running node; takes half a minute each.'
        ),
    ] = False,
    soak: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar='MINUTES',
            help='So many minutes of camera time, forth and back through the recording, to '
            'running odometry and mapping nodes, as fast as they answer.',
        ),
    ] = None,
    sensor: SensorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Run the fault suite and print what came of each fault; exit code 1 if one is not met."""
    from mv_matcher_ros.cli.fault_files import FILE_FAULTS
    from mv_matcher_ros.cli.fault_frames import FRAME_FAULTS

    settings = settings_from(config, assignments, sensor.value if sensor else None)
    if live or soak is not None:
        from mv_matcher_ros.cli.stress_live import stress_live, stress_soak

        own = None if source is None else _clip(source, frames or LIVE_FRAMES, settings)
        kind = _synthetic_sensor(settings) if own is None else own.sensor
        if soak is not None:
            well = stress_soak(own, soak, settings, kind, json)
        else:
            well = stress_live(own, only, settings, kind, json)
        if not well:
            raise typer.Exit(1)
        return
    chosen = [f for f in (*FILE_FAULTS, *FRAME_FAULTS) if only.lower() in f.name.lower()]
    if not chosen:
        raise SettingsError(f'--only {only}: no fault has that in its name')
    clip = _clip(source, frames or FRAMES, settings)
    rows = []
    with progress('faults', len(chosen)) as advance:
        for fault in chosen:
            rows.append((fault, _try(fault, clip, settings)))
            advance(fault.name)
    failed = sum(not outcome.passed for _, outcome in rows)
    if json:
        print_json({
            'source': clip.name, 'frames': len(clip), 'failed': failed,
            'faults': [
                {'name': f.name, 'expected': f.expected, **asdict(o)} for f, o in rows
            ],
        })  # fmt: skip
    else:
        print_table(
            f'{len(rows)} faults on {len(clip)} frames of {clip.name}, {failed} not met',
            ('fault', 'expected', 'observed', ''),
            [(f.name, f.expected, o.observed, 'ok' if o.passed else 'FAILED') for f, o in rows],
        )
    if failed:
        raise typer.Exit(1)


def _clip(source: Path | None, frames: int, settings: Settings) -> Clip:
    from mv_matcher_ros.cli.faults import Clip

    if source is not None:
        from mv_matcher_ros.cli.run import open_recording

        return Clip.of(open_recording(source, settings, end=frames))
    from mv_matcher_ros.worlds.presets import room_loop

    return Clip.of(room_loop(_synthetic_sensor(settings), frames, SYNTHETIC_SIZE))


def _synthetic_sensor(settings: Settings) -> Sensor:
    """The one that is asked for; stereo where none is."""
    return settings.sensor if 'sensor' in settings.model_fields_set else 'stereo'


def _try(fault: Fault, clip: Clip, settings: Settings) -> Outcome:
    """The outcome of one fault; a bug it brings to light fails this fault, not the suite."""
    from mv_matcher_ros.cli.faults import Outcome

    with tempfile.TemporaryDirectory(prefix='mv_matcher_') as place:
        try:
            return fault.apply(clip, Path(place), settings)
        except Exception as error:  # a crash of any kind is what is looked for
            return Outcome(
                f'crashed: {type(error).__name__}: {" ".join(str(error).split())}', False
            )
