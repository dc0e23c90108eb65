# SPDX-License-Identifier: Apache-2.0
"""The moving average of a network: what is validated and shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """Parameters and buffers of a network, averaged over the steps.

    Args:
        network: its state at the beginning.
        decay: share of the old average that each step keeps, in the long run. Early on less is
            kept, so that the first weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network after step `step`, counted from 1."""
        share = 1.0 - min(self._decay, step / (step + 9.0))
        old, new = self.network.state_dict(), network.state_dict()
        smooth = [name for name in old if old[name].is_floating_point()]
        torch._foreach_lerp_([old[n] for n in smooth], [new[n] for n in smooth], share)
        for name in old.keys() - set(smooth):  # counters have no average
            old[name].copy_(new[name])
