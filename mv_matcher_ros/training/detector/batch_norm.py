# SPDX-License-Identifier: Apache-2.0
"""Batch norm while the detector learns, folded into its convolutions when it has learned.

The network that runs has none. From random weights it does not begin to learn without: eight
convolutions let little of the image through, and every cell says the same.

Sources: Ioffe and Szegedy, Batch normalization, 2015; He et al., Delving deep into rectifiers,
2015.
"""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mv_matcher_ros.models.detector import DetectorNetwork

_PARTS = ('encoder', 'score_hidden', 'detail', 'descriptor_hidden')


def with_norms(network: DetectorNetwork) -> DetectorNetwork:
    """A detector with new random weights and a norm behind each convolution but the last ones."""
    found = copy.deepcopy(network)
    for part in _PARTS:
        layers: list[nn.Module] = []
        for layer in getattr(found, part):
            layers.append(layer)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                layers.append(nn.BatchNorm2d(layer.out_channels))
        setattr(found, part, nn.Sequential(*layers))
    return found


def folded(network: DetectorNetwork) -> DetectorNetwork:
    """The same detector in evaluation mode without norms; one that has none is copied."""
    found = copy.deepcopy(network).eval()
    for part in _PARTS:
        layers: list[nn.Module] = []
        for layer in getattr(found, part):
            if isinstance(layer, nn.BatchNorm2d):
                before = layers.pop()
                assert isinstance(before, nn.Conv2d)
                layer = fuse_conv_bn_eval(before, layer)
            layers.append(layer)
        setattr(found, part, nn.Sequential(*layers))
    return found
