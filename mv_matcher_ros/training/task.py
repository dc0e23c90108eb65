# SPDX-License-Identifier: Apache-2.0
"""What the trainer trains: it knows nothing of matchers or detectors, only this."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A network, what it learns from, and how good it has become.

    Attributes:
        network: to be trained, on the CPU; the trainer moves it to its device.
    """

    network: nn.Module

    def batch(self, step: int, rank: int, world: int) -> Any:
        """What step 0, 1, … gets in process `rank` of `world`; may run in a process of its own.

        It depends on nothing but these numbers and the seeds of the task: a run that was
        interrupted goes on with the same data. Ranks get different data.
        """
        ...

    def losses(self, network: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Named () losses of a batch; `loss` is minimised, the others are only logged.

        `network` is on the device where the batch has to go. It may be called in any way, several
        times, or by its methods; parameters without a part in the loss get no gradient.
        """
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Named figures of a network in evaluation mode; of `score` the largest is best."""
        ...

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        """Write a network in half precision, on the CPU, as a file of weights."""
        ...
