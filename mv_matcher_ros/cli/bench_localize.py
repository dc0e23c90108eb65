# SPDX-License-Identifier: Apache-2.0
"""`bench localize`: frames of a second round on the map of the first, and a body carried off."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    settings_from,
)
from mv_matcher_ros.cli.place_sources import LOOPS, rendered_rounds
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Frame, Rig, Sensor, Trajectory
    from mv_matcher_ros.mapping.map import Map
    from mv_matcher_ros.mapping.session import Taken
    from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
    from mv_matcher_ros.worlds.recording import SyntheticSource

# How long a body that is carried off sees its first place, nothing, and the other place.
SEEING_S, DARK_S = 4.0, 2.0


@dataclass(frozen=True)
class Part:
    """Some frames of a rendered recording; satisfies `runner.Source`."""

    name: str
    sensor: Sensor
    rig: Rig
    truth: Trajectory | None
    made: SyntheticSource
    chosen: Sequence[int]
    faults: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Frame]:
        return (self.made.frame(index) for index in self.chosen)


def localize(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar='[SOURCE]...', help=f'{", ".join(LOOPS)}.  [default: all]'),
    ] = None,
    sensor: Annotated[
        SensorChoice, typer.Option(help='Of the map and of the frames.')
    ] = SensorChoice.stereo,
    seeds: Annotated[int, typer.Option(min=1, help='Of each rendered loop.')] = 3,
    every: Annotated[float, typer.Option(min=0.05, help='Time between frames, s.')] = 0.5,
    width: WidthOption = 640,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Frames found on the map of an earlier round, and how soon a body that was carried off.

    The map is made by our own odometry. The second round goes 16 cm beside the first and looks 14
    degrees to the side; each frame is looked for by itself. Carried off: black frames, then
    another place.
    """
    settings = settings_from(config, assignments, sensor.value)
    rows = []
    for name in sources or LOOPS:
        if name not in LOOPS:
            raise SourceError(f'{name}: no such loop; there are {", ".join(LOOPS)}')
        for seed in range(seeds):
            row = measure(name, settings, image_size(width), seed, every)
            say(f'{name} {seed}: {row["found"]} of {row["frames"]} found')
            rows.append(row)
    report({'localize': rows}, json, lambda: _show(rows))


def measure(
    name: str, settings: Settings, size: tuple[int, int], seed: int, every_s: float
) -> dict[str, Any]:
    """One loop: map, frames, a body carried off."""
    from mv_matcher_ros.cli.localize import locate_frames, located_errors
    from mv_matcher_ros.cli.loop_runs import run_with_map

    made, round_s = two_rounds(name, settings.sensor, size, seed)
    first = int(round_s * made.rate_hz)
    run = run_with_map(_part(made, range(first)), settings)
    world = run.mapper.world
    step = max(1, round(every_s * made.rate_hz))
    queries = _part(made, range(first, len(made), step))
    found, said = locate_frames(settings, queries, world, alone=True)
    return {
        'source': name, 'sensor': settings.sensor, 'seed': seed, 'keyframes': len(world), **said,
        **located_errors(found, world, made.truth, len(queries)),
        'carried_off': carried_off(made, first, world, settings),
    }  # fmt: skip


def two_rounds(
    name: str, sensor: Sensor, size: tuple[int, int], seed: int
) -> tuple[SyntheticSource, float]:
    """A loop twice, the second time beside the first and looking to the side; time of a round."""
    from mv_matcher_ros.worlds.mesh_walk import Rounds
    from mv_matcher_ros.worlds.recording import SyntheticSource

    same, round_s = rendered_rounds(name, sensor, 2.0, size, seed)
    made = SyntheticSource(
        same.world,
        Rounds(same.path, round_s),
        same.rig,
        sensor,
        same.rate_hz,
        len(same),
        same.effects,
        seed,
        name=name,
    )
    return made, round_s


def _part(made: SyntheticSource, chosen: Sequence[int]) -> Part:
    return Part(made.name, made.sensor, made.rig, made.truth, made, chosen, {})


def carried_off(
    made: SyntheticSource, first: int, world: Map, settings: Settings
) -> dict[str, float | None]:
    """Black frames, then a place half a round farther: when is it said that the body is lost, and
    when is it found?

    Returns:
        Seconds of the recording from the first black frame to LOST, from the first frame of the
        other place to the answer of the map, and how far that is off, metres.
    """
    import numpy as np

    from mv_matcher_ros.cli.localize import laid_on_truth
    from mv_matcher_ros.datatypes import Status
    from mv_matcher_ros.mapping.map_folder import save_map
    from mv_matcher_ros.mapping.session import MapSession
    from mv_matcher_ros.models.choice import Models
    from mv_matcher_ros.odometry.engine import OdometryEngine

    assert made.truth is not None
    laid = laid_on_truth(world, made.truth)
    if laid is None:
        return {'lost_s': None, 'found_s': None, 'error_m': None}
    truth_from_map = laid[0]
    frames, plan = _carried(made, first)
    models = Models.of(settings)
    answers: list[tuple[KeyframeRecord, Taken]] = []
    with tempfile.TemporaryDirectory() as folder:
        save_map(world, Path(folder) / 'map')
        chosen = settings.mapping.model_copy(
            update={'folder': str(Path(folder) / 'map'), 'grow': False}
        )
        session = MapSession(settings.model_copy(update={'mapping': chosen}), made.rig, models)
        # As config/localization.yaml has it: what is only looked for need not be refined.
        soon = settings.keyframes.model_copy(update={'map_lag': 1})
        live = settings.model_copy(update={'keyframes': soon})
        engine = OdometryEngine(live, made.rig, models=models)

        def ask(record: KeyframeRecord) -> None:
            taken = session.take(record)
            if taken is not None:
                answers.append((record, taken))

        engine.report_keyframes(ask)
        lost_s = found_s = error_m = None
        for frame, (_, since_dark, since_light) in zip(frames, plan, strict=True):
            answers.clear()
            estimate = engine.process(frame)
            if since_dark is not None and lost_s is None and estimate.status is Status.LOST:
                lost_s = since_dark
            for record, answer in answers:
                index, _, seen_since = plan[record.observation.index]
                known = answer.status in (Status.TRACKING, Status.RELOCALISED)
                if seen_since is None or found_s is not None or not known:
                    continue
                assert answer.map_from_odom is not None
                here = truth_from_map @ answer.map_from_odom @ record.odom_from_body.numpy()
                there = made.truth.world_from_body[index]
                error_m = float(np.linalg.norm(here[:3, 3] - there[:3, 3]))
                found_s = since_light
    return {'lost_s': lost_s, 'found_s': found_s, 'error_m': error_m}


def _carried(
    made: SyntheticSource, first: int
) -> tuple[Iterator[Frame], list[tuple[int, float | None, float | None]]]:
    """Frames with stamps in a row, and of each its number in the recording and how long it has
    been dark, and light again."""
    import numpy as np

    seeing, dark = round(SEEING_S * made.rate_hz), round(DARK_S * made.rate_hz)
    there = first + (len(made) - first) // 2
    plan: list[tuple[int, float | None, float | None]] = [
        *((first + i, None, None) for i in range(seeing)),
        *((first + seeing, i / made.rate_hz, None) for i in range(dark)),
        *((there + i, None, i / made.rate_hz) for i in range(min(2 * seeing, len(made) - there))),
    ]
    step_ns = round(1e9 / made.rate_hz)

    def frames() -> Iterator[Frame]:
        for number, (index, since_dark, _) in enumerate(plan):
            frame = made.frame(index)
            if since_dark is not None:
                views = tuple(
                    replace(
                        view,
                        image=np.zeros_like(view.image),
                        depth=None if view.depth is None else np.zeros_like(view.depth),
                    )
                    for view in frame.views
                )
                frame = replace(frame, views=views)
            yield replace(frame, stamp_ns=1_000_000_000 + number * step_ns, index=number)

    return frames(), plan


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    def percent(row: Mapping[str, Any], bound: str) -> str:
        return f'{row.get("within_percent_of_frames", {}).get(bound, float("nan")):.0f}'

    def seconds(row: Mapping[str, Any], name: str) -> str:
        value = row['carried_off'][name]
        return 'never' if value is None else f'{value:.2f}'

    print_table(
        'a second round on the map of the first, and a body carried off',
        ('source', 'seed', 'frames', 'found', '25 cm 10°', '5 cm 5°', '2 cm 2°', 'median m',
         'frame ms', 'LOST s', 'found s', 'off by m'),
        [
            (
                r['source'], r['seed'], r['frames'], r['found'], percent(r, '25 cm 10 deg'),
                percent(r, '5 cm 5 deg'), percent(r, '2 cm 2 deg'),
                f'{r.get("median_m") or float("nan"):.3f}', f'{r["frame_ms"]["p50"]:.0f}',
                seconds(r, 'lost_s'), seconds(r, 'found_s'), seconds(r, 'error_m'),
            )
            for r in rows
        ],
        right=tuple(range(1, 12)),
    )  # fmt: skip
