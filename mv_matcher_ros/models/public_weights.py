# SPDX-License-Identifier: Apache-2.0
"""Public checkpoints of a user's own, in the published naming, as weights of our networks.

None comes with this package: those of SuperGlue and SuperPoint are non-commercial. Their batch
norms are folded into the linear layers before them, which is exact and keeps them frozen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.profiles import MATCHERS
from mv_matcher_ros.models.public_checkpoint import COUNTER

BATCH_NORM_EPSILON = 1e-5
HEADS = MATCHERS['superglue'].heads


def superglue_weights(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `MatcherNetwork` with the profile 'superglue'.

    Raises:
        ModelError: a name is missing or left over.
    """
    taken = _Taken(public)
    profile = MATCHERS['superglue']
    weights: dict[str, Tensor] = {}
    for step in range(len(profile.encoder) + 1):
        last = step == len(profile.encoder)
        norm = None if last else f'kenc.encoder.{3 * step + 1}'
        _put(weights, f'encoder.{2 * step}', taken.layer(f'kenc.encoder.{3 * step}', norm))
    for number in range(len(profile.layers)):
        there, here = f'gnn.layers.{number}', f'layers.{number}'
        query, keys, values = (
            tuple(_heads_together(part) for part in taken.layer(f'{there}.attn.proj.{k}'))
            for k in range(3)
        )
        _put(weights, f'{here}.query', query)
        _put(weights, f'{here}.source', tuple(map(torch.cat, zip(keys, values, strict=True))))
        merge, bias = taken.layer(f'{there}.attn.merge')
        _put(weights, f'{here}.merge', (_heads_together(merge.T).T.contiguous(), bias))
        _put(weights, f'{here}.update.0', taken.layer(f'{there}.mlp.0', f'{there}.mlp.1'))
        _put(weights, f'{here}.update.2', taken.layer(f'{there}.mlp.3'))
    _put(weights, 'final', taken.layer('final_proj'))
    weights['dustbin'] = taken.tensor('bin_score').float()
    taken.expect_nothing_left()
    return weights


def superpoint_weights(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `DetectorNetwork` with the profile 'superpoint'.

    Raises:
        ModelError: a name is missing or left over.
    """
    taken = _Taken(public)
    weights: dict[str, Tensor] = {}
    steps = itertools.count(0)
    for level in (1, 2, 3, 4):
        if level > 1:
            next(steps)  # pooling
        for part in 'ab':
            _put(weights, f'encoder.{next(steps)}', taken.convolution(f'conv{level}{part}'))
            next(steps)  # ReLU
    for here, there in (
        ('score_hidden.0', 'convPa'),
        ('score', 'convPb'),
        ('descriptor_hidden.0', 'convDa'),
        ('descriptor', 'convDb'),
    ):
        _put(weights, here, taken.convolution(there))
    taken.expect_nothing_left()
    return weights


class _Taken:
    """A checkpoint that notices what was used of it."""

    def __init__(self, public: Mapping[str, Tensor]) -> None:
        self._left = {k: v for k, v in public.items() if not k.endswith(COUNTER)}

    def tensor(self, name: str) -> Tensor:
        if name not in self._left:
            raise ModelError(f'this is no such checkpoint: it has no "{name}"')
        return self._left.pop(name).double()

    def layer(self, name: str, norm: str | None = None) -> tuple[Tensor, Tensor]:
        """float64 weight (out, in) and bias of a convolution of width one, norm folded in."""
        weight, bias = self.tensor(f'{name}.weight'), self.tensor(f'{name}.bias')
        weight = weight.reshape(weight.shape[0], -1)
        if norm is None:
            return weight, bias
        gain, shift, mean, variance = (
            self.tensor(f'{norm}.{part}')
            for part in ('weight', 'bias', 'running_mean', 'running_var')
        )
        if any(part.shape != bias.shape for part in (gain, shift, mean, variance)):
            raise ModelError(f'this is no such checkpoint: "{norm}" does not fit "{name}"')
        factor = gain / (variance + BATCH_NORM_EPSILON).sqrt()
        return weight * factor[:, None], (bias - mean) * factor + shift

    def convolution(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight (out, in, k, k) and bias."""
        return self.tensor(f'{name}.weight'), self.tensor(f'{name}.bias')

    def expect_nothing_left(self) -> None:
        if self._left:
            raise ModelError(f'this checkpoint has more than the network: {first(self._left)}')


def first(names: Iterable[str], most: int = 5) -> str:
    """The first names of many, for a message."""
    listed = sorted(names)
    more = f' and {len(listed) - most} more' if len(listed) > most else ''
    return ', '.join(listed[:most]) + more


def _put(weights: dict[str, Tensor], name: str, parts: tuple[Tensor, ...]) -> None:
    weights[f'{name}.weight'], weights[f'{name}.bias'] = (part.float() for part in parts)


def _heads_together(rows: Tensor) -> Tensor:
    """Rows of a projection, whose heads alternate in the release, ordered by head.

    Raises:
        ModelError: the heads do not divide the rows.
    """
    if len(rows) % HEADS:
        raise ModelError(
            f'this is no such checkpoint: {HEADS} heads do not divide {len(rows)} rows'
        )
    return rows.unflatten(0, (-1, HEADS)).transpose(0, 1).flatten(0, 1)
