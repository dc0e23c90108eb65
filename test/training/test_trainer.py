# SPDX-License-Identifier: Apache-2.0
"""The training loop: goes on exactly, says what is no number, keeps the best, shares its work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from toy_task import ToyTask, log_rows

from mv_matcher_ros.errors import ModelError, SettingsError
from mv_matcher_ros.models.weights import read_weights
from mv_matcher_ros.training.averaging import MovingAverage
from mv_matcher_ros.training.checkpoint import alone_in, read_checkpoint
from mv_matcher_ros.training.processes import Processes, processes
from mv_matcher_ros.training.settings import StageSettings, TrainerSettings
from mv_matcher_ros.training.trainer import Slice, Trainer

ALONE = Processes(0, 1, torch.device('cpu'))
STAGES = (
    StageSettings(name='one', steps=7, learning_rate=1e-2, warm_up=2),
    StageSettings(name='two', steps=5, learning_rate=1e-3, warm_up=1, clip=0.1),
)
SETTINGS = TrainerSettings(validate_every=4, checkpoint_every=100, log_every=3, average=0.5)
ROOT = Path(__file__).resolve().parents[2]


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []

    def progress(self, state: object) -> None:
        self.steps.append(state.step)  # type: ignore[attr-defined]

    def say(self, line: str) -> None:
        self.lines.append(line)


def trainer(out: Path, task: ToyTask | None = None, **others: object) -> Trainer:
    settings = others.pop('settings', SETTINGS)
    return Trainer(ToyTask() if task is None else task, settings, STAGES, out, ALONE, **others)  # type: ignore[arg-type]


def assert_equal(a: Trainer, b: Trainer) -> None:
    for one, other in (
        (a.network.state_dict(), b.network.state_dict()),
        (a.average.network.state_dict(), b.average.network.state_dict()),
    ):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name
    states = [t._optimiser.state_dict()['state'] for t in (a, b)]
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][index][name]), (index, name)
    assert a.best == b.best


def test_a_run_in_slices_equals_one_without_a_break_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / 'whole')
    assert whole.run()
    for steps in (3, 1, 4):
        assert not trainer(tmp_path / 'slices').run(Slice(steps=steps))
    last = trainer(tmp_path / 'slices')
    assert last.step == 8
    assert last.run()
    assert_equal(whole, last)
    assert trainer(tmp_path / 'slices').run()  # nothing is left


class WithOpenCV(ToyTask):
    def batch(self, step: int, rank: int, world: int) -> tuple[int, torch.Tensor]:
        cv2.GaussianBlur(np.zeros((1000, 1000), np.float32), (0, 0), 5.0)
        return super().batch(step, rank, world)


def test_batches_made_ahead_by_processes_are_the_same(tmp_path: Path) -> None:
    cv2.setNumThreads(2)
    whole = trainer(tmp_path / 'one', WithOpenCV())  # leaves threads of OpenCV behind
    assert whole.run()
    settings = SETTINGS.model_copy(update={'workers': 2})
    ahead = trainer(tmp_path / 'three', WithOpenCV(), settings=settings)
    assert not ahead.run(Slice(steps=5))
    assert ahead.run()
    assert_equal(whole, ahead)


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(SettingsError, match='another training is writing'):
        trainer(tmp_path).run()
    assert trainer(tmp_path).run()


def test_time_that_is_up_ends_a_slice_after_a_step(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    assert not first.run(Slice(minutes=0.0))
    assert first.step == 1
    assert read_checkpoint(tmp_path / 'last.ckpt').step == 1  # type: ignore[union-attr]


def test_the_checkpoint_holds_nothing_that_would_be_executed(tmp_path: Path) -> None:
    trainer(tmp_path).run(Slice(steps=2))
    content = torch.load(tmp_path / 'last.ckpt', weights_only=True)
    assert content['step'] == 2
    assert not list(tmp_path.glob('.*.part'))


def test_other_settings_than_the_checkpoints_are_named(tmp_path: Path) -> None:
    trainer(tmp_path).run(Slice(steps=2))
    with pytest.raises(SettingsError, match=r'trainer\.weight_decay was 0\.0001, is 0\.5'):
        trainer(tmp_path, settings=SETTINGS.model_copy(update={'weight_decay': 0.5}))
    with pytest.raises(SettingsError, match=r'data was None, is other'):
        trainer(tmp_path, identity={'data': 'other'})
    trainer(tmp_path, settings=SETTINGS.model_copy(update={'log_every': 1}))


def test_a_damaged_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / 'last.ckpt').write_bytes(b'nonsense')
    with pytest.raises(ModelError, match='not a readable checkpoint'):
        trainer(tmp_path)


def test_what_is_no_number_is_skipped_and_said(tmp_path: Path) -> None:
    heard = Heard()
    run = trainer(tmp_path, ToyTask(bad=(1, 2)), listener=heard)
    run.run(Slice(steps=1))
    before = {n: p.clone() for n, p in run.network.named_parameters()}
    run.run(Slice(steps=2))
    for name, parameter in run.network.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert run.step == 3
    assert len([line for line in heard.lines if 'skipped, not finite: loss nan' in line]) == 2
    assert run.run()
    assert all(bool(p.isfinite().all()) for p in run.network.parameters())
    assert [row['step'] for row in log_rows(tmp_path) if row['kind'] == 'event'] == [2, 3]


def test_nothing_but_what_is_no_number_ends_the_training(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={'most_failures': 3})
    run = trainer(tmp_path, ToyTask(bad=tuple(range(2, 12))), settings=settings)
    with pytest.raises(ModelError, match=r'3 steps in a row .* up to step 5'):
        run.run()


def test_the_best_weights_are_kept_in_half_precision(tmp_path: Path) -> None:
    task = ToyTask()
    trainer(tmp_path, task, notes={'data': 'noise'}).run()
    assert task.validations == 3  # steps 4, 8 and the last
    kept = read_weights(tmp_path / 'best.safetensors', 'toy')
    assert kept.tensors['line.weight'].dtype == torch.float16
    assert kept.notes['data'] == 'noise'
    rows = [row for row in log_rows(tmp_path) if row['kind'] == 'val']
    best = max(rows, key=lambda row: row['score'])
    assert int(kept.notes['steps']) == best['step']
    assert len(kept.notes['settings_sha256']) == 64


def test_the_log_has_losses_speed_and_rate(tmp_path: Path) -> None:
    heard = Heard()
    trainer(tmp_path, listener=heard).run()
    rows = [row for row in log_rows(tmp_path) if row['kind'] == 'train']
    assert [row['step'] for row in rows] == [3, 6, 9, 12] == heard.steps
    assert rows[0].keys() >= {'loss', 'square', 'gradient', 'learning_rate', 'steps_per_s'}


def test_learning_rate_rises_and_falls() -> None:
    stage = StageSettings(steps=110, warm_up=10, learning_rate=1.0, final_share=0.1)
    rates = [stage.learning_rate_at(step) for step in range(110)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_the_average_follows_parameters_and_buffers() -> None:
    network = ToyTask().network
    average = MovingAverage(network, 0.9)
    expected = {n: t.clone().double() for n, t in network.state_dict().items()}
    for step in range(1, 4):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor += 1
        average.update(network, step)
        share = 1 - min(0.9, step / (step + 9))
        for name, tensor in network.state_dict().items():
            smooth = tensor.is_floating_point()
            expected[name] += (share if smooth else 1.0) * (tensor.double() - expected[name])
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.network.norm.num_batches_tracked == 3  # type: ignore[union-attr]


def test_bf16_trains_with_parameters_in_single(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings=SETTINGS.model_copy(update={'precision': 'bf16'}))
    assert run.run()
    assert run.network.line.weight.dtype == torch.float32  # type: ignore[union-attr]


def test_cuda_that_is_not_there_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip('there is CUDA')
    with pytest.raises(SettingsError, match='finds no CUDA'), processes('cuda'):
        pass


WORKER = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from toy_task import ToyTask
from mv_matcher_ros.training.processes import processes
from mv_matcher_ros.training.trainer import Trainer
from test_trainer import SETTINGS, STAGES
task = ToyTask(bad=(3,))
with processes('cpu') as here:
    run = Trainer(task, SETTINGS, STAGES, Path({out!r}), here)
    assert run.run()
    torch.save([run.network.state_dict(), run.average.network.state_dict(), task.seen],
               Path({out!r}) / f'rank{{here.rank}}.pt')
"""


@pytest.mark.slow
def test_two_processes_share_gradients_and_not_their_data(tmp_path: Path) -> None:
    script = tmp_path / 'worker.py'
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2',
         str(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (a, average_a, seen_a), (b, average_b, seen_b) = (
        torch.load(tmp_path / f'rank{rank}.pt', weights_only=True) for rank in (0, 1)
    )
    for name in a:
        if not name.startswith('norm.'):
            assert torch.equal(a[name], b[name]), name
            assert torch.equal(average_a[name], average_b[name]), name
    assert len(seen_a) == len(seen_b) == 12
    assert not set(seen_a) & set(seen_b)
    assert read_checkpoint(tmp_path / 'last.ckpt').step == 12  # type: ignore[union-attr]
