# SPDX-License-Identifier: Apache-2.0
"""Operations and bytes that are counted are those of the definition."""

from __future__ import annotations

import torch
from torch import nn

from mv_matcher_ros.cli.bench_floor import Counted, Peaks, floor_ms

CPU = torch.device('cpu')


def test_a_linear_layer_and_an_attention() -> None:
    layer = nn.Linear(6, 4)
    query, keys = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    counted = Counted()
    with torch.inference_mode(), counted:
        layer(torch.randn(3, 6)).relu()
        nn.functional.scaled_dot_product_attention(query, keys, keys)
    (_, product, moved), (_, attention, _) = counted.parts
    assert product == 2 * 3 * 6 * 4
    assert moved == 4 * (3 * 6 + 6 * 4 + 4 + 3 * 4)
    assert attention == 2 * 2 * 2 * 5 * 7 * 8  # scores and weighted values, two heads


def test_an_expanded_operand_counts_once() -> None:
    counted = Counted()
    with torch.inference_mode(), counted:
        torch.bmm(torch.randn(1, 3, 5).expand(4, 3, 5), torch.randn(4, 5, 2))
    ((_, _, moved),) = counted.parts
    assert moved == 4 * (3 * 5 + 4 * 5 * 2 + 4 * 3 * 2)


def test_a_large_product_runs_near_its_floor() -> None:
    a = torch.randn(512, 512)
    floor = floor_ms(lambda: a @ a, CPU)
    assert floor['operations'] == 2 * 512**3
    assert floor['floor_ms'] > 0.0
    peaks = Peaks.measured(CPU, {torch.float32})
    assert peaks.operations[torch.float32] > 1e9
    assert peaks.bytes > 1e8
