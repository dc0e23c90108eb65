# SPDX-License-Identifier: Apache-2.0
"""`train points`: point inference from rendered tuples, in slices that go on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import progress, say
from mv_matcher_ros.cli.options import SetOption, parse_assignments
from mv_matcher_ros.cli.train_matcher import (
    SIDES,
    data_note,
    feature_files,
    make_missing_features,
    notes_of,
    train_slice,
    wanted_features,
)

if TYPE_CHECKING:
    from mv_matcher_ros.training.matcher.feature_cache import FeatureJob, FeatureRecipe
    from mv_matcher_ros.training.points.settings import PointTraining
    from mv_matcher_ros.training.points.task import PointTask


def points(
    config: Annotated[
        Path, typer.Argument(help='YAML file, e.g. config/train/points_light.yaml.')
    ],
    tuples: Annotated[Path, typer.Option(help='Folder of `train tuples`.')],
    out: Annotated[Path, typer.Option(help='Folder of checkpoints, weights and the log.')],
    features: Annotated[
        Path | None,
        typer.Option(help='Folder of features, e.g. of the matcher; default: OUT/features.'),
    ] = None,
    depths: Annotated[
        Path | None, typer.Option(help='Folder of their depths, made once; default: OUT/depths.')
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help='Stop after so many now.')] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help='Stop after so long now.')] = None,
    start: Annotated[
        Path | None, typer.Option('--from', help='Weights to start from, not the schedule.')
    ] = None,
    overfit: Annotated[
        int | None, typer.Option(min=1, help='Learn the first N tuples by heart, as rendered.')
    ] = None,
    device: Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:N.')] = 'auto',
    workers: Annotated[int, typer.Option(min=1, help='Processes that find features.')] = 1,
    assignments: SetOption = None,
) -> None:
    """Train point inference. The same command goes on where the last one stopped."""
    from mv_matcher_ros.training.matcher.feature_cache import FeatureRecipe
    from mv_matcher_ros.training.points.settings import PointTraining
    from mv_matcher_ros.training.points.task import PointTask
    from mv_matcher_ros.training.processes import processes
    from mv_matcher_ros.training.settings import read_train_settings
    from mv_matcher_ros.training.trainer import Slice

    settings = read_train_settings(PointTraining, config, parse_assignments(assignments or ()))
    recipe = FeatureRecipe(settings.detector, seed=settings.feature_seed)
    found, true = features or out / 'features', depths or out / 'depths'
    with processes(device) as here:
        wanted = wanted_features(settings, tuples, overfit)
        if here.first:
            make_missing_features(recipe, wanted, found, workers, here, None)
            _make_depths(recipe, wanted, found, true, workers)
        here.wait()
        files = [feature_files(wanted[side], found / side, settings.growing) for side in SIDES]
        task = PointTask(
            settings, files[0], files[1], (true / SIDES[0], true / SIDES[1]), start, overfit
        )
        identity = _identity(settings, recipe, task, start, overfit)
        notes = _notes(config, recipe, task, start)
        train_slice(task, settings, out, here, identity, notes, Slice(steps, minutes))


def _make_depths(
    recipe: FeatureRecipe,
    wanted: Mapping[str, Sequence[FeatureJob]],
    features: Path,
    out: Path,
    workers: int,
) -> None:
    """True depths of all keypoints whose features are there."""
    from mv_matcher_ros.training.matcher.feature_cache import remember_recipe
    from mv_matcher_ros.training.points.depths import make_depths

    for side in reversed(SIDES):
        jobs = wanted[side]
        remember_recipe(recipe, out / side)
        begin = time.monotonic()
        with progress(f'depths, {side}', len(jobs)) as advance:
            for job in make_depths(recipe, jobs, features / side, out / side, workers):
                advance(job.shard.name)
        if time.monotonic() - begin > 1.0:
            say(f'{out / side}: depths of {len(jobs)} files')


def _identity(
    settings: PointTraining,
    recipe: FeatureRecipe,
    task: PointTask,
    start: Path | None,
    overfit: int | None,
) -> dict[str, Any]:
    """What the weights depend on besides the loop's own settings."""
    from mv_matcher_ros.models.weights import read_weights

    left_out = {'trainer', 'stages', 'growing', 'detector'}
    return {
        'settings': settings.model_dump(exclude=left_out),
        'features': recipe.content(),
        'tuples': None if settings.growing else {n: len(d) for n, d in task.data.items()},
        'from': None if start is None else read_weights(start, 'points').sha256,
        'overfit': overfit,
    }


def _notes(
    config: Path, recipe: FeatureRecipe, task: PointTask, start: Path | None
) -> dict[str, str]:
    from mv_matcher_ros.models.weights import load_points, tensors_hash

    detector = recipe.content()['detector']
    before = {}
    if start is not None:
        before = notes_of(start, tensors_hash(load_points(start).state_dict()))
    worlds: dict[str, int] = {}
    for data in task.data.values():
        worlds.update(data.features.worlds())
    return {
        **before,
        'trained': f'mv-matcher train points {config.name}',
        'data': data_note(worlds),
        'detector': detector['name'],
        'detector_sha256': detector['weights'] if detector['name'] == 'learned' else '',
    }
