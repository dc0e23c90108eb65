# SPDX-License-Identifier: Apache-2.0
"""Where a training stands, on disk: tensors and plain values only, loaded without executing them.

There are no states of random generators in it: each step seeds them by its number.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mv_matcher_ros.errors import ModelError, SettingsError

FORMAT = 1
LOCK = '.lock'


@dataclass(frozen=True)
class Checkpoint:
    """A training after some steps.

    Attributes:
        step: how many were made.
        network, average, optimiser: their states.
        best: the best score so far, −inf for none.
        failures: steps in a row, up to the last one, whose loss or gradient was no number.
        identity: JSON of what the result depends on (settings, data, start): see `compared`.
    """

    step: int
    network: dict[str, Any]
    average: dict[str, Any]
    optimiser: dict[str, Any]
    best: float
    failures: int
    identity: str


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Written aside and renamed: `path` is whole or as it was."""
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save({'format': FORMAT, **_shallow(checkpoint)}, aside)
        aside.replace(path)
    except OSError as error:
        raise ModelError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder; two trainings would overwrite each other's checkpoints.

    Raises:
        SettingsError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(f'{folder}: another training is writing here') from None
        yield


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, None if there is none.

    Raises:
        ModelError: not a checkpoint of ours, or damaged.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load raises whatever pickle and zip raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f'{path}: not a readable checkpoint: {reason}') from None
    if not isinstance(content, dict) or content.pop('format', None) != FORMAT:
        raise ModelError(f'{path}: not a checkpoint of this version; train from weights (--from)')
    return Checkpoint(**content)


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}


def identity_of(values: Mapping[str, Any]) -> str:
    """What a result depends on as JSON; equal for equal values."""
    return json.dumps(values, sort_keys=True, default=str)


def compared(before: str, now: str, path: Path) -> None:
    """Refuse to go on with other settings than those that the checkpoint was made with.

    Raises:
        SettingsError: names what differs, with both values.
    """
    old, new = _flat(json.loads(before)), _flat(json.loads(now))
    differs = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if differs:
        said = '; '.join(f'{n} was {old.get(n)}, is {new.get(n)}' for n in differs[:5])
        more = f' and {len(differs) - 5} more' if len(differs) > 5 else ''
        raise SettingsError(
            f'{path}: made with other settings: {said}{more}. Train with those, or into another '
            f'folder (--from takes the weights along)'
        )


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = ((str(i), item) for i, item in enumerate(value))  # type: ignore[assignment]
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in parts:
        found.update(_flat(item, f'{prefix}.{key}' if prefix else str(key)))
    return found


def seed_all(*numbers: int) -> None:
    """Seed every generator by these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
