# SPDX-License-Identifier: Apache-2.0
"""Where a network runs on this machine, and in which precision.

Backbones may run in half precision; heads, optimal transport and everything after stay in single.
On a CPU `auto` means single precision, so that the same frames give the same poses; `fastest`
takes bf16 where it proves faster at start-up, which a busy moment may decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from mv_matcher_ros.config import RuntimeSettings
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.point_inference import PointInferenceNetwork

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
# Half precision on a CPU has to be this much faster to be taken: it costs some accuracy.
WORTH = 1.25
WARM_UPS, TRIALS = 2, 5


@dataclass(frozen=True)
class Place:
    """Where a network runs, in which precision its backbone, and how (`runtime.execution`)."""

    device: torch.device
    dtype: torch.dtype
    execution: str = 'eager'

    @property
    def name(self) -> str:
        """As in the settings, e.g. `cpu bf16` or `cuda fp16 graphs`."""
        precision = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        how = '' if self.execution == 'eager' else f' {self.execution}'
        return f'{self.device.type} {precision}{how}'


Network = TypeVar('Network', DetectorNetwork, MatcherNetwork, PointInferenceNetwork)


def placed(
    network: Network, settings: RuntimeSettings, trial: Callable[[Network, Place], object]
) -> tuple[Network, Place]:
    """Move a network to where the settings want it; it is changed in place.

    Args:
        network: in single precision.
        settings: device and precision.
        trial: runs the network once on typical input, to compare precisions on a CPU.

    Raises:
        SettingsError: a device that is not there, or a precision it does not have.
    """
    device = _device(settings.device)
    cpu = device.type == 'cpu'
    execution = _execution(settings.execution, cpu)
    if settings.precision == 'fastest' and cpu:
        network, place = _faster_on_cpu(network, trial)
        return network, replace(place, execution=execution)
    usual = torch.float32 if cpu else torch.float16
    place = Place(device, DTYPES.get(settings.precision, usual), execution)
    if cpu and place.dtype == torch.float16:
        raise SettingsError('runtime.precision fp16 is for CUDA; a CPU has fp32 and bf16')
    return moved(network, place), place


def moved(network: Network, place: Place) -> Network:
    """The network at a place; it is changed in place. Weights once rounded stay so."""
    network.to(place.device)
    network.backbone_to(place.dtype)
    return network


def _device(name: str) -> torch.device:
    there = name != 'cpu' and torch.cuda.is_available()
    if there:
        # With its number: which one is current, each thread has for itself.
        return torch.device('cuda', torch.cuda.current_device())
    if name == 'cuda':
        raise SettingsError(
            'runtime.device is cuda, but torch sees no CUDA device here '
            '(mv-matcher doctor says more)'
        )
    return torch.device('cpu')


def _execution(name: str, cpu: bool) -> str:
    if name == 'auto':
        return 'eager' if cpu else 'graphs'
    if cpu and name in ('graphs', 'tensorrt'):
        raise SettingsError(f'runtime.execution {name} is for CUDA; a CPU has eager and compiled')
    return name


def _faster_on_cpu(
    network: Network, trial: Callable[[Network, Place], object]
) -> tuple[Network, Place]:
    single = Place(torch.device('cpu'), torch.float32)
    if not torch.backends.mkldnn.is_available():
        return network, single
    half = replace(single, dtype=torch.bfloat16)
    # Weights are copied before the trial: rounding them to half precision cannot be undone.
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    slow = _best_time(lambda: trial(network, single))
    network.backbone_to(half.dtype)
    fast = _best_time(lambda: trial(network, half))
    if fast * WORTH < slow:
        return network, half
    network.backbone_to(single.dtype)
    network.load_state_dict(kept)
    return network, single


def _best_time(run: Callable[[], object]) -> float:
    times = []
    with torch.inference_mode():
        for number in range(WARM_UPS + TRIALS):
            begin = time.perf_counter()
            run()
            if number >= WARM_UPS:
                times.append(time.perf_counter() - begin)
    return min(times)
