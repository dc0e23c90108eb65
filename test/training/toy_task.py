# SPDX-License-Identifier: Apache-2.0
"""A task so small that a training of it takes no time: noise, a buffer, dropout, a line to fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mv_matcher_ros.models.weights import save_weights
from mv_matcher_ros.training.settings import TrainerSettings


class ToyNetwork(nn.Module):
    """Linear layer behind a batch norm and dropout, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.line = nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.drop(self.norm(x)))


class ToyTask:
    """Steps named in `bad` have a loss that is no number. `seen` has the first row of batches."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = ToyNetwork()
        self._bad = bad
        self.seen: list[float] = []
        self.validations = 0

    def batch(self, step: int, rank: int, world: int) -> tuple[int, Tensor]:
        generator = torch.Generator().manual_seed(step * world + rank)
        return step, torch.randn(8, 3, generator=generator)

    def losses(self, network: nn.Module, batch: tuple[int, Tensor]) -> dict[str, Tensor]:
        step, x = batch
        self.seen.append(float(x[0, 0]))
        noise = 0.1 * torch.randn(len(x), 1)  # of the global generator
        loss = (network(x) - x.sum(1, keepdim=True) - noise).square().mean()
        if step in self._bad:
            loss = loss * torch.nan
        return {'loss': loss, 'square': loss.detach()}

    def validate(self, network: nn.Module) -> dict[str, float]:
        assert not network.training
        self.validations += 1
        x = torch.randn(32, 3)
        return {'score': -float((network(x) - x.sum(1, keepdim=True)).square().mean())}

    def save(self, network: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
        tensors: dict[str, Any] = dict(network.state_dict())
        save_weights(path, 'toy', TrainerSettings(), tensors, notes)


def log_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
