# SPDX-License-Identifier: Apache-2.0
"""`adapt`: the matcher learns from a recording, without labels, and is kept only if better."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import (
    plain,
    print_json,
    print_table,
    progress,
    say,
    write_text,
)
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
    parse_assignments,
    parse_topics,
    settings_from,
)
from mv_matcher_ros.cli.run import MaskOption, open_recording
from mv_matcher_ros.cli.train_matcher import start_notes, watched
from mv_matcher_ros.errors import MvMatcherError, SettingsError

if TYPE_CHECKING:
    from mv_matcher_ros.cli.adapt_report import Pictures
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.runner import Source
    from mv_matcher_ros.training.adaptation.clips import Clip, ClipPlan
    from mv_matcher_ros.training.adaptation.guard import Verdict
    from mv_matcher_ros.training.adaptation.settings import AdaptationSettings

EXIT_NO_BETTER = 3
FIGURES = 'adaptation.json'


def adapt(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help='File of weights to write if they are better.')],
    work: Annotated[
        Path | None,
        typer.Option(help='Folder of checkpoints and the report; default: OUT with .adapt.'),
    ] = None,
    sensor: SensorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help='Learn at most so long now.')
    ] = None,
    device: Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:N.')] = 'auto',
    start: StartOption = 0,
    end: EndOption = None,
    stride: StrideOption = 1,
    calibration: CalibrationOption = None,
    mask: MaskOption = None,
    topic: TopicOption = None,
    body_frame: BodyOption = None,
    json: JsonOption = False,
) -> None:
    """Adapt the matcher to a recording: no labels, no ground truth.

    Bundle adjustment over clips of the recording says which matches are right; the matcher learns
    that. The last part of the recording only judges: weights are written if they are better there,
    else nothing is written and the exit code is 3. `--config` is that of the engine, `--set` names
    settings of the adaptation. The same command goes on where it was interrupted.
    """
    from mv_matcher_ros.cli.adapt_report import REPORT, write_adaptation_report
    from mv_matcher_ros.cli.calibration_watch import looked_at
    from mv_matcher_ros.training.adaptation.settings import AdaptationSettings
    from mv_matcher_ros.training.settings import read_train_settings

    settings = read_train_settings(AdaptationSettings, None, parse_assignments(assignments or ()))
    running = settings_from(config, None, sensor.value if sensor else None)
    folder = work or out.with_suffix('.adapt')
    weights = _start(running, out)
    opened = open_recording(
        source, running, start=start, end=end, stride=stride, calibration=calibration or None,
        masks=mask or None, topics=parse_topics(topic or ()), body_frame=body_frame,
    )  # fmt: skip
    plan = _plan(opened, settings, running)
    recording = looked_at(opened, running)
    teach, judge = _clips(recording, plan, running)
    say(
        f'{recording.name}: {len(plan.frames)} frames chosen, {len(teach)} clips to learn from, '
        f'{len(judge)} to judge by'
    )
    if not _learned(settings, running, recording, plan, teach, weights, folder, minutes, device):
        return
    verdict, pictures = _judged(running, recording, judge, folder)
    content = {
        'better': verdict.better,
        'clips': verdict.clips,
        'solved': verdict.solved,
        'figures': [vars(figure) for figure in verdict.figures],
        'settings': settings.model_dump(),
        'source': recording.name,
        'teach': len(teach),
    }
    write_text(folder / FIGURES, _as_text(content))
    page = write_adaptation_report(
        folder / REPORT, recording.name, verdict, pictures, folder / 'log.jsonl', content
    )
    say(f'report: {page}')
    if json:
        print_json(content)
    else:
        _print(recording.name, verdict)
    if not verdict.better:
        say(f'not better, nothing written: {verdict.against}')
        raise typer.Exit(EXIT_NO_BETTER)
    written = _written(folder, out)
    for path in written.values():
        say(f'weights: {path}')
    say(f'use them: {" ".join(f"--set {name}={path}" for name, path in written.items())}')


def _start(running: Settings, out: Path) -> tuple[Path, Path]:
    """Files of the detector and the matcher to start from.

    Raises:
        SettingsError: the settings name no graph network, or OUT is what is started from.
    """
    from mv_matcher_ros.models.shipped import detector_file, matcher_file

    if running.detector.name != 'learned':
        raise SettingsError(
            f'detector.name is {running.detector.name}: only the learned detector and its matcher '
            'are adapted'
        )
    matcher = matcher_file(running)
    if matcher is None:
        raise SettingsError(
            'matching.matcher is nearest: nearest neighbours have nothing to adapt'
        )
    detector = detector_file(running.detector)
    if out.exists() and any(out.samefile(path) for path in (detector, matcher)):
        raise SettingsError(f'--out {out}: these are the weights to start from; name another file')
    return detector, matcher


def _plan(recording: Source, settings: AdaptationSettings, running: Settings) -> ClipPlan:
    """Which frames make clips that teach and that judge.

    Raises:
        SourceError: the recording cannot teach.
    """
    from mv_matcher_ros.training.adaptation.clips import planned, survey

    pixels, contrast = running.detector.working_pixels, running.image_quality.min_contrast
    with progress('looking for clips', len(recording)) as advance:
        found = survey(recording, recording.rig, settings.clips, pixels, contrast, advance)
    return planned(recording.name, found, settings.clips, _cameras(recording))


def _clips(recording: Source, plan: ClipPlan, running: Settings) -> tuple[list[Clip], list[Clip]]:
    """The clips, with their images."""
    from mv_matcher_ros.training.adaptation.clips import ClipImages

    pixels = running.detector.working_pixels
    with progress('keeping their images', len(recording)) as advance:
        images = ClipImages.of(
            recording, plan.frames, recording.rig, _cameras(recording), pixels, advance
        )
    return [images.clip(c) for c in plan.teach], [images.clip(c) for c in plan.judge]


def _cameras(recording: Source) -> int:
    return 2 if recording.sensor == 'stereo' else 1


def _learned(
    settings: AdaptationSettings,
    running: Settings,
    recording: Source,
    plan: ClipPlan,
    teach: Sequence[Clip],
    weights: tuple[Path, Path],
    folder: Path,
    minutes: float | None,
    device: str,
) -> bool:
    """Whether all steps are made; adapted weights then are in the folder."""
    from mv_matcher_ros.models.weights import (
        DESCRIBES_AS,
        load_detector,
        load_matcher,
        read_notes,
        read_weights,
    )
    from mv_matcher_ros.training.adaptation.task import AdaptationTask
    from mv_matcher_ros.training.processes import processes
    from mv_matcher_ros.training.trainer import Slice, Trainer

    detector, matcher = load_detector(weights[0]), load_matcher(weights[1])
    describes_as = read_notes(weights[0]).get(DESCRIBES_AS, '')
    task = AdaptationTask(settings, running, recording.rig, teach, detector, matcher, describes_as)
    identity = {
        'settings': settings.model_dump(exclude={'trainer', 'stage'}),
        'detector': running.detector.model_dump(exclude={'weights'}),
        'source': recording.name,
        'cameras': [[c.model, *c.distortion] for c in recording.rig.cameras],
        'clips': [list(clip) for clip in plan.teach],
        'from': [
            read_weights(path, kind).sha256
            for path, kind in zip(weights, ('detector', 'matcher'), strict=True)
        ],
    }
    notes = {
        **start_notes(weights[1]),
        'trained': 'mv-matcher adapt',
        'data': f'{recording.name}: {len(teach)} clips, no labels',
    }
    with processes(device) as here, watched() as watcher:
        trainer = Trainer(
            task, settings.trainer, (settings.stage,), folder, here, identity, notes, watcher
        )
        done = trainer.run(Slice(None, minutes))
    if not done:
        say(f'step {trainer.step} of {trainer.steps}, the same command goes on')
    return done


def _judged(
    running: Settings, recording: Source, judge: Sequence[Clip], folder: Path
) -> tuple[Verdict, list[Pictures]]:
    """The verdict of the clips that taught nothing, on the weights before and after."""
    from mv_matcher_ros.cli.adapt_report import Pictures
    from mv_matcher_ros.models.choice import Models
    from mv_matcher_ros.training.adaptation.guard import Judge, compared
    from mv_matcher_ros.training.joint_task import DETECTOR_FILE
    from mv_matcher_ros.training.trainer import BEST

    detector = folder / DETECTOR_FILE
    sides = {
        'before': _with_weights(running, None, None),
        'after': _with_weights(running, folder / BEST, detector if detector.exists() else None),
    }
    judging = Judge(judge, recording.rig)
    found, pictures = [], []
    for name, settings in sides.items():
        models = Models.of(settings)
        assert models.graph is not None
        with progress(f'judging the weights {name}', len(judge)) as advance:
            taken = Pictures(judge, name)
            found.append(judging.figures(models.detector, models.graph, advance, taken.watch))
            pictures.append(taken)
    return compared(*found), pictures


def _with_weights(running: Settings, matcher: Path | None, detector: Path | None) -> Settings:
    """Engine settings with the graph network, and these weights in place of theirs."""
    matching: dict[str, Any] = {'matcher': 'multiview'}
    if matcher is not None:
        matching['weights'] = str(matcher)
    update: dict[str, Any] = {'matching': running.matching.model_copy(update=matching)}
    if detector is not None:
        update['detector'] = running.detector.model_copy(update={'weights': str(detector)})
    return running.model_copy(update=update)


def _written(folder: Path, out: Path) -> dict[str, Path]:
    """The adapted weights where they were asked for, by the settings that take them."""
    from mv_matcher_ros.training.joint_task import DETECTOR_FILE
    from mv_matcher_ros.training.trainer import BEST

    copies = {
        'matching.weights': (folder / BEST, out),
        'detector.weights': (folder / DETECTOR_FILE, detector_beside(out)),
    }
    written = {}
    for name, (source, target) in copies.items():
        if source.exists():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                raise MvMatcherError(f'{target}: cannot be written: {error.strerror}') from None
            written[name] = target
    return written


def detector_beside(out: Path) -> Path:
    """Where the detector of an adapted matcher lies."""
    return out.with_suffix(f'.detector{out.suffix}')


def _as_text(content: Any) -> str:
    import json

    return json.dumps(plain(content), indent=2) + '\n'


def _print(name: str, verdict: Verdict) -> None:
    rows = [
        (
            figure.name,
            f'{figure.before:.4g}',
            f'{figure.after:.4g}',
            figure.unit,
            f'{figure.interval[0]:+.3g} to {figure.interval[1]:+.3g}',
            'yes' if figure.good else 'no',
        )
        for figure in verdict.figures
    ]
    print_table(
        f'{name}: {verdict.clips} clips that taught nothing, {verdict.solved} solved by both',
        ('figure', 'before', 'after', 'unit', 'difference (95 %)', 'as it must be'),
        rows,
        (1, 2, 4),
    )
