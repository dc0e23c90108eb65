# SPDX-License-Identifier: Apache-2.0
"""`train matcher`: a matcher from rendered tuples, in slices that go on where they stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import Advance, progress, say
from mv_matcher_ros.cli.options import SetOption, parse_assignments
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.training.matcher.feature_cache import FeatureJob, FeatureRecipe
    from mv_matcher_ros.training.matcher.settings import MatcherTraining
    from mv_matcher_ros.training.points.settings import PointTraining
    from mv_matcher_ros.training.processes import Processes
    from mv_matcher_ros.training.task import Task
    from mv_matcher_ros.training.trainer import Slice
    from mv_matcher_ros.training.training_log import Progress

# Where no bar can be drawn, a line this often.
_QUIET_S = 60.0
SIDES = ('train', 'val')


def matcher(
    config: Annotated[Path, typer.Argument(help='YAML file, e.g. config/train/*.yaml.')],
    tuples: Annotated[Path, typer.Option(help='Folder of `train tuples`.')],
    out: Annotated[Path, typer.Option(help='Folder of checkpoints, weights and the log.')],
    features: Annotated[
        Path | None, typer.Option(help='Folder of features, made once; default: OUT/features.')
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
    feature_minutes: Annotated[
        float | None,
        typer.Option(min=0, help='Find features at most so long now; with `growing`.'),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Train a matcher. The same command goes on where the last one stopped.

    Under `torchrun --no-python mv-matcher train matcher …` processes share the work.
    """
    from mv_matcher_ros.training.matcher.feature_cache import FeatureRecipe
    from mv_matcher_ros.training.matcher.settings import MatcherTraining
    from mv_matcher_ros.training.matcher.task import MatcherTask, check_descriptors
    from mv_matcher_ros.training.processes import processes
    from mv_matcher_ros.training.settings import read_train_settings
    from mv_matcher_ros.training.trainer import Slice

    settings = read_train_settings(MatcherTraining, config, parse_assignments(assignments or ()))
    recipe = FeatureRecipe(settings.detector, seed=settings.feature_seed)
    check_descriptors(settings, recipe.make_detector().descriptor_size)
    with processes(device) as here:
        wanted = wanted_features(settings, tuples, overfit)
        folder = features or out / 'features'
        if here.first:
            make_missing_features(recipe, wanted, folder, workers, here, feature_minutes)
        here.wait()
        files = [feature_files(wanted[side], folder / side, settings.growing) for side in SIDES]
        task = MatcherTask(settings, files[0], files[1], start, overfit)
        identity = _identity(settings, recipe, task, start, overfit)
        notes = _notes(config, recipe, task, start)
        train_slice(task, settings, out, here, identity, notes, Slice(steps, minutes))


def train_slice(
    task: Task,
    settings: MatcherTraining | PointTraining,
    out: Path,
    here: Processes,
    identity: Mapping[str, Any],
    notes: Mapping[str, str],
    part: Slice,
) -> None:
    """Train, or go on with it, and say how far it came."""
    from mv_matcher_ros.training.trainer import Trainer

    with watched() as watcher:
        trainer = Trainer(
            task, settings.trainer, settings.stages, out, here, identity, notes, watcher
        )
        if here.first and trainer.step:
            say(f'{out}: going on after step {trainer.step} of {trainer.steps}')
        done = trainer.run(part)
    if here.first:
        rest = 'all steps are made' if done else 'the same command goes on'
        say(f'{out}: step {trainer.step} of {trainer.steps}, {rest}')


def wanted_features(
    settings: MatcherTraining | PointTraining, tuples: Path, overfit: int | None
) -> dict[str, list[FeatureJob]]:
    """Files of features of both sides; to learn by heart needs only a few, and no other side."""
    from mv_matcher_ros.training.matcher.feature_cache import PLAIN, feature_jobs, variants

    if overfit:
        return {'train': _enough(feature_jobs(tuples / 'train', [PLAIN]), overfit), 'val': []}
    names = variants(settings.augmentations)
    return {
        'train': feature_jobs(tuples / 'train', names),
        'val': feature_jobs(tuples / 'val', names[:1]),
    }


def make_missing_features(
    recipe: FeatureRecipe,
    wanted: Mapping[str, Sequence[FeatureJob]],
    out: Path,
    workers: int,
    here: Processes,
    minutes: float | None,
) -> None:
    """Make what is missing; after so many minutes only what nothing can do without."""
    from mv_matcher_ros.training.matcher.feature_cache import make_features, remember_recipe

    begin = last = time.monotonic()
    for side in reversed(SIDES):
        jobs = wanted[side]
        missing = [job for job in jobs if not job.path(out / side).is_file()]
        remember_recipe(recipe, out / side)
        with progress(f'features, {side}', len(missing)) as advance:
            made = make_features(recipe, missing, out / side, workers, here.device.type)
            for count, job in enumerate(made, start=1):
                advance(job.shard.name)
                now = time.monotonic()
                if now - last > _QUIET_S:
                    last = now
                    say(f'features: {count} of {len(missing)} files made')
                if side == 'train' and minutes is not None and now - begin > 60.0 * minutes:
                    break


def feature_files(jobs: Sequence[FeatureJob], folder: Path, growing: bool) -> list[list[Path]]:
    """For each shard its files of features.

    Raises:
        SourceError: not all are there, and the settings do not allow for that.
    """
    by_shard: dict[str, list[Path]] = {}
    for job in jobs:
        path = job.path(folder)
        if path.is_file():
            by_shard.setdefault(job.shard.stem, []).append(path)
        elif not growing:
            raise SourceError(f'{path}: not made yet; --feature-minutes needs growing: true')
    return [by_shard[name] for name in sorted(by_shard)]


def _enough(jobs: Sequence[FeatureJob], tuples: int) -> list[FeatureJob]:
    """The first shards that hold so many tuples."""
    from mv_matcher_ros.training.data.shards import Shard

    found: list[FeatureJob] = []
    for job in jobs:
        if tuples <= 0:
            break
        found.append(job)
        shard = Shard(job.shard)
        tuples -= len(shard)
        shard.close()
    return found


def _identity(
    settings: MatcherTraining,
    recipe: FeatureRecipe,
    task: Any,
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
        'from': None if start is None else read_weights(start, 'matcher').sha256,
        'overfit': overfit,
    }


def _notes(config: Path, recipe: FeatureRecipe, task: Any, start: Path | None) -> dict[str, str]:
    detector = recipe.content()['detector']
    return {
        **({} if start is None else start_notes(start)),
        'trained': f'mv-matcher train matcher {config.name}',
        'data': data_note(max(task.data.values(), key=len).worlds()),
        'detector': detector['name'],
        'detector_sha256': detector['weights'] if detector['name'] == 'learned' else '',
    }


def start_notes(start: Path) -> dict[str, str]:
    """What a training goes on from: hash, steps and data of the weights."""
    from mv_matcher_ros.models.weights import load_matcher, tensors_hash

    return notes_of(start, tensors_hash(load_matcher(start).state_dict()))


def notes_of(start: Path, sha256: str) -> dict[str, str]:
    """Hash, steps and data of weights that a training goes on from."""
    from mv_matcher_ros.models.weights import read_notes

    notes = read_notes(start)
    steps = sum(int(notes.get(name, 0)) for name in ('steps', 'from_steps'))
    data = '; '.join(notes[name] for name in ('from_data', 'data') if name in notes)
    return {
        'from': sha256,
        'from_steps': str(steps),
        'from_data': data,
    }


def data_note(worlds: Mapping[str, int]) -> str:
    """How many tuples of which places, for a file of weights."""
    return 'tuples: ' + ', '.join(f'{name} {count}' for name, count in sorted(worlds.items()))


@contextmanager
def watched() -> Iterator[_Watcher]:
    """A bar on a terminal, else a line now and then."""
    with progress('training', None) as advance:
        yield _Watcher(advance)


class _Watcher:
    """Tells the person at the terminal how a training goes."""

    def __init__(self, advance: Advance) -> None:
        self._advance, self._last = advance, 0.0

    def progress(self, state: Progress) -> None:
        words = _words(state.losses)
        line = (
            f'{state.stage}: step {state.step} of {state.steps}, {words}, '
            f'{state.steps_per_s:.2f} steps/s, {_span(state.left_s)} left'
        )
        self._advance(line)
        if time.monotonic() - self._last > _QUIET_S:
            self._last = time.monotonic()
            say(line)

    def say(self, line: str) -> None:
        say(line)


def _words(losses: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:.3g}' for name, value in losses.items())


def _span(seconds: float) -> str:
    if seconds == float('inf'):
        return '?'
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02d} min'
