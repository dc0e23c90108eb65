# SPDX-License-Identifier: Apache-2.0
"""One process or many: what `torchrun` started, as a value."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mv_matcher_ros.errors import SettingsError

# One process validates while the others wait for it.
_PATIENCE = timedelta(hours=4)


@dataclass(frozen=True)
class Processes:
    """This process among all that train one network.

    Attributes:
        rank: its number; 0 writes and speaks.
        world: how many there are.
        device: where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def together(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over all processes."""
        return DistributedDataParallel(module) if self.world > 1 else module

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, set where it is set in any process."""
        if self.world == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.float32, device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in told.tolist())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def processes(device: str = 'auto') -> Iterator[Processes]:
    """The processes that `torchrun` started (WORLD_SIZE and RANK say so), else this one alone.

    Args:
        device: auto, cpu, cuda or cuda:N; auto takes a CUDA GPU if there is one. Of several
            processes on a machine each takes the GPU of its LOCAL_RANK.

    Raises:
        SettingsError: CUDA is asked for and not there.
    """
    world = int(os.environ.get('WORLD_SIZE', '1'))
    rank = int(os.environ.get('RANK', '0'))
    place = _device(device, int(os.environ.get('LOCAL_RANK', '0')) if world > 1 else None)
    if world == 1:
        yield Processes(0, 1, place)
        return
    if place.type == 'cuda':
        torch.cuda.set_device(place)
    backend = 'nccl' if place.type == 'cuda' else 'gloo'
    distributed.init_process_group(backend, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield Processes(rank, world, place)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f'device {name}: write auto, cpu, cuda or cuda:0') from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise SettingsError(f'device {name}: torch finds no CUDA GPU here; write cpu or auto')
    if device.type == 'cuda' and local_rank is not None:
        return torch.device('cuda', local_rank)
    return device
