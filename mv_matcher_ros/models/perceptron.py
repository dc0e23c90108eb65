# SPDX-License-Identifier: Apache-2.0
"""The perceptron that the parts of the matcher are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def perceptron(sizes: Sequence[int], normalised: bool, ends_active: bool = False) -> nn.Sequential:
    """Linear layers with (layer norm and) ReLU between them, and after the last if asked."""
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(sizes), start=1):
        parts.append(nn.Linear(before, after))
        if number < len(sizes) - 1 or ends_active:
            if normalised:
                parts.append(nn.LayerNorm(after))
            parts.append(nn.ReLU())
    return nn.Sequential(*parts)
