# SPDX-License-Identifier: Apache-2.0
"""The least time a network can take here: counted operations and bytes over measured peaks.

For each matrix product, convolution and attention the larger of two times counts: its operations
at the best rate of a large product, and its inputs and outputs at the best rate of a large copy.
Everything between them is taken as free, as if it were fused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# Edge of the product and bytes of the copy with which the peaks are measured.
EDGE = {'cpu': 1024, 'cuda': 8192}
COPIED = {'cpu': 1 << 28, 'cuda': 1 << 30}
TRIALS = 5


def _attention(query: Tensor, keys: Tensor, values: Tensor, *_: object, **__: object) -> int:
    operations: int = sdpa_flop_count(query.shape, keys.shape, values.shape)
    return operations


# torch counts the attention of GPUs only.
OPERATIONS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


@dataclass(frozen=True)
class Peaks:
    """What this machine does at best.

    Attributes:
        operations: a second, by type of number.
        bytes: a second, read and written together.
    """

    operations: dict[torch.dtype, float]
    bytes: float

    @classmethod
    def measured(cls, device: torch.device, dtypes: set[torch.dtype]) -> Peaks:
        """By large products and a large copy."""
        edge, size = EDGE[device.type], COPIED[device.type]
        operations = {}
        for dtype in dtypes:
            a = torch.randn(edge, edge, device=device).to(dtype)
            operations[dtype] = 2.0 * edge**3 / _best(partial(torch.matmul, a, a), device)
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(operations, 2.0 * size / _best(lambda: target.copy_(source), device))


@dataclass
class Counted(TorchDispatchMode):
    """Operations and bytes of every product, convolution and attention while it is active.

    Attributes:
        parts: (type of number, operations, bytes) of each.
    """

    parts: list[tuple[torch.dtype, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        count = OPERATIONS.get(func._overloadpacket)
        if count is None:  # inference mode leaves linear layers and the like in one piece
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if count is not None:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            moved = sum(map(_bytes, tensors))
            operations = count(*args, **kwargs, out_val=out)
            self.parts.append((tensors[0].dtype, float(operations), float(moved)))
        return out


def _bytes(x: Tensor) -> int:
    """Of the memory of a tensor: an expanded mask is read from the few bytes that it has."""
    sizes = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or not n)
    return math.prod(sizes) * x.element_size()


def floor_ms(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Floor of one call in milliseconds, with what was counted.

    The call has to go through the network's own operations: no graph, no engine.
    """
    counted = Counted()
    with torch.inference_mode(), counted:
        call()
    peaks = Peaks.measured(device, {dtype for dtype, _, _ in counted.parts})
    seconds = sum(
        max(operations / peaks.operations[dtype], moved / peaks.bytes)
        for dtype, operations, moved in counted.parts
    )
    return {
        'floor_ms': 1e3 * seconds,
        'operations': sum(operations for _, operations, _ in counted.parts),
        'bytes': sum(moved for _, _, moved in counted.parts),
    }


def _best(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for number in range(1 + TRIALS):
        begin = time.perf_counter()
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        if number:
            times.append(time.perf_counter() - begin)
    return min(times)
