# SPDX-License-Identifier: Apache-2.0
"""Robust kernels: how much a large residual counts.

A kernel maps a squared residual s to ρ(s); reweighted least squares gives it the weight ρ'(s)
(Triggs et al., Bundle Adjustment – A Modern Synthesis, 2000, §4.3).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mv_matcher_ros.errors import GeometryError

Kernel = Literal['none', 'huber', 'cauchy', 'geman_mcclure']


def kernel_value_and_weight(
    squared: Tensor, kernel: Kernel, width: float
) -> tuple[Tensor, Tensor]:
    """ρ(s) and its derivative ρ'(s) of squared whitened residuals s of any shape.

    All behave as s near 0; `width` is where they turn, in σ. Geman-McClure lets go of outliers:
    its value is bounded, and it wants a start near the solution.

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
    if kernel == 'geman_mcclure':
        kept = width2 / (width2 + squared)
        return squared * kept, kept.square()
    raise GeometryError(f'kernel "{kernel}" is unknown; known: {", ".join(get_args(Kernel))}')
