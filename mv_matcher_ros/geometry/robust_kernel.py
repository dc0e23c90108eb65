# SPDX-License-Identifier: Apache-2.0
"""Robust kernels: how much a large residual counts.

A kernel maps a squared residual s to ρ(s); reweighted least squares gives it the weight ρ'(s)
(Triggs et al., Bundle Adjustment – A Modern Synthesis, 2000, §4.3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mv_matcher_ros.errors import GeometryError

Kernel = Literal['none', 'huber', 'cauchy']


def kernel_value_and_weight(
    squared: Tensor, kernel: Kernel, width: float
) -> tuple[Tensor, Tensor]:
    """ρ(s) and its derivative ρ'(s) of squared whitened residuals s of any shape.

    Huber and Cauchy behave as s near 0; `width` is where they turn, in σ.

    Raises:
        GeometryError: no such kernel.
    """
    if kernel == 'none':
        return squared, torch.ones_like(squared)
    width2 = width * width
    if kernel == 'huber':
        inside = squared <= width2
        root = torch.where(inside, torch.full_like(squared, width2), squared).sqrt()
        value = torch.where(inside, squared, 2.0 * width * root - width2)
        return value, torch.where(inside, torch.ones_like(squared), width / root)
    if kernel == 'cauchy':
        scaled = squared / width2
        return width2 * torch.log1p(scaled), 1.0 / (1.0 + scaled)
    raise GeometryError(f'kernel "{kernel}" is unknown; known: none, huber, cauchy')
