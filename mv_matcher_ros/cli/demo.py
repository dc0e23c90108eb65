# SPDX-License-Identifier: Apache-2.0
"""`demo`: a synthetic flight goes into a bag, odometry and a map come out, errors are printed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.console import Advance, print_json, progress, say
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SensorChoice,
    SetOption,
    settings_from,
)
from mv_matcher_ros.cli.out_folder import check_run_folder, out_option
from mv_matcher_ros.errors import MvMatcherError

if TYPE_CHECKING:
    from mv_matcher_ros.datatypes import Frame, Rig, Sensor, Trajectory
    from mv_matcher_ros.runner import Source

# Folder of the map, beside the run.
MAP = 'map'


def demo(
    out: Annotated[Path, out_option('Folder for the bag, the run and its report.')] = Path(
        'out/demo'
    ),
    sensor: Annotated[
        SensorChoice, typer.Option(help='Sensor of the flight.')
    ] = SensorChoice.stereo,
    frames: Annotated[
        int | None,
        typer.Option(min=20, help='Frames; default: once around the room.', show_default=False),
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Render a flight with a loop into a bag, run odometry and mapping on it, print the errors."""
    from mv_matcher_ros.cli.evaluate import print_result, write_page
    from mv_matcher_ros.cli.plots import write_overview
    from mv_matcher_ros.cli.run import (
        MapFolders,
        map_evaluated,
        open_recording,
        print_summary,
        run_recording,
    )
    from mv_matcher_ros.evaluation.plots import save_plots
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_run

    check_run_folder(out, also=('flight', MAP))
    settings = settings_from(config, assignments, sensor.value)
    bag = record(flight(settings.sensor, frames), out / 'flight')
    recording = open_recording(bag, settings)
    mapping = importlib.util.find_spec('gtsam') is not None
    say(f'odometry{" and mapping" * mapping}: {settings.sensor} on {bag}')
    info = run_recording(recording, settings, out, MapFolders(save=out / MAP) if mapping else None)
    assert recording.truth is not None, 'the flight is recorded with its truth'
    result = evaluate_run(out, recording.truth)
    picture = write_overview(out, result)
    plots = save_plots(out, result)
    page = write_page(out, recording.truth, result)
    on_map = map_evaluated(out, recording.truth) if mapping else None
    if json:
        print_json({**result.to_json(), 'run': info, 'map': on_map and on_map.to_json()})
    else:
        print_summary(recording.name, info)
        print_result('demo', result)
        if on_map is not None:
            print_result('the same on the map', on_map)
    say(f'picture: {picture}; plots: {plots[0].parent}')
    say(f'report:  {page}')
    if not mapping:
        say("no map: it needs gtsam, pip install 'mv_matcher_ros[mapping]'")


def flight(sensor: Sensor, frames: int | None = None) -> Source:
    """The synthetic recording of the demo and the benchmark: once around a furnished room."""
    from mv_matcher_ros.worlds.presets import room_loop

    return room_loop(sensor, frames)


def record(source: Source, bag: Path) -> Path:
    """Write `source` as a bag, in place of what an earlier demo left there."""
    from mv_matcher_ros.files.bag import write_bag

    if bag.exists():
        if not (bag / 'metadata.yaml').is_file():
            raise MvMatcherError(f'{bag}: exists and is no bag; choose another --out')
        shutil.rmtree(bag)
    bag.parent.mkdir(parents=True, exist_ok=True)
    say(f'rendering: {len(source)} frames of {source.name} into {bag}')
    with progress('rendering', len(source)) as advance:
        write_bag(bag, Counted(source, advance))
    return bag


class Counted:
    """A source that moves a bar by one for every frame read from it."""

    def __init__(self, source: Source, advance: Advance) -> None:
        self._source = source
        self._advance = advance
        self.name: str = source.name
        self.sensor: Sensor = source.sensor
        self.rig: Rig = source.rig
        self.truth: Trajectory | None = source.truth

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            yield frame
            self._advance()

    @property
    def faults(self) -> Mapping[str, int]:
        """Those of the source."""
        return self._source.faults
