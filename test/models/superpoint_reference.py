# SPDX-License-Identifier: Apache-2.0
"""SuperPoint one step at a time in float64, over weights in public naming.

Written from the paper (DeTone et al., CVPR workshops 2018) and from what is known of how the
released network reads its descriptors. Slow on purpose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

State = dict[str, Tensor]
SHAPES = {
    'conv1a': (64, 1, 3), 'conv1b': (64, 64, 3), 'conv2a': (64, 64, 3), 'conv2b': (64, 64, 3),
    'conv3a': (128, 64, 3), 'conv3b': (128, 128, 3), 'conv4a': (128, 128, 3),
    'conv4b': (128, 128, 3), 'convPa': (256, 128, 3), 'convPb': (65, 256, 1),
    'convDa': (256, 128, 3), 'convDb': (256, 256, 1),
}  # fmt: skip


def random_state(seed: int = 0) -> State:
    """A checkpoint with random weights in the public naming."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, (after, before, size) in SHAPES.items():
        weight = torch.randn(after, before, size, size, generator=generator)
        state[f'{name}.weight'] = weight * math.sqrt(2.0 / (before * size * size))
        state[f'{name}.bias'] = 0.05 * torch.randn(after, generator=generator)
    return state


def convolution(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias = state[f'{name}.weight'].double(), state[f'{name}.bias'].double()
    return conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def dense(state: State, image: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (H, W) and unit descriptors (256, H/8, W/8) of an image (H, W) of whole cells."""
    x = image.double()[None, None]
    for level in range(1, 5):
        for part in 'ab':
            x = convolution(state, f'conv{level}{part}', x).clamp_min(0)
        if level < 4:
            x = max_pool2d(x, 2)
    logits = convolution(state, 'convPb', convolution(state, 'convPa', x).clamp_min(0))[0]
    probability = torch.softmax(logits, dim=0)
    height, width = x.shape[-2:]
    scores = torch.zeros(8 * height, 8 * width, dtype=torch.float64)
    for channel in range(64):
        scores[channel // 8 :: 8, channel % 8 :: 8] = probability[channel]
    descriptors = convolution(state, 'convDb', convolution(state, 'convDa', x).clamp_min(0))[0]
    return scores, descriptors / descriptors.norm(dim=0)


def keypoints(scores: Tensor, radius: int, threshold: float, border: int) -> list[tuple[int, int]]:
    """(x, y), the strongest first, after non-maximum suppression in three rounds."""

    def largest(values: Tensor) -> Tensor:
        return max_pool2d(values[None, None], 2 * radius + 1, 1, radius)[0, 0]

    peak = scores == largest(scores)
    for _ in range(2):
        near = largest(peak.double()) > 0
        rest = scores.masked_fill(near, 0.0)
        peak = peak | ((rest == largest(rest)) & ~near)
    height, width = scores.shape
    found = [
        (float(scores[y, x]), x, y)
        for y, x in peak.nonzero().tolist()
        if scores[y, x] > threshold
        and border <= x < width - border
        and border <= y < height - border
    ]
    return [(x, y) for _, x, y in sorted(found, reverse=True)]


def sample(descriptors: Tensor, x: float, y: float) -> Tensor:
    """Bilinear, at the place where the released network looks, then unit length."""
    _, height, width = descriptors.shape

    def place(value: float, cells: int) -> tuple[int, float]:
        unit = (value - 4 + 0.5) / (cells * 8 - 4 - 0.5)  # 0 to 1 over the corners of the map
        at = min(max(unit * (cells - 1), 0.0), cells - 1.0)
        low = min(int(at), cells - 2)
        return low, at - low

    (i, u), (j, v) = place(x, width), place(y, height)
    found = (
        (1 - u) * (1 - v) * descriptors[:, j, i]
        + u * (1 - v) * descriptors[:, j, i + 1]
        + (1 - u) * v * descriptors[:, j + 1, i]
        + u * v * descriptors[:, j + 1, i + 1]
    )
    return found / found.norm()
