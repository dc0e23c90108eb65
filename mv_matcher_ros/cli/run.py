# SPDX-License-Identifier: Apache-2.0
"""`run`: odometry on a recording into a run folder; also what `dataset` and `demo` run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import Advance, print_json, print_table, progress, say, warn
from mv_matcher_ros.cli.options import (
    ConfigOption,
    EndOption,
    JsonOption,
    SensorOption,
    SetOption,
    SourceArgument,
    StartOption,
    StrideOption,
    locate,
    settings_from,
)
from mv_matcher_ros.errors import MvMatcherError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Estimate, Frame
    from mv_matcher_ros.runner import Source

CalibrationOption = Annotated[
    list[Path] | None,
    typer.Option('--calibration', help='Calibration YAML instead of the recording\'s own; one per camera if split.'),
]
MaskOption = Annotated[
    list[Path] | None,
    typer.Option('--mask', help='Image, black where no features may lie; one per camera.'),
]


def run(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help='Run folder to write.')],
    sensor: SensorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    start: StartOption = 0,
    end: EndOption = None,
    stride: StrideOption = 1,
    calibration: CalibrationOption = None,
    mask: MaskOption = None,
    json: JsonOption = False,
) -> None:
    """Odometry on a recording: odometry.tum, run.json and report.html in a run folder."""
    settings = settings_from(config, assignments, sensor.value if sensor else None)
    recording = open_recording(source, settings, calibration, mask)
    if (start, end, stride) != (0, None, 1):
        recording = recording.sliced(start, end, stride)
    summary = run_recording(recording, settings, out)
    finish(recording, summary, out, json)


def open_recording(
    source: Path, settings: Settings, calibration: Sequence[Path] | None = None, masks: Sequence[Path] | None = None
) -> Any:
    """The recording at `source`, as the sensor the settings name if they name one."""
    from mv_matcher_ros.files.sequences import open_source

    asked = settings.sensor if 'sensor' in settings.model_fields_set else None
    return open_source(locate(source), sensor=asked, calibration=calibration or None, masks=masks or None)


class ProgressSink:
    """Moves the bar by one frame and says how the tracking goes."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._start = time.perf_counter()
        self.frames = 0

    def write(self, frame: Frame, estimate: Estimate) -> None:
        """Count one frame."""
        self.frames += 1
        rate = self.frames / (time.perf_counter() - self._start)
        self._advance(f'{estimate.status.value}  {rate:.1f} frames/s')

    def close(self) -> None:
        """Nothing to close: the bar belongs to the caller."""


def run_recording(recording: Source, settings: Settings, out: Path) -> dict[str, Any]:
    """Run odometry over `recording` into the folder `out`; returns the content of its run.json.

    Raises:
        MvMatcherError: the recording cannot be read on; what was computed so far is in `out`.
    """
    from mv_matcher_ros.evaluation.track_sampler import TrackSampler
    from mv_matcher_ros.files.results import RunWriter
    from mv_matcher_ros.odometry.engine import OdometryEngine
    from mv_matcher_ros.runner import run as run_all

    settings = settings.model_copy(update={'sensor': recording.sensor})
    engine = OdometryEngine(settings, recording.rig)
    writer = RunWriter(out, recording, settings)
    with progress(recording.name, len(recording)) as advance:
        counter = ProgressSink(advance)
        try:
            run_all(recording, engine, [writer, TrackSampler(out), counter])
        except (MvMatcherError, KeyboardInterrupt) as error:
            if counter.frames:
                say(f'mv-matcher: stopped after {counter.frames} frames, which are in {out}')
            raise error
        finally:
            for fault, count in recording.faults.items():
                warn(f'{recording.name}: {fault}: {count}')
    return read_info(out)
