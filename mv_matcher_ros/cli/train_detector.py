# SPDX-License-Identifier: Apache-2.0
"""`train detector` and `train detector-figures`: the detector learns, and is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.console import print_json, print_table, progress, say
from mv_matcher_ros.cli.options import JsonOption, SetOption, parse_assignments
from mv_matcher_ros.cli.train_matcher import watched
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.evaluation.keypoint_error import KeypointFigures
    from mv_matcher_ros.training.detector.task import DetectorTraining
    from mv_matcher_ros.training.detector.validation import Finder

ConfigArgument = Annotated[
    Path, typer.Argument(metavar='CONFIG', help='e.g. config/train/detector_light.yaml')
]
PhotosOption = Annotated[Path | None, typer.Option(help='Folder of photographs.')]
TuplesOption = Annotated[
    Path | None, typer.Option(help='Folder of "train tuples": train/ and val/ with shards.')
]
TeacherOption = Annotated[Path, typer.Option(help='Checkpoint of ALIKED-n16 (aliked-n16.pth).')]
TaughtOption = Annotated[
    Path | None,
    typer.Option(help='Folder that keeps what the teacher said; default: taught beside --out.'),
]
_COLUMNS = ('repeatability', 'accuracy', 'matching_score')


def detector(
    config: ConfigArgument,
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option(help='Folder of checkpoint, log and best weights.')],
    photos: PhotosOption = None,
    tuples: TuplesOption = None,
    taught: TaughtOption = None,
    begin: Annotated[
        Path | None, typer.Option('--from', help='Weights to begin with, not a checkpoint.')
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help='Stop after so many now.')] = None,
    minutes: Annotated[float | None, typer.Option(min=0.0, help='Stop after so long now.')] = None,
    device: Annotated[str, typer.Option(help='auto, cpu, cuda or cuda:N.')] = 'auto',
    assignments: SetOption = None,
) -> None:
    """Train a detector; the same command goes on where it stopped."""
    from mv_matcher_ros.models.weights import load_detector
    from mv_matcher_ros.training.detector.task import (
        DetectorTask,
        training_pairs,
        validation_pairs,
    )
    from mv_matcher_ros.training.detector.teacher import TaughtOnce, Teacher
    from mv_matcher_ros.training.processes import processes
    from mv_matcher_ros.training.trainer import BEST, Slice, Trainer

    settings = _settings(config, assignments)
    if photos is None and tuples is None:
        raise SourceError('nothing to train on: name --photos, --tuples, or both')
    once = TaughtOnce(Teacher(teacher), out.parent / 'taught' if taught is None else taught)
    pairs = training_pairs(settings, photos, tuples)
    task = DetectorTask(
        settings,
        pairs,
        once,
        validation_pairs(settings.validation, photos, tuples),
        None if begin is None else load_detector(begin),
    )
    identity = {
        'detector': settings.model_dump(exclude={'trainer', 'stages', 'validation'}),
        'pairs': [0 if source is None else len(source) for source in pairs],
        'teacher': once.teacher.name,
        'from': str(begin),
    }
    with processes(device) as here, watched() as watcher:
        trainer = Trainer(
            task, settings.trainer, settings.stages, out, here, identity, listener=watcher
        )
        done = trainer.run(Slice(steps, minutes))
    if here.first:
        say(f'step {trainer.step} of {trainer.steps}{"" if done else ", to be continued"}')
        say(f'best weights (score {trainer.best:.4g}): {out / BEST}')


def detector_figures(
    config: ConfigArgument,
    teacher: TeacherOption,
    weights: Annotated[
        list[Path] | None, typer.Option('--weights', help='A trained detector; repeatable.')
    ] = None,
    photos: PhotosOption = None,
    tuples: TuplesOption = None,
    taught: TaughtOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Detectors, SIFT and the teacher on the held-out photos and world, in one run."""
    from mv_matcher_ros.models.weights import load_detector
    from mv_matcher_ros.training.detector.task import validation_pairs
    from mv_matcher_ros.training.detector.teacher import TaughtOnce, Teacher
    from mv_matcher_ros.training.detector.validation import (
        network_finder,
        sift_finder,
        teacher_finder,
    )

    settings = _settings(config, assignments).validation
    validation = validation_pairs(settings, photos, tuples)
    if not validation.sets:
        raise SourceError('nothing to measure on: name --photos, --tuples, or both')
    once = TaughtOnce(Teacher(teacher), Path('taught') if taught is None else taught)
    finders: dict[str, Finder] = {
        str(path): network_finder(load_detector(path), settings.keypoints)
        for path in weights or ()
    }
    finders['sift'] = sift_finder(settings.keypoints)
    finders['teacher'] = teacher_finder(once)
    found = {}
    with progress('detectors', len(finders)) as advance:
        for name, finder in finders.items():
            found[name] = validation.figures(finder)
            advance(name)
    if json:
        print_json(
            {
                name: {place: figures.named() for place, figures in sets.items()}
                for name, sets in found.items()
            }
        )
        return
    for place in validation.sets:
        print_table(
            f'{place}: {len(validation.sets[place])} pairs, {settings.keypoints} keypoints; '
            'percent within 1 / 3 / 5 px',
            ('detector', 'repeatability', 'accuracy', 'matching score', 'found px', 'matched px'),
            [(name, *figure_cells(sets[place])) for name, sets in found.items()],
            right=(1, 2, 3, 4, 5),
        )


def _settings(config: Path, assignments: list[str] | None) -> DetectorTraining:
    from mv_matcher_ros.training.detector.task import DetectorTraining
    from mv_matcher_ros.training.settings import read_train_settings

    return read_train_settings(DetectorTraining, config, parse_assignments(assignments or ()))


def figure_cells(figures: KeypointFigures) -> tuple[str, ...]:
    """Cells of a table: shares within the thresholds, distances."""
    shares = (' / '.join(f'{v:.1f}' for v in getattr(figures, column)) for column in _COLUMNS)
    return (*shares, f'{figures.localisation_px:.2f}', f'{figures.matched_px:.2f}')
