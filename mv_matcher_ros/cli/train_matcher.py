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

if TYPE_CHECKING:
    from mv_matcher_ros.training.feature_cache import FeatureJob, FeatureRecipe
    from mv_matcher_ros.training.matcher_settings import MatcherTraining
    from mv_matcher_ros.training.processes import Processes
    from mv_matcher_ros.training.training_log import Progress

# Where no bar can be drawn, a line this often.
_QUIET_S = 60.0


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
    assignments: SetOption = None,
) -> None:
    """Train a matcher. The same command goes on where the last one stopped.

    Under `torchrun --no-python mv-matcher train matcher …` processes share the work.
    """
    from mv_matcher_ros.training.feature_cache import FeatureRecipe
    from mv_matcher_ros.training.matcher_settings import MatcherTraining
    from mv_matcher_ros.training.matcher_task import MatcherTask, check_descriptors
    from mv_matcher_ros.training.processes import processes
    from mv_matcher_ros.training.settings import read_train_settings
    from mv_matcher_ros.training.trainer import Slice, Trainer

    settings = read_train_settings(MatcherTraining, config, parse_assignments(assignments or ()))
    recipe = FeatureRecipe(settings.detector, seed=settings.trainer.seed)
    check_descriptors(settings, recipe.make_detector().descriptor_size)
    with processes(device) as here:
        files = _features(recipe, settings, tuples, features or out / 'features', workers, here,
                          overfit)  # fmt: skip
        task = MatcherTask(settings, *files, start, overfit)
        with _watched() as watcher:
            trainer = Trainer(
                task,
                settings.trainer,
                settings.stages,
                out,
                here,
                _identity(settings, recipe, task, start, overfit),
                _notes(config, task),
                watcher,
            )
            if here.first and trainer.step:
                say(f'{out}: going on after step {trainer.step} of {trainer.steps}')
            done = trainer.run(Slice(steps, minutes))
    if here.first:
        rest = 'all steps are made' if done else 'the same command goes on'
        say(f'{out}: step {trainer.step} of {trainer.steps}, {rest}')


def _features(
    recipe: FeatureRecipe,
    settings: MatcherTraining,
    tuples: Path,
    out: Path,
    workers: int,
    here: Processes,
    overfit: int | None,
) -> tuple[list[list[Path]], list[list[Path]]]:
    """For each shard of both sides its files of features, made where they are missing."""
    from mv_matcher_ros.training.feature_cache import (
        PLAIN,
        feature_jobs,
        make_features,
        variants,
    )

    names = [PLAIN] if overfit else variants(settings.augmentations)
    todo = {'train': feature_jobs(tuples / 'train', names)}
    if overfit:
        todo['train'] = _enough(todo['train'], overfit)
    else:
        todo['val'] = feature_jobs(tuples / 'val', names[:1])
    if here.first:
        for side, jobs in todo.items():
            missing = [job for job in jobs if not job.path(out / side).is_file()]
            with progress(f'features, {side}', len(missing)) as advance:
                _make(
                    make_features(recipe, missing, out / side, workers, here.device.type), advance
                )
    here.wait()
    found = []
    for side in ('train', 'val'):
        by_shard: dict[str, list[Path]] = {}
        for job in todo.get(side, ()):
            by_shard.setdefault(job.shard.stem, []).append(job.path(out / side))
        found.append([by_shard[name] for name in sorted(by_shard)])
    return found[0], found[1]


def _make(jobs: Iterator[FeatureJob], advance: Advance) -> None:
    last = time.monotonic()
    for count, job in enumerate(jobs, start=1):
        advance(job.shard.name)
        if time.monotonic() - last > _QUIET_S:
            last = time.monotonic()
            say(f'features: {count} files made, the last of {job.shard.name}')


def _enough(jobs: Sequence[FeatureJob], tuples: int) -> list[FeatureJob]:
    """The first shards that hold so many tuples."""
    from mv_matcher_ros.training.shards import Shard

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


def _notes(config: Path, task: Any) -> dict[str, str]:
    most = max(task.data.values(), key=len)
    worlds = ', '.join(f'{name} {count}' for name, count in sorted(most.worlds().items()))
    return {'trained': f'mv-matcher train matcher {config.name}', 'data': f'tuples: {worlds}'}


@contextmanager
def _watched() -> Iterator[_Watcher]:
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
