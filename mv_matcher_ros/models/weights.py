# SPDX-License-Identifier: Apache-2.0
"""Networks on disk: safetensors with profile and hash inside. Nothing else here touches the disk.

A file says what it is (kind, profile), so that loading needs no settings, and carries the hash of
its tensors, so that a damaged or edited file is refused instead of run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mv_matcher_ros.config import Section
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.place_descriptor import PlaceNetwork
from mv_matcher_ros.models.point_inference import PointInferenceNetwork
from mv_matcher_ros.models.profiles import (
    DETECTORS,
    MATCHERS,
    DetectorProfile,
    MatcherProfile,
    PlaceProfile,
    PointProfile,
)
from mv_matcher_ros.models.public_checkpoint import check_numbers, read_public
from mv_matcher_ros.models.public_weights import first, superglue_weights, superpoint_weights

FORMAT = '1'
PUBLIC_SUFFIXES = ('.pth', '.pt')
# Note of an adapted detector: hash of the one whose descriptors it still gives.
DESCRIBES_AS = 'describes_as'
ProfileType = TypeVar('ProfileType', bound=Section)


@dataclass(frozen=True)
class Weights:
    """The content of a file of weights.

    Attributes:
        kind: which network: 'matcher', 'detector', 'place', 'points'.
        profile: JSON of its profile.
        tensors: by name.
        notes: free text about origin and training, by name.
        sha256: of the tensors.
    """

    kind: str
    profile: str
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str]
    sha256: str


def save_matcher(
    path: Path | str, matcher: MatcherNetwork, notes: Mapping[str, str] | None = None
) -> str:
    """Write a matcher; returns the hash of its tensors."""
    return save_weights(path, 'matcher', matcher.profile, matcher.state_dict(), notes or {})


def load_matcher(path: Path | str) -> MatcherNetwork:
    """A matcher in evaluation mode, from our own file or a public SuperGlue checkpoint (.pth).

    Raises:
        ModelError: no such file, not a file of weights, damaged, of another kind or shape.
    """
    path = Path(path)
    if path.suffix in PUBLIC_SUFFIXES:
        tensors = _converted(path, superglue_weights)
        return _built(lambda: MatcherNetwork(MATCHERS['superglue']), tensors, path)
    profile, own = _own(path, 'matcher', MatcherProfile)
    return _built(lambda: MatcherNetwork(profile), own, path)


def save_detector(
    path: Path | str, detector: DetectorNetwork, notes: Mapping[str, str] | None = None
) -> str:
    """Write a detector; returns the hash of its tensors."""
    return save_weights(path, 'detector', detector.profile, detector.state_dict(), notes or {})


def load_detector(path: Path | str) -> DetectorNetwork:
    """A detector in evaluation mode, from our own file or a public SuperPoint checkpoint (.pth).

    Raises:
        ModelError: as `load_matcher`.
    """
    path = Path(path)
    if path.suffix in PUBLIC_SUFFIXES:
        tensors = _converted(path, superpoint_weights)
        return _built(lambda: DetectorNetwork(DETECTORS['superpoint']), tensors, path)
    profile, own = _own(path, 'detector', DetectorProfile)
    return _built(lambda: DetectorNetwork(profile), own, path)


def save_place(
    path: Path | str, network: PlaceNetwork, notes: Mapping[str, str] | None = None
) -> str:
    """Write a network that describes places; returns the hash of its tensors."""
    return save_weights(path, 'place', network.profile, network.state_dict(), notes or {})


def load_place(path: Path | str) -> PlaceNetwork:
    """A network that describes places, in evaluation mode.

    Raises:
        ModelError: no such file, not a file of weights, damaged, of another kind or shape.
    """
    path = Path(path)
    profile, tensors = _own(path, 'place', PlaceProfile)
    return _built(lambda: PlaceNetwork(profile), tensors, path)


def save_points(
    path: Path | str, network: PointInferenceNetwork, notes: Mapping[str, str] | None = None
) -> str:
    """Write a point inference network; returns the hash of its tensors."""
    return save_weights(path, 'points', network.profile, network.state_dict(), notes or {})


def load_points(path: Path | str) -> PointInferenceNetwork:
    """A point inference network in evaluation mode.

    Raises:
        ModelError: as `load_matcher`.
    """
    path = Path(path)
    profile, tensors = _own(path, 'points', PointProfile)
    return _built(lambda: PointInferenceNetwork(profile), tensors, path)


def _own(
    path: Path, kind: str, profile: type[ProfileType]
) -> tuple[ProfileType, Mapping[str, Tensor]]:
    """Profile and tensors of a file of ours."""
    weights = read_weights(path, kind)
    return read_profile(profile, weights, path), weights.tensors


def _converted(
    path: Path, convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """A public checkpoint as weights of ours; errors name the file."""
    try:
        return convert(read_public(path))
    except ModelError as error:
        raise ModelError(f'{path}: {error}') from None
    except (
        RuntimeError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:  # of tensors that do not go together
        reason = f'its tensors do not fit together ({error})'
        raise ModelError(f'{path}: this is no such checkpoint: {reason}') from None


Network = TypeVar('Network', bound=nn.Module)


def _built(build: Callable[[], Network], tensors: Mapping[str, Tensor], path: Path) -> Network:
    """The network with these weights, in evaluation mode.

    It takes no memory before its tensors are those of the file: a profile is a few words, and may
    describe a network of any size.

    Raises:
        ModelError: a tensor is missing, left over or of another shape; names the first few.
    """
    try:
        with torch.device('meta'):
            network = build()
    except RuntimeError as error:
        raise ModelError(f'{path}: no network is as its profile says: {error}') from None
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = []
    if missing := wanted.keys() - given.keys():
        faults.append(f'missing: {first(missing)}')
    if unknown := given.keys() - wanted.keys():
        faults.append(f'unknown: {first(unknown)}')
    if other := [n for n in wanted.keys() & given.keys() if wanted[n] != given[n]]:
        shapes = (f'{n} is {given[n]} instead of {wanted[n]}' for n in sorted(other)[:5])
        faults.append('of another shape: ' + ', '.join(shapes))
    if faults:
        raise ModelError(f'{path}: does not fit the network it names: ' + '; '.join(faults))
    kept = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(kept, strict=True, assign=True)
    return network.eval()


def read_profile(profile: type[ProfileType], weights: Weights, path: Path) -> ProfileType:
    """The profile that a file holds.

    Raises:
        ModelError: it has settings this version does not know.
    """
    try:
        return profile.model_validate_json(weights.profile)
    except ValidationError as error:
        fault = error.errors()[0]
        name = '.'.join(str(part) for part in fault['loc'])
        raise ModelError(
            f'{path}: its profile is of another version: {name}: {fault["msg"]}'
        ) from None


def save_weights(
    path: Path | str,
    kind: str,
    profile: Section,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, str],
) -> str:
    """Write tensors with what they are; beside the place first, so that no half file is left."""
    from safetensors.torch import save_file

    path = Path(path)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = tensors_hash(kept)
    metadata = {
        'format': FORMAT,
        'kind': kind,
        'profile': profile.model_dump_json(),
        'sha256': digest,
        'notes': json.dumps(dict(notes), sort_keys=True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.part')
    save_file(kept, aside, metadata)
    aside.replace(path)
    return digest


def read_weights(path: Path | str, kind: str) -> Weights:
    """Read and check a file of weights.

    Raises:
        ModelError: says what is wrong with the file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f'{path}: no such file of weights') from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{path}: not a readable file of weights: {error}') from None
    if metadata.get('format') != FORMAT:
        raise ModelError(
            f'{path}: not written by mv_matcher_ros, or by another version '
            f'(format {metadata.get("format", "not given")}, this reads {FORMAT})'
        )
    if missing := {'kind', 'profile', 'sha256', 'notes'} - metadata.keys():
        raise ModelError(f'{path}: does not say its {first(missing)}')
    if metadata['kind'] != kind:
        raise ModelError(f'{path}: holds a {metadata["kind"]}, a {kind} is needed')
    check_numbers(tensors, f'{path}: damaged')
    digest = tensors_hash(tensors)
    if digest != metadata['sha256']:
        raise ModelError(f'{path}: damaged: its tensors do not have the hash the file names')
    notes = _notes(metadata, path)
    return Weights(kind, metadata['profile'], tensors, notes, digest)


def read_notes(path: Path | str) -> dict[str, str]:
    """What a file of ours says of its origin; nothing of a public checkpoint.

    Raises:
        ModelError: not a readable file of weights.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix in PUBLIC_SUFFIXES:
        return {}
    try:
        with safe_open(path, framework='pt') as file:
            return _notes(file.metadata() or {}, path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{path}: not a readable file of weights: {error}') from None


def _notes(metadata: Mapping[str, str], path: Path | str) -> dict[str, str]:
    try:
        notes = json.loads(metadata.get('notes', '{}'))
    except (ValueError, RecursionError):
        notes = None
    if not isinstance(notes, dict):
        raise ModelError(f'{path}: damaged: its notes are not words by name')
    return {str(name): str(words) for name, words in notes.items()}


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
