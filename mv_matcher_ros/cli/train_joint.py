# SPDX-License-Identifier: Apache-2.0
"""`train joint`: a trained detector and matcher learn together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mv_matcher_ros.cli.console import say
from mv_matcher_ros.cli.options import SetOption, parse_assignments
from mv_matcher_ros.cli.train_matcher import data_note, watched


def joint(
    config: Annotated[Path, typer.Argument(help='YAML file, e.g. config/train/joint_light.yaml.')],
    tuples: Annotated[Path, typer.Option(help='Folder of `train tuples`.')],
    detector: Annotated[Path, typer.Option(help='Weights of the detector to go on from.')],
    matcher: Annotated[Path, typer.Option(help='Weights of the matcher to go on from.')],
    out: Annotated[Path, typer.Option(help='Folder of checkpoints, both weights and the log.')],
    steps: Annotated[int | None, typer.Option(min=1, help='Stop after so many now.')] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help='Stop after so long now.')] = None,
    device: Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:N.')] = 'auto',
    assignments: SetOption = None,
) -> None:
    """Train detector and matcher together; the same command goes on where it stopped."""
    from mv_matcher_ros.models.weights import load_detector, load_matcher, read_weights
    from mv_matcher_ros.training.joint_task import DETECTOR_FILE, JointTask, JointTraining
    from mv_matcher_ros.training.processes import processes
    from mv_matcher_ros.training.settings import read_train_settings
    from mv_matcher_ros.training.trainer import BEST, Slice, Trainer

    settings = read_train_settings(JointTraining, config, parse_assignments(assignments or ()))
    task = JointTask(settings, tuples, load_detector(detector), load_matcher(matcher))
    worlds = task.worlds()
    identity = {
        'settings': settings.model_dump(exclude={'trainer', 'stages'}),
        'tuples': worlds,
        'from': [
            read_weights(detector, 'detector').sha256,
            read_weights(matcher, 'matcher').sha256,
        ],
    }
    notes = {'trained': f'mv-matcher train joint {config.name}', 'data': data_note(worlds)}
    with processes(device) as here, watched() as watcher:
        trainer = Trainer(
            task, settings.trainer, settings.stages, out, here, identity, notes, watcher
        )
        done = trainer.run(Slice(steps, minutes))
    if here.first:
        rest = 'all steps are made' if done else 'the same command goes on'
        say(f'step {trainer.step} of {trainer.steps}, {rest}')
        say(f'best weights (score {trainer.best:.4g}): {out / BEST}, {out / DETECTOR_FILE}')
