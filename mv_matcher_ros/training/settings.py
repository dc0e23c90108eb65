# SPDX-License-Identifier: Apache-2.0
"""Settings of trainings: every default, range and description. Files under `config/train/` hold
what a shipped model was trained with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from mv_matcher_ros.config import Section
from mv_matcher_ros.errors import SettingsError


class StageSettings(Section):
    """A part of a training: so many steps with one schedule of the learning rate."""

    name: str = Field('all', description='What the log calls it.')
    steps: int = Field(1000, ge=1, description='Steps of the optimiser.')
    learning_rate: float = Field(8e-4, gt=0.0, description='Its peak, after the warm-up.')
    final_share: float = Field(
        0.02, ge=0.0, le=1.0, description='Share of the peak at the end of the cosine.'
    )
    warm_up: int = Field(150, ge=0, description='Steps in which the learning rate grows.')
    clip: float = Field(1.0, gt=0.0, description='Largest norm of the gradient.')

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, … of this stage."""
        rising = min(1.0, (step + 1) / (self.warm_up + 1))
        falling = max(0.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, falling)))
        return self.learning_rate * rising * (self.final_share + (1 - self.final_share) * cosine)


class TrainerSettings(Section):
    """What every training has, whatever it trains."""

    seed: int = Field(0, ge=0, description='Of weights, data and everything random.')
    precision: Literal['fp32', 'bf16'] = Field(
        'fp32', description='bf16: autocast; parameters and losses stay single.'
    )
    weight_decay: float = Field(1e-4, ge=0.0, description='Of AdamW.')
    betas: tuple[float, float] = Field((0.9, 0.98), description='Of AdamW.')
    average: float = Field(
        0.998, ge=0.0, lt=1.0, description='Decay a step of the average that is validated.'
    )
    validate_every: int = Field(2000, ge=1, description='Steps between validations.')
    checkpoint_every: int = Field(500, ge=1, description='Steps between checkpoints.')
    log_every: int = Field(50, ge=1, description='Steps between lines of the log.')
    workers: int = Field(
        0, ge=0, description='Processes that make batches ahead; 0: the one that trains.'
    )
    most_failures: int = Field(
        20, ge=1, description='Steps in a row without a finite loss after which training ends.'
    )


# These may change while a training is under way: its result does not depend on them.
FREE = ('validate_every', 'checkpoint_every', 'log_every', 'workers', 'most_failures')

SettingsType = TypeVar('SettingsType', bound=Section)


def stage_at(stages: Sequence[StageSettings], step: int) -> tuple[int, int]:
    """Number of the stage of a step, and the step's number in it."""
    begin = 0
    for number, stage in enumerate(stages):
        if step < begin + stage.steps:
            return number, step - begin
        begin += stage.steps
    return len(stages) - 1, step - begin + stages[-1].steps


def read_train_settings(
    kind: type[SettingsType], path: Path | None, overrides: Mapping[str, Any] | None = None
) -> SettingsType:
    """Settings of a training from a YAML file or the defaults, with dotted `overrides` over it.

    `stages.0.steps` names the steps of the first stage.

    Raises:
        SettingsError: no such file, not YAML, an unknown key, or a value out of range.
    """
    content = {} if path is None else _content(path)
    for name, value in (overrides or {}).items():
        _put(content, name.split('.'), value, name)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        name = '.'.join(str(part) for part in fault['loc'])
        where = '' if path is None else f'{path}: '
        raise SettingsError(f'{where}{name} = {fault.get("input")!r}: {fault["msg"]}') from None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise SettingsError(f'{path}: no such settings file') from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f'{path}: not a readable YAML file: {error}') from None
    if not isinstance(content, dict):
        raise SettingsError(f'{path}: a settings file holds "name: value" lines')
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))  # aliases become values
    return plain


def _put(tree: Any, names: Sequence[str], value: Any, whole: str) -> None:
    """Set the value of a dotted name in lists and dictionaries."""
    name, *rest = names
    if isinstance(tree, list):
        if not (name.isdigit() and int(name) < len(tree)):
            raise SettingsError(f'{whole}: there are {len(tree)} entries, the first is 0')
        place: Any = int(name)
    else:
        place = name
        if rest and not isinstance(tree.get(name), dict | list):
            tree[name] = {}
    if rest:
        _put(tree[place], rest, value, whole)
    else:
        tree[place] = value
