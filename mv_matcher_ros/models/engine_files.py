# SPDX-License-Identifier: Apache-2.0
"""Compiled engines on disk: built once for this machine, then loaded.

An engine belongs to what it was built for: weights, profile, the networks' source, shapes,
precision, device, threads and version of torch. All of it is in the name of its file (as a hash)
and readable beside it. Engines hold machine code: load none that somebody else built.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mv_matcher_ros.errors import MissingDependencyError, ModelError
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.place import Place
from mv_matcher_ros.models.weights import tensors_hash

LOG = logging.getLogger(__name__)
FORMAT = 1
Function = Callable[..., tuple[Tensor, ...]]


class EngineFiles:
    """A folder of compiled engines."""

    def __init__(self, folder: Path | str = '') -> None:
        """Empty: `$XDG_CACHE_HOME/mv_matcher_ros/engines`."""
        self._folder = Path(folder).expanduser() if folder else _cache() / 'engines'

    def engine(self, module: nn.Module, example: Sequence[Tensor], place: Place) -> Function:
        """The module compiled for inputs like `example` (on the host), built if it is not there.

        Raises:
            ModelError: it cannot be built; says why.
            MissingDependencyError: torch-tensorrt is asked for and not installed.
        """
        what = description(module, example, place)
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        path = self._folder / f'{what["network"]}-{name}.pt2'
        build, load = _TORCH_TENSORRT if place.execution == 'tensorrt' else _INDUCTOR
        if not path.exists():
            LOG.warning(
                '%s: building the engine, which takes a minute or two and is done once', path
            )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _build(path, lambda aside: build(module, _moved(example, place), aside))
                path.with_suffix('.json').write_text(json.dumps(what, indent=1), encoding='utf-8')
            except OSError as error:
                raise ModelError(
                    f'{self._folder}: no engine can be kept here ({error.strerror}): name a '
                    'folder that can be written as runtime.engines'
                ) from None
        try:
            return load(path)
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelError(
                f'{path}: this engine does not load ({first_line(error)}): delete the file, and '
                'it is built anew'
            ) from None


def description(module: nn.Module, example: Sequence[Tensor], place: Place) -> dict[str, Any]:
    """All that an engine depends on, as JSON can say it."""
    cuda = place.device.type == 'cuda'
    return {
        'format': FORMAT,
        'network': type(module).__name__.lower(),
        'settings': {k: v for k, v in vars(module).items() if isinstance(v, int | str | float)},
        # Iterations, thresholds, heads and the like leave no trace in the weights.
        'profile': [
            part.profile.model_dump(mode='json')
            for part in module.modules()
            if isinstance(part, DetectorNetwork | MatcherNetwork)
        ],
        'weights': tensors_hash(module.state_dict()),
        'inputs': [[str(part.dtype), list(part.shape)] for part in example],
        'execution': place.execution,
        'precision': place.name,
        'device': torch.cuda.get_device_name(place.device) if cuda else _processor(),
        'capability': str(
            torch.cuda.get_device_capability(place.device)
            if cuda
            else torch.backends.cpu.get_cpu_capability()
        ),
        'threads': 0 if cuda else torch.get_num_threads(),
        'torch': torch.__version__,
        'torch_tensorrt': _version('torch_tensorrt') if place.execution == 'tensorrt' else '',
        'source': _source_hash(),
    }


@cache
def _source_hash() -> str:
    """Of all code an engine can hold: another version of a network is another engine."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for folder in ('geometry', 'models'):
        for path in sorted((package / folder).glob('*.py')):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _processor() -> str:
    """Kind and hash of its instructions: engines are compiled for all that it has."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    told = {line.split(':')[0].strip(): line for line in reversed(lines)}
    said = [told.get(name, '') for name in ('model name', 'CPU part', 'flags', 'Features')]
    digest = hashlib.sha256('\n'.join(said).encode()).hexdigest()[:8]
    return f'{platform.machine()} {digest}'


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''


def _cache() -> Path:
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(root) / 'mv_matcher_ros'


def _moved(example: Sequence[Tensor], place: Place) -> tuple[Tensor, ...]:
    return tuple(part.to(place.device).contiguous() for part in example)


def _build(path: Path, build: Callable[[Path], None]) -> None:
    """Into a folder beside, then moved: a build that is cut off leaves no engine."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.building-') as folder:
        aside = Path(folder) / path.name
        try:
            with torch.no_grad():
                build(aside)
        except MissingDependencyError:
            raise
        except Exception as error:  # whatever compilers raise
            raise ModelError(
                f'cannot build an engine for {path.stem}: {first_line(error)} '
                f'({_compiler()}; runtime.execution=eager needs none)'
            ) from error
        aside.replace(path)


def _compiler() -> str:
    found = shutil.which(os.environ.get('CXX', 'g++'))
    return f'C++ compiler: {found}' if found else 'no C++ compiler here: install g++, or name CXX'


def first_line(error: Exception) -> str:
    """Of its message, shortened; the name of its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _build_inductor(module: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    exported = torch.export.export(module, example)
    aoti_compile_and_package(exported, package_path=str(path), inductor_configs={'freezing': True})


def _load_inductor(path: Path) -> Function:
    from torch._inductor import aoti_load_package

    model = aoti_load_package(str(path))
    return lambda *inputs: tuple(model(*inputs))


def _build_tensorrt(module: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    tensorrt = _torch_tensorrt()
    exported = torch.export.export(module, example)
    compiled = tensorrt.dynamo.compile(exported, arg_inputs=example)
    tensorrt.save(compiled, str(path), arg_inputs=example)


def _load_tensorrt(path: Path) -> Function:
    _torch_tensorrt()  # registers the operator the file calls
    return cast(Function, torch.export.load(str(path)).module())


def _torch_tensorrt() -> Any:
    try:
        import torch_tensorrt
    except ImportError:
        raise MissingDependencyError(
            'torch_tensorrt', 'tensorrt', 'runtime.execution=tensorrt'
        ) from None
    return torch_tensorrt


_INDUCTOR = (_build_inductor, _load_inductor)
_TORCH_TENSORRT = (_build_tensorrt, _load_tensorrt)
