# SPDX-License-Identifier: Apache-2.0
"""Scenes with a known answer, shared by the tests of geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from mv_matcher_ros.geometry import se3


@dataclass(frozen=True)
class TwoViews:
    """Matched normalised points of two views: x_b is seen at b_from_a times the point in a."""

    b_from_a: torch.Tensor
    xy_a: torch.Tensor
    xy_b: torch.Tensor
    points_a: torch.Tensor


@pytest.fixture
def two_views() -> Callable[..., TwoViews]:
    """Builder of scenes: `general`, `plane` (depth linear in x and y) or `rotation`."""

    def build(
        kind: str = 'general',
        count: int = 100,
        noise: float = 0.0,
        baseline: float = 1.0,
        seed: int = 0,
    ) -> TwoViews:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        spread = torch.tensor([2.0, 1.5, 1.5], dtype=torch.float64)
        points = normal(count, 3) * spread
        points[:, 2] = (points[:, 2] + 6.0).clamp_min(2.5)
        if kind == 'plane':
            points[:, 2] = 6.0 + 0.3 * points[:, 0] + 0.1 * points[:, 1]
        direction = torch.nn.functional.normalize(normal(3), dim=0)
        length = 0.0 if kind == 'rotation' else baseline
        pose = se3.compose_matrix(se3.so3_exp(0.1 * normal(3)), direction * length)
        seen = se3.transform(pose, points)
        xy_a = points[:, :2] / points[:, 2:] + noise * normal(count, 2)
        xy_b = seen[:, :2] / seen[:, 2:] + noise * normal(count, 2)
        return TwoViews(pose, xy_a, xy_b, points)

    return build
