# SPDX-License-Identifier: Apache-2.0
"""How a network runs on this machine: as it is, as CUDA graphs, or compiled.

Launching the few hundred small kernels of a graph network costs more than running them. A CUDA
graph launches them at once; a compiled engine fuses them and is kept on disk. Both are made for
one shape of the inputs, so callers pad to few shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.engine_files import EngineFiles, first_line
from mv_matcher_ros.models.place import Place

Function = Callable[..., tuple[Tensor, ...]]
# Before a capture: libraries choose their kernels and take their workspaces.
WARM_UPS = 3
# Shapes of which graphs or engines stay in memory; the one not used for longest goes first.
MOST_SHAPES = 12


class Runner:
    """Runs a network, one thread at a time; outputs come back to the host.

    Args:
        module: tensors in, tensors out, on its device and in evaluation mode.
        place: where and how.
        files: where compiled engines are kept.
        staying: so many of the first outputs stay on the device.
    """

    def __init__(
        self, module: nn.Module, place: Place, files: EngineFiles, staying: int = 0
    ) -> None:
        self._module, self._place, self._files, self._staying = module, place, files, staying
        self._by_shape: OrderedDict[tuple[object, ...], Function] = OrderedDict()

    @property
    def fixed(self) -> bool:
        """Each new shape of the inputs costs a capture or a compilation."""
        return self._place.execution != 'eager'

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs for inputs on the host or the device.

        Raises:
            ModelError: an engine cannot be built, or a graph captured, here; says why.
            MissingDependencyError: a package for this way of running is not installed.
        """
        with torch.inference_mode():
            return self._of_shape(inputs)(*inputs)

    def _of_shape(self, inputs: Sequence[Tensor]) -> Function:
        key = () if not self.fixed else tuple((x.dtype, x.device, *x.shape) for x in inputs)
        function = self._by_shape.get(key)
        if function is None:
            function = self._by_shape[key] = self._made(inputs)
        self._by_shape.move_to_end(key)
        if len(self._by_shape) > MOST_SHAPES:
            self._by_shape.popitem(last=False)
        return function

    def _made(self, inputs: Sequence[Tensor]) -> Function:
        if self._place.execution == 'graphs':
            return self._captured(inputs)
        if not self.fixed:
            return self._direct(self._module)
        engine = self._files.engine(self._module, inputs, self._place)
        # Engines take the strides they were built with for granted.
        return self._direct(lambda *given: engine(*(part.contiguous() for part in given)))

    def _captured(self, inputs: Sequence[Tensor]) -> Function:
        try:
            return CapturedGraph(self._module, inputs, self._place.device, self._staying)
        except RuntimeError as error:  # also no memory left
            shapes = ', '.join(str(tuple(part.shape)) for part in inputs)
            raise ModelError(
                f'cannot capture a CUDA graph of {type(self._module).__name__} for inputs '
                f'{shapes}: {first_line(error)} (runtime.execution=eager needs none)'
            ) from error

    def _direct(self, function: Function) -> Function:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = function(*(part.to(self._place.device) for part in inputs))
            stay = self._staying
            return (*outputs[:stay], *(part.cpu() for part in outputs[stay:]))

        return run


class CapturedGraph:
    """A CUDA graph with pinned buffers on the host, captured when it is made.

    Capture fails where the network waits for the device or takes host memory; a test without a GPU
    looks for both.
    """

    def __init__(
        self, function: Function, example: Sequence[Tensor], device: torch.device, staying: int
    ) -> None:
        self._staying = staying
        self._staging = [None if x.is_cuda else x.clone().pin_memory() for x in example]
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._inputs = [x.to(device, copy=True) for x in example]
            for _ in range(WARM_UPS):
                function(*self._inputs)
            self._stream.synchronize()
            # What another thread does on the GPU meanwhile is none of this graph's business.
            with torch.cuda.graph(
                self._graph, stream=self._stream, capture_error_mode='thread_local'
            ):
                self._outputs = function(*self._inputs)
        self._results = [
            torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
            for part in self._outputs[staying:]
        ]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Copies in, replay, copies out; waits for the last."""
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            for staging, there, given in zip(self._staging, self._inputs, inputs, strict=True):
                if staging is None:
                    there.copy_(given)
                else:
                    there.copy_(staging.copy_(given), non_blocking=True)
            self._graph.replay()
            # The next replay writes where this one wrote.
            stay = [part.clone() for part in self._outputs[: self._staying]]
            for result, output in zip(self._results, self._outputs[self._staying :], strict=True):
                result.copy_(output, non_blocking=True)
            self._stream.synchronize()
        for part in stay:
            part.record_stream(caller)
        return (*stay, *(result.clone() for result in self._results))
