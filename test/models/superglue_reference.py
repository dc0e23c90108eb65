# SPDX-License-Identifier: Apache-2.0
"""SuperGlue's equations one at a time, in float64 with plain loops, over weights in public naming.

Written from the paper (Sarlin et al., CVPR 2020; equation numbers below) and, for more than two
views and for confidences, Roessle and Niessner, ICCV 2023. Slow on purpose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]
HEADS = 4
# Keeps the scores of 18 random layers where those of trained ones are, some tens at most.
RESIDUAL_GAIN = 0.2


def random_state(seed: int = 0, layers: int = 18, width: int = 256) -> State:
    """A checkpoint with random weights in the public naming."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def convolution(name: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        weight = torch.randn(outputs, inputs, 1, generator=generator)
        state[f'{name}.weight'] = gain * weight / math.sqrt(inputs)
        state[f'{name}.bias'] = 0.1 * torch.randn(outputs, generator=generator)

    def batch_norm(name: str, size: int) -> None:
        state[f'{name}.weight'] = 0.5 + torch.rand(size, generator=generator)
        state[f'{name}.bias'] = 0.1 * torch.randn(size, generator=generator)
        state[f'{name}.running_mean'] = 0.1 * torch.randn(size, generator=generator)
        state[f'{name}.running_var'] = 0.5 + torch.rand(size, generator=generator)
        state[f'{name}.num_batches_tracked'] = torch.tensor(1000)

    sizes = (3, 32, 64, 128, 256, width)
    for step in range(5):
        convolution(f'kenc.encoder.{3 * step}', sizes[step], sizes[step + 1])
        if step < 4:
            batch_norm(f'kenc.encoder.{3 * step + 1}', sizes[step + 1])
    for layer in range(layers):
        name = f'gnn.layers.{layer}'
        for part in ('merge', 'proj.0', 'proj.1', 'proj.2'):
            convolution(f'{name}.attn.{part}', width, width)
        convolution(f'{name}.mlp.0', 2 * width, 2 * width)
        batch_norm(f'{name}.mlp.1', 2 * width)
        convolution(f'{name}.mlp.3', 2 * width, width, RESIDUAL_GAIN)
    convolution('final_proj', width, width)
    state['bin_score'] = torch.tensor(1.3)
    return state


def affine(state: State, name: str, x: Tensor) -> Tensor:
    """W x + b of each row of x (N, C)."""
    return x @ state[f'{name}.weight'].double()[:, :, 0].T + state[f'{name}.bias'].double()


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    """With the statistics of the checkpoint."""
    mean, variance = (state[f'{name}.running_{part}'].double() for part in ('mean', 'var'))
    x = (x - mean) / torch.sqrt(variance + 1e-5)
    return x * state[f'{name}.weight'].double() + state[f'{name}.bias'].double()


def encode(state: State, xy: Tensor, score: Tensor, descriptor: Tensor, size: Tensor) -> Tensor:
    """Equation 2: x = d + MLP(p)."""
    width, height = size.double()
    place = (xy.double() - torch.stack([width, height]) / 2) / (0.7 * max(width, height))
    x = torch.cat([place, score.double()[:, None]], dim=1)
    for step in range(5):
        x = affine(state, f'kenc.encoder.{3 * step}', x)
        if step < 4:
            x = batch_norm(state, f'kenc.encoder.{3 * step + 1}', x).clamp_min(0)
    return descriptor.double() + x


def message(state: State, layer: int, x: Tensor, source: Tensor) -> Tensor:
    """Equations 4 and 5: what the nodes x (N, C) hear from the source nodes (M, C)."""
    name = f'gnn.layers.{layer}.attn'
    query, key, value = (
        affine(state, f'{name}.proj.{k}', nodes) for k, nodes in enumerate((x, source, source))
    )
    heard = torch.zeros_like(query)
    for head in range(HEADS):
        channels = torch.arange(head, query.shape[1], HEADS)  # heads are interleaved
        scores = query[:, channels] @ key[:, channels].T / math.sqrt(len(channels))
        heard[:, channels] = torch.softmax(scores, dim=1) @ value[:, channels]
    return affine(state, f'{name}.merge', heard)


def update(state: State, layer: int, x: Tensor, heard: Tensor) -> Tensor:
    """Equation 3: x + MLP([x ‖ m])."""
    name = f'gnn.layers.{layer}.mlp'
    hidden = affine(state, f'{name}.0', torch.cat([x, heard], dim=1))
    hidden = batch_norm(state, f'{name}.1', hidden).clamp_min(0)
    return x + affine(state, f'{name}.3', hidden)


def describe(state: State, nodes: list[Tensor], layers: int = 18) -> list[Tensor]:
    """Equation 6 after layers that alternate between the own view and all others together."""
    for layer in range(layers):
        sources = nodes
        if layer % 2 == 1:
            sources = [
                torch.cat([other for v, other in enumerate(nodes) if v != view])
                for view in range(len(nodes))
            ]
        nodes = [
            update(state, layer, x, message(state, layer, x, source))
            for x, source in zip(nodes, sources, strict=True)
        ]
    return [affine(state, 'final_proj', x) for x in nodes]


def log_assignment(state: State, a: Tensor, b: Tensor, iterations: int = 100) -> Tensor:
    """Equations 7 to 10, with the masses of keypoints scaled to one."""
    count_a, count_b = len(a), len(b)
    scores = torch.full((count_a + 1, count_b + 1), float(state['bin_score'])).double()
    scores[:-1, :-1] = a @ b.T / math.sqrt(a.shape[1])
    rows = torch.ones(count_a + 1).double()
    columns = torch.ones(count_b + 1).double()
    rows[-1], columns[-1] = count_b, count_a
    u, v = torch.zeros_like(rows), torch.zeros_like(columns)
    for _ in range(iterations):
        u = rows.log() - torch.logsumexp(scores + v[None, :], dim=1)
        v = columns.log() - torch.logsumexp(scores + u[:, None], dim=0)
    return scores + u[:, None] + v[None, :]


def mutual(log_mass: Tensor, threshold: float = 0.2) -> Tensor:
    """(N,) partner of each keypoint of a, −1 for none."""
    inner = log_mass[:-1, :-1].exp()
    partner = torch.full((len(inner),), -1, dtype=torch.int64)
    for i in range(len(inner)):
        j = int(inner[i].argmax())
        if int(inner[:, j].argmax()) == i and inner[i, j] > threshold:
            partner[i] = j
    return partner


def confidence(head: State, log_score: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sigmoid(F1(F2(log score) + F3(a + b, |a − b|))) of one match; layer norm, ReLU."""

    def perceptron(name: str, x: Tensor) -> Tensor:
        for step in range(2):
            part = f'{name}.{3 * step}'
            x = head[f'{part}.weight'].double() @ x + head[f'{part}.bias'].double()
            x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)
            part = f'{name}.{3 * step + 1}'
            x = x * head[f'{part}.weight'].double() + head[f'{part}.bias'].double()
            x = x.clamp_min(0)
        return x

    hidden = perceptron('of_score', log_score.double()[None])
    hidden = hidden + perceptron('of_nodes', torch.cat([a + b, (a - b).abs()]))
    logit = head['together.weight'].double() @ hidden + head['together.bias'].double()
    return torch.sigmoid(logit)[0]
