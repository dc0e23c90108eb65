# SPDX-License-Identifier: Apache-2.0
"""`run`: odometry on a recording into a run folder; also what `dataset` and `demo` run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import Advance, print_json, print_table, progress, say, warn
from mv_matcher_ros.cli.options import (
    BodyOption,
    CalibrationOption,
    ConfigOption,
    EndOption,
    JsonOption,
    SensorOption,
    SetOption,
    SourceArgument,
    StartOption,
    StrideOption,
    TopicOption,
    locate,
    parse_topics,
    settings_from,
)
from mv_matcher_ros.cli.out_folder import check_run_folder, out_option
from mv_matcher_ros.errors import EvaluationError, MvMatcherError, SettingsError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Estimate, Frame, Trajectory
    from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult, FittedAlignment
    from mv_matcher_ros.files.recording import Recording
    from mv_matcher_ros.mapping.map import Map
    from mv_matcher_ros.odometry.distortion_check import DistortionCheck
    from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
    from mv_matcher_ros.odometry.reporting import OnKeyframe
    from mv_matcher_ros.runner import Sink, Source

MaskOption = Annotated[
    list[Path] | None,
    typer.Option('--mask', help='Image, black where no features may lie; one per camera.'),
]


def run(
    source: SourceArgument,
    out: Annotated[Path, out_option('Run folder to write.')],
    sensor: SensorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    start: StartOption = 0,
    end: EndOption = None,
    stride: StrideOption = 1,
    calibration: CalibrationOption = None,
    mask: MaskOption = None,
    topic: TopicOption = None,
    body_frame: BodyOption = None,
    mapping: Annotated[
        bool, typer.Option('--mapping', help='Make a map, too: map.tum are the poses on it.')
    ] = False,
    save_map: Annotated[
        Path | None, typer.Option(help='Folder to write the map to; with --mapping.')
    ] = None,
    load_map: Annotated[
        Path | None, typer.Option(help='Folder of a map to go on with; with --mapping.')
    ] = None,
    json: JsonOption = False,
) -> None:
    """Odometry on a recording: odometry.tum, run.json and report.html in a run folder."""
    from mv_matcher_ros.cli.evaluate import print_result, write_page

    if (save_map or load_map) and not mapping:
        raise SettingsError('--save-map and --load-map are about a map: add --mapping')
    check_run_folder(out)
    settings = settings_from(config, assignments, sensor.value if sensor else None)
    recording = open_recording(
        source, settings, start=start, end=end, stride=stride, calibration=calibration or None,
        masks=mask or None, topics=parse_topics(topic or ()), body_frame=body_frame,
    )  # fmt: skip
    made = MapFolders(load_map, save_map) if mapping else None
    info = run_recording(recording, settings, out, made)
    result, warning = evaluated(out, recording.truth)
    on_map = map_evaluated(out, recording.truth) if mapping else None
    page = write_page(out, recording.truth, result)
    if json:
        if warning:
            warn(warning)
        said = {'run': info, 'evaluation': result and result.to_json()}
        print_json({**said, 'map': on_map and on_map.to_json()} if mapping else said)
        return
    print_summary(recording.name, info)
    if result is not None:
        print_result('against the ground truth of the recording', result)
    if on_map is not None:
        print_result('the same on the map', on_map)
    if warning:  # with the table: who keeps that must keep this
        print(f'warning: {warning}')
    if info['poses']:
        say(f'poses:  {out / "odometry.tum"}')
    say(f'report: {page}')


def open_recording(source: Path, settings: Settings, **options: Any) -> Recording:
    """The recording at `source`, as the sensor that the settings name if they name one.

    Args:
        source: path, or a name below MV_MATCHER_DATA.
        settings: `sensor` counts only where it was set.
        options: as for `open_source`.
    """
    from mv_matcher_ros.files.open import open_source

    asked = settings.sensor if 'sensor' in settings.model_fields_set else None
    return open_source(locate(source), asked, pairs=settings.stereo.pairs, **options)


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


@dataclass(frozen=True)
class MapFolders:
    """Of a map to go on with, and of where to write it; None for neither."""

    load: Path | None = None
    save: Path | None = None


def run_recording(
    recording: Source, settings: Settings, out: Path, folders: MapFolders | None = None
) -> dict[str, Any]:
    """Run odometry over `recording` into the folder `out`; returns the content of its run.json.

    Args:
        folders: of the map; None: make none.

    Raises:
        MvMatcherError: the recording cannot be read on; what was computed so far is in `out`.
    """
    from mv_matcher_ros.cli.calibration_watch import (
        DistortedError,
        MisalignedError,
        WithRig,
        notes,
        with_corrected,
        with_known_error,
    )
    from mv_matcher_ros.mapping.map_folder import load_map
    from mv_matcher_ros.odometry.distortion_check import DistortionCheck, advice, in_words

    if folders is not None and folders.load is not None:
        world = load_map(folders.load)
        known = world.known_rig(recording.rig)
        camera = known.cameras[0]
        if camera.distortion != recording.rig.cameras[0].distortion:
            warn(f'{folders.load} knows its camera better: {in_words(camera)} is used')
        return _run_once(WithRig(recording, known), settings, out, folders, None, world=world)
    check = None
    if settings.distortion_check.enabled and recording.sensor != 'stereo':
        check = DistortionCheck(settings.distortion_check, recording.rig.cameras[0])
    try:
        return _run_once(recording, settings, out, folders, check)
    except DistortedError as distorted:
        found, camera = distorted.found, recording.rig.cameras[0]
        again = with_corrected(recording, found)
        warn(
            f'{recording.name}: {advice(found, camera)}; begun again with it '
            '(distortion_check.enabled=false keeps the old one)'
        )
        return _run_once(again, settings, out, folders, None, notes(found, again.rig))
    except MisalignedError as misaligned:
        corrected = with_known_error(settings, misaligned.found)
        warn(
            f'{recording.name}: the stereo calibration is off: {misaligned}; begun again with '
            f'stereo.disparity_error_px={corrected.stereo.disparity_error_px} '
            '(stereo.self_calibration=false keeps the old one)'
        )
        found_px = {'disparity_error_px': corrected.stereo.disparity_error_px}
        return _run_once(recording, corrected, out, folders, None, found_px)


def _run_once(
    recording: Source,
    settings: Settings,
    out: Path,
    folders: MapFolders | None,
    check: DistortionCheck | None,
    calibration: Mapping[str, Any] | None = None,
    world: Map | None = None,
) -> dict[str, Any]:
    """See `run_recording`.

    Raises:
        DistortedError: the check is sure that the camera is another than it was said to be.
        MisalignedError: the odometry is sure that a stereo pair is. Not on a map: what that was
            made of is not begun again.
    """
    from mv_matcher_ros.cli.calibration_watch import (
        DistortionWatch,
        MisalignedError,
        PairWatch,
    )
    from mv_matcher_ros.cli.run_mapping import MappingSink, mapper_for, write_map
    from mv_matcher_ros.evaluation.track_sampler import TrackSampler
    from mv_matcher_ros.files.prefetch import Prefetched
    from mv_matcher_ros.files.results import RunWriter, read_run
    from mv_matcher_ros.models.choice import Models
    from mv_matcher_ros.odometry.engine import OdometryEngine
    from mv_matcher_ros.runner import run as run_all

    settings = settings.model_copy(update={'sensor': recording.sensor})
    models = Models.of(settings)
    mapping = None
    if folders is not None:
        mapping = MappingSink(mapper_for(settings, recording.rig, models, world))
    engine = OdometryEngine(settings, recording.rig, models=models)
    may_begin_again = (
        settings.stereo.self_calibration
        and not settings.stereo.disparity_error_px
        and world is None
    )
    listeners = [
        *([] if mapping is None else [mapping.take]),
        *([] if check is None else [check.take]),
    ]
    if listeners:
        engine.report_keyframes(lambda record: _tell(listeners, record))
    source = Prefetched(recording)
    with progress(Path(recording.name).name, len(recording)) as advance:
        counter = ProgressSink(advance)
        sinks: list[Sink] = [
            RunWriter(
                out,
                source,
                settings,
                covariances=True,
                networks=engine.networks,
                calibration=calibration,
            ),
            TrackSampler(out),
            counter,
            *([] if mapping is None else [mapping]),
            *([] if check is None else [DistortionWatch(check)]),
            *([PairWatch(engine)] if may_begin_again else []),
        ]
        try:
            run_all(source, engine, sinks)
        except (MvMatcherError, KeyboardInterrupt):
            if counter.frames:
                say(f'mv-matcher: stopped after {counter.frames} frames; they are in {out}')
            raise
        finally:
            for fault, count in source.faults.items():
                warn(f'{recording.name}: {fault} ({count} x)')
    found = engine.rig_correction
    if found is not None and may_begin_again:
        raise MisalignedError(found)
    if found is not None and settings.stereo.self_calibration:
        say(
            f'the stereo calibration is off, depths were corrected: {found.in_words} '
            f'(stereo.disparity_error_px={found.disparity_error_px})'
        )
    if mapping is not None and folders is not None:
        engine.finish()
        write_map(mapping, out, folders.save)
    return read_run(out).summary


def _tell(listeners: Sequence[OnKeyframe], record: KeyframeRecord) -> None:
    for listener in listeners:
        listener(record)


def map_evaluated(out: Path, truth: Trajectory | None) -> EvaluationResult | None:
    """The poses on the map compared with the truth; None where there is nothing to compare."""
    from mv_matcher_ros.cli.run_mapping import TRAJECTORY
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_run
    from mv_matcher_ros.files.results import read_run

    if truth is None or not (out / TRAJECTORY).exists():
        return None
    align: FittedAlignment = 'se3' if read_run(out).summary['metric'] else 'sim3'
    try:
        return evaluate_run(out / TRAJECTORY, truth, align)
    except EvaluationError as error:
        warn(f'no comparison of the map with the truth: {error}')
        return None


def evaluated(out: Path, truth: Trajectory | None) -> tuple[EvaluationResult | None, str]:
    """The run compared with the truth, and a line on what is wrong with the run or the comparison.

    Returns:
        No result where there is nothing to compare; the line is empty where nothing is wrong.
    """
    from mv_matcher_ros.evaluation.run_data import load_run
    from mv_matcher_ros.evaluation.run_evaluation import evaluate_loaded_run

    run = load_run(out)
    if not len(run.trajectory):
        return None, run.why_no_pose()
    if truth is None:
        return None, ''
    try:
        return evaluate_loaded_run(run, truth), ''
    except EvaluationError as error:
        return None, f'no comparison with the truth: {error}'


def print_summary(name: str, info: Mapping[str, Any]) -> None:
    """What happened in a run, from its run.json."""
    latency = info['latency_ms'].get('total')
    times = None if latency is None else f'{latency["p50"]:.0f} / {latency["p95"]:.0f} ms'
    statuses = ', '.join(f'{count} {status}' for status, count in info['status'].items())
    rate = info['fps']
    print_table(
        name,
        ('figure', 'value'),
        [
            ('frames', f'{info["frames"]} ({statuses})'),
            ('keyframes', info['keyframes']),
            ('times lost', info['lost']),
            ('throughput', None if rate is None else f'{rate:.1f} frames/s'),
            ('latency p50 / p95', times),
            ('scale', 'metric' if info['metric'] else 'arbitrary: one camera has no metric scale'),
        ],
    )
