# SPDX-License-Identifier: Apache-2.0
"""Features of tuples with labels on disk: plain arrays in an .npz file, nothing that is executed.

Descriptors are kept in bytes, `scale` · (byte − `zero`) of each view: an error below 0.5 % of
their length, less than what noise of the image does to them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import SourceError

FORMAT = 1


@dataclass(frozen=True)
class TupleFeatures:
    """V views as a matcher gets them, with what is true of them.

    Attributes:
        features: of each view, strongest first.
        labels: of all pairs of views a < b in order: partners of a's keypoints, and of b's
            (`training.data.labels`).
        intrinsics: (V, 3, 3) float64 pixels.
        world_from_camera: (V, 4, 4) float64 metres.
        overlap: (V, V) float32 share of a's points that b sees.
        world: name of the place.
        baseline: video, wide or stereo.
    """

    features: tuple[Features, ...]
    labels: tuple[tuple[Tensor, Tensor], ...]
    intrinsics: Tensor
    world_from_camera: Tensor
    overlap: Tensor
    world: str
    baseline: str


def write_features(path: Path, tuples: Sequence[TupleFeatures]) -> None:
    """Write the tuples of a shard, all or nothing.

    Raises:
        SourceError: the place cannot be written.
    """
    views = [view for found in tuples for view in found.features]
    coded = [quantised(view.descriptors) for view in views]
    labels = [side for found in tuples for pair in found.labels for side in pair]
    arrays: dict[str, Any] = {
        'format': np.array(FORMAT),
        'count': _rows(tuples, [len(view) for view in views], np.int32),
        'scale': _rows(tuples, [scale for _, scale, _ in coded], np.float32),
        'zero': _rows(tuples, [zero for _, _, zero in coded], np.uint8),
        'size': np.array([[v.image_size for v in t.features] for t in tuples], np.int32),
        'intrinsics': torch.stack([t.intrinsics for t in tuples]).numpy(),
        'world_from_camera': torch.stack([t.world_from_camera for t in tuples]).numpy(),
        'overlap': torch.stack([t.overlap for t in tuples]).numpy(),
        'world': np.array([t.world for t in tuples]),
        'baseline': np.array([t.baseline for t in tuples]),
        'xy': torch.cat([view.keypoints_xy for view in views]).float().numpy(),
        'descriptors': np.concatenate([code for code, _, _ in coded]),
        'scores': torch.cat([view.scores for view in views]).float().numpy(),
        'sigma': torch.cat([view.sigma_px for view in views]).float().numpy(),
        'labels': torch.cat(labels).to(torch.int16).numpy(),
    }
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open('wb') as file:
            np.savez(file, **arrays)
        aside.replace(path)
    except OSError as error:
        raise SourceError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        aside.unlink(missing_ok=True)


def _rows(tuples: Sequence[TupleFeatures], values: Sequence[float], kind: type) -> NDArray[Any]:
    return np.array(values, kind).reshape(len(tuples), -1)


def quantised(descriptors: Tensor) -> tuple[NDArray[np.uint8], float, int]:
    """(N, D) descriptors as bytes, the scale, and the byte that is zero."""
    values = descriptors.float().numpy()
    largest = max(float(np.abs(values).max(initial=0.0)), 1e-12)
    zero = 0 if values.size == 0 or float(values.min()) >= 0.0 else 128
    scale = largest / (255 if zero == 0 else 127)
    return (np.rint(values / scale) + zero).astype(np.uint8), scale, zero


def worlds_of(path: Path) -> list[str]:
    """Name of the place of each tuple of a file; reads nothing else.

    Raises:
        SourceError: as `FeatureShard`.
    """
    return [str(world) for world in _read(path, ('format', 'world'))['world']]


def _read(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in names or file.files}
        version = int(found['format'])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise SourceError(
            f'{path}: not a file of features ({error}): delete it, it is made again'
        ) from None
    if version != FORMAT:
        raise SourceError(
            f'{path}: features of format {version}, this version reads {FORMAT}: delete them'
        )
    return found


class FeatureShard:
    """The tuples of one file, in memory.

    Raises:
        SourceError: not such a file, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self._of = _read(path)
        count = self._of['count']
        self._begin = np.concatenate([[0], count.sum(1).cumsum()])
        self._labels = np.concatenate([[0], (count.sum(1) * (count.shape[1] - 1)).cumsum()])

    def __len__(self) -> int:
        return len(self._of['count'])

    def __getitem__(self, number: int) -> TupleFeatures:
        of, count = self._of, self._of['count'][number]
        at = self._begin[number] + np.concatenate([[0], count.cumsum()])
        views = []
        for view, (first, last) in enumerate(pairwise(at.tolist())):
            part = slice(first, last)
            plain = of['descriptors'][part].astype(np.float32) - float(of['zero'][number, view])
            descriptors = torch.from_numpy(plain * of['scale'][number, view])
            width, height = of['size'][number, view].tolist()
            views.append(
                Features(
                    torch.from_numpy(of['xy'][part]),
                    torch.nn.functional.normalize(descriptors, dim=1),
                    torch.from_numpy(of['scores'][part]),
                    torch.from_numpy(of['sigma'][part]),
                    (width, height),
                )
            )
        labels, place = [], int(self._labels[number])
        for a, b in combinations(range(len(count)), 2):
            sides = []
            for side in (a, b):
                part = slice(place, place + int(count[side]))
                sides.append(torch.from_numpy(of['labels'][part].astype(np.int64)))
                place = part.stop
            labels.append((sides[0], sides[1]))
        return TupleFeatures(
            tuple(views),
            tuple(labels),
            torch.from_numpy(of['intrinsics'][number]),
            torch.from_numpy(of['world_from_camera'][number]),
            torch.from_numpy(of['overlap'][number]),
            str(of['world'][number]),
            str(of['baseline'][number]),
        )
