# SPDX-License-Identifier: Apache-2.0
"""The training loop: one process on a CPU or many under `torchrun`, in slices that go on exactly
where the last one stopped.
"""

from __future__ import annotations

import copy
import hashlib
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.training.averaging import MovingAverage
from mv_matcher_ros.training.checkpoint import (
    Checkpoint,
    alone_in,
    compared,
    identity_of,
    read_checkpoint,
    seed_all,
    write_checkpoint,
)
from mv_matcher_ros.training.processes import Processes
from mv_matcher_ros.training.settings import FREE, StageSettings, TrainerSettings, stage_at
from mv_matcher_ros.training.task import Task
from mv_matcher_ros.training.training_log import Listener, Means, Progress, Silence, TrainingLog
from mv_matcher_ros.training.workers import before_forking

CHECKPOINT, BEST = 'last.ckpt', 'best.safetensors'


@dataclass(frozen=True)
class Slice:
    """How much is to be done now; None: all that is left."""

    steps: int | None = None
    minutes: float | None = None


class Trainer:
    """Trains a task's network; everything it writes is in one folder.

    Args:
        task: what is trained.
        settings: of the loop.
        stages: the schedule.
        out: folder of `last.ckpt`, `best.safetensors` and the log. With a checkpoint in it the
            training goes on from there.
        here: this process among those that train.
        identity: what the result depends on besides settings and stages (data, start); a
            checkpoint with another identity is refused.
        notes: that go into files of weights.

    Raises:
        SettingsError: the folder holds a training with other settings; names them.
        ModelError: its checkpoint cannot be read.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainerSettings,
        stages: Sequence[StageSettings],
        out: Path,
        here: Processes,
        identity: Mapping[str, Any] | None = None,
        notes: Mapping[str, str] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._task, self._settings, self._stages = task, settings, tuple(stages)
        self._out, self._here = out, here
        self._listener = listener if listener is not None and here.first else Silence()
        self._notes = dict(notes or {})
        self._identity = identity_of({
            'trainer': settings.model_dump(exclude=set(FREE)),
            'stages': [stage.model_dump() for stage in stages],
            'processes': here.world,
            **(identity or {}),
        })  # fmt: skip
        self.steps = sum(stage.steps for stage in stages)
        self.network = task.network.to(here.device).train()
        self.average = MovingAverage(self.network, settings.average)
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.step, self.best, self._failures = 0, -math.inf, 0
        self._take_up(read_checkpoint(out / CHECKPOINT))
        self._losses = here.together(_Losses(task, self.network, here, settings.precision))
        self._means = Means()

    def _take_up(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        compared(checkpoint.identity, self._identity, self._out / CHECKPOINT)
        self.network.load_state_dict(checkpoint.network)
        self.average.network.load_state_dict(checkpoint.average)
        self._optimiser.load_state_dict(checkpoint.optimiser)
        self.step, self.best = checkpoint.step, checkpoint.best
        self._failures = checkpoint.failures

    def run(self, part: Slice | None = None) -> bool:
        """Train for a slice; True once all steps are made. Ends at a checkpoint in any case.

        Raises:
            ModelError: too many losses or gradients in a row were no numbers.
            SettingsError: another process trains into the same folder.
        """
        part = Slice() if part is None else part
        last = self.steps if part.steps is None else min(self.steps, self.step + part.steps)
        begin, first = time.monotonic(), self.step
        end = math.inf if part.minutes is None else begin + 60.0 * part.minutes
        log = TrainingLog(self._out) if self._here.first else None
        try:
            with ExitStack() as held:
                if self._here.first:
                    held.enter_context(alone_in(self._out))
                signals = held.enter_context(_stop_signals())
                batches = iter(self._batches(last))
                while self.step < last:
                    late = bool(signals) or time.monotonic() > end
                    stop = self._advance(next(batches), late, log)
                    ends = stop or self.step == last
                    if self.step % self._settings.log_every == 0 or ends:
                        self._report(log, (self.step - first) / (time.monotonic() - begin))
                    self._keep(ends, log)
                    if stop:
                        break
        finally:
            if log is not None:
                log.close()
        return self.step == self.steps

    def _batches(self, last: int) -> DataLoader[Any]:
        """Of the steps that are left, in order; made ahead by processes, if there are any."""
        workers = self._settings.workers
        if workers:
            before_forking()
        return DataLoader(
            _Steps(self._task, self._here),
            batch_size=None,
            sampler=range(self.step, last),
            num_workers=workers,
            # What a task holds open is not to be sent to a worker but to be there.
            multiprocessing_context='fork' if workers else None,
        )

    def _advance(self, batch: Any, late: bool, log: TrainingLog | None) -> bool:
        """One step; True if some process wants to stop after it."""
        number, inside = stage_at(self._stages, self.step)
        stage = self._stages[number]
        for group in self._optimiser.param_groups:
            group['lr'] = stage.learning_rate_at(inside)
        seed_all(self._settings.seed, self.step, self._here.rank)
        self._optimiser.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = self._losses(batch)
        losses['loss'].backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), stage.clip)
        finite = bool(losses['loss'].isfinite() & norm.isfinite())
        failed, stop = self._here.any(not finite, late)
        self.step += 1
        if failed:
            self._failed(losses, norm, log)
        else:
            self._failures = 0
            self._optimiser.step()
            self.average.update(self.network, self.step)
        self._means.add({n: float(v.detach()) for n, v in losses.items()})
        self._means.add({'gradient': float(norm)})
        return stop

    def _failed(self, losses: Mapping[str, Tensor], norm: Tensor, log: TrainingLog | None) -> None:
        self._failures += 1
        values = ', '.join(f'{n} {float(v.detach()):.4g}' for n, v in losses.items())
        words = f'step {self.step}: skipped, not finite: {values}, gradient {float(norm):.4g}'
        self._listener.say(words)
        if log is not None:
            log.write('event', self.step, {}, words)
        if self._failures >= self._settings.most_failures:
            raise ModelError(
                f'{self._failures} steps in a row had no finite loss or gradient, up to step '
                f'{self.step} ({values}); lower the learning rate, or look at the data. '
                f'{self._out / CHECKPOINT} is from before'
            )

    def _report(self, log: TrainingLog | None, speed: float) -> None:
        stage = self._stages[stage_at(self._stages, self.step - 1)[0]]
        means = self._means.take()
        if log is not None:
            rate = float(self._optimiser.param_groups[0]['lr'])
            log.write('train', self.step, {**means, 'learning_rate': rate, 'steps_per_s': speed})
        left = (self.steps - self.step) / speed if speed > 0 else math.inf
        self._listener.progress(Progress(self.step, self.steps, stage.name, means, speed, left))

    def _keep(self, ends: bool, log: TrainingLog | None) -> None:
        """Validate and write what is due."""
        if self.step % self._settings.validate_every == 0 or self.step == self.steps:
            if log is not None:
                self._validate(log)
            self._here.wait()
        if log is not None and (ends or self.step % self._settings.checkpoint_every == 0):
            write_checkpoint(
                self._out / CHECKPOINT,
                Checkpoint(
                    self.step,
                    self.network.state_dict(),
                    self.average.network.state_dict(),
                    self._optimiser.state_dict(),
                    self.best,
                    self._failures,
                    self._identity,
                ),
            )

    def _validate(self, log: TrainingLog) -> None:
        begin = time.monotonic()
        with torch.inference_mode():
            figures = self._task.validate(self.average.network)
        log.write('val', self.step, {**figures, 'seconds': time.monotonic() - begin})
        said = ', '.join(f'{name} {value:.4g}' for name, value in figures.items())
        better = figures['score'] > self.best
        self._listener.say(f'step {self.step}: {said}{" (best so far)" if better else ""}')
        if not better:
            return
        self.best = figures['score']
        notes = {
            **self._notes,
            'steps': str(self.step),
            'settings_sha256': hashlib.sha256(self._identity.encode()).hexdigest(),
            **{f'validation_{name}': f'{value:.6g}' for name, value in figures.items()},
        }
        half = copy.deepcopy(self.average.network).cpu().half()
        self._task.save(half, self._out / BEST, notes)


class _Steps(Dataset[Any]):
    """Batches of a task by the number of the step."""

    def __init__(self, task: Task, here: Processes) -> None:
        self._task, self._rank, self._world = task, here.rank, here.world

    def __getitem__(self, step: int) -> Any:
        return self._task.batch(step, self._rank, self._world)


class _Losses(nn.Module):
    """A task's losses as one module, so that processes share gradients however it is called."""

    def __init__(self, task: Task, network: nn.Module, here: Processes, precision: str) -> None:
        super().__init__()
        self.network = network
        self._task, self._device, self._half = task, here.device.type, precision == 'bf16'

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Every parameter takes part, with nothing where a loss does not use it."""
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            losses = self._task.losses(self.network, batch)
        nothing = sum(p.flatten()[:1].sum() * 0.0 for p in self.network.parameters())
        return {**losses, 'loss': losses['loss'].float() + nothing}


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gets a signal that asks this process to end; the second one ends it at once."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: nobody can interrupt it
        before = {}
    try:
        yield caught
    finally:
        for caught_number, handler in before.items():
            signal.signal(caught_number, handler)
