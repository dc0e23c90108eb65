# SPDX-License-Identifier: Apache-2.0
"""Weights that come with the package, by name; `weights/README.md` says where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mv_matcher_ros.config import DetectorSettings, Settings
from mv_matcher_ros.errors import SettingsError

FOLDER = Path(__file__).parent.parent / 'weights'
SUFFIX = '.safetensors'

Kind = Literal['detector', 'matcher', 'place', 'points']


def shipped(kind: Kind) -> dict[str, Path]:
    """Files of a kind by name: `light` is `matcher_light.safetensors`."""
    found = sorted(FOLDER.glob(f'{kind}_*{SUFFIX}'))
    return {path.stem.removeprefix(f'{kind}_'): path for path in found}


def weights_file(kind: Kind, named: str, setting: str) -> Path:
    """The file that a setting names: a path, or the name of one that is shipped.

    Raises:
        SettingsError: neither; says what is shipped.
    """
    known = shipped(kind)
    if named in known:
        return known[named]
    shipping = f'shipped: {", ".join(known)}' if known else 'none is shipped'
    if not Path(named).suffix and not Path(named).exists():
        raise SettingsError(f'{setting}: {named} is neither a file nor shipped ({shipping})')
    return Path(named)


def detector_file(settings: DetectorSettings) -> Path:
    """Weights of the learned detector of the settings; of none named, the light one.

    Raises:
        SettingsError: no such weights.
    """
    return weights_file('detector', settings.weights or 'light', 'detector.weights')


def matcher_file(settings: Settings) -> Path | None:
    """Weights of the graph network of the settings, None where nearest neighbours match.

    None named: those shipped for the detector, by default the light ones. Without such,
    `matching.matcher: auto` means nearest neighbours.

    Raises:
        SettingsError: no such weights.
    """
    matcher, named = settings.matching.matcher, settings.matching.weights
    detector, known = settings.detector, shipped('matcher')
    usual = detector.weights or 'light' if detector.name == 'learned' else f'light_{detector.name}'
    if matcher == 'nearest' or (matcher == 'auto' and not named and usual not in known):
        return None
    if detector.name == 'learned' and usual not in known:
        usual = 'light'  # told apart by what its file says of its detector
    return weights_file('matcher', named or usual, 'matching.weights')


def points_file(settings: Settings) -> Path | None:
    """Weights of the point inference of the settings; None where points are not to be inferred,
    or none are named and none are shipped for the detector.

    Raises:
        SettingsError: no such weights.
    """
    wanted, detector = settings.mapping.points, settings.detector
    if not wanted.infer_points:
        return None
    if wanted.weights:
        return weights_file('points', wanted.weights, 'mapping.points.weights')
    known = shipped('points')
    usual = detector.weights or 'light' if detector.name == 'learned' else f'light_{detector.name}'
    return known.get(usual)
