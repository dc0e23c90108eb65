# SPDX-License-Identifier: Apache-2.0
"""The teacher of the detector, ALIKED-n16, and what it said, kept on disk.

Keypoints, scores and descriptors of an image do not change while the student learns from it, and a
network of this size takes seconds an image on a CPU. Each answer is kept in a file that is named
after the image's content: a pixel that changes asks again, a run that is started again does not.

Source: Zhao et al., ALIKED: a lighter keypoint and descriptor extraction network via deformable
transformation, IEEE Transactions on Instrumentation and Measurement 2023. Its weights (BSD
3-Clause) come from a file that the user names; the network is kornia's.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.errors import MissingDependencyError, ModelError
from mv_matcher_ros.models.public_checkpoint import read_public
from mv_matcher_ros.models.weights import tensors_hash

NAME = 'aliked-n16'
ORIGIN = 'ALIKED-n16 (Zhao et al. 2023, github.com/Shiaoming/ALIKED), BSD-3-Clause'
DESCRIPTOR_SIZE = 128
# The suppression that its sub-pixel step was trained with.
_RADIUS = 2
# Its second stage halves thrice by pooling; smaller images have no cell.
_SMALLEST_SIDE_PX = 32


@dataclass(frozen=True)
class Taught:
    """What the teacher says of one image, the strongest keypoint first.

    Attributes:
        xy: (N, 2) float32 pixels, centres at integers.
        scores: (N,) float32 in (0, 1).
        descriptors: (N, 128) float32 unit length.
    """

    xy: Tensor
    scores: Tensor
    descriptors: Tensor

    def strongest(self, count: int) -> Taught:
        """No more than `count` keypoints."""
        return Taught(self.xy[:count], self.scores[:count], self.descriptors[:count])


class Teacher:
    """ALIKED-n16.

    Args:
        path: its checkpoint, a file of plain tensors.
        max_keypoints: the strongest ones are kept.
        threshold: smallest score of a keypoint.

    Raises:
        MissingDependencyError: kornia is not installed.
        ModelError: no such file, or not the weights of this network.
    """

    def __init__(self, path: Path, max_keypoints: int = 512, threshold: float = 0.05) -> None:
        try:
            from kornia.feature import ALIKED
        except ImportError:
            raise MissingDependencyError('kornia', 'train', 'a teacher of the detector') from None
        network: Any = ALIKED(
            NAME, max_num_keypoints=max_keypoints, detection_threshold=-1.0, nms_radius=_RADIUS
        )
        try:
            tensors = read_public(path)
        except ModelError as error:
            raise ModelError(f'{path}: {error}') from None
        # A table of offsets that kornia keeps beside the weights, and no checkpoint has.
        own = {'dkd.hw_grid': network.state_dict()['dkd.hw_grid']}
        try:
            network.load_state_dict({**own, **tensors}, strict=True)
        except RuntimeError as error:
            reason = ' '.join(str(error).split())[:200]
            raise ModelError(f'{path}: not the weights of {NAME}: {reason}') from None
        self._network = network.eval()
        self._threshold = threshold
        digest = hashlib.sha256(tensors_hash(tensors).encode())
        digest.update(f'{max_keypoints} {threshold}'.encode())
        self.name = f'{NAME}-{digest.hexdigest()[:12]}'
        self.sha256 = tensors_hash(tensors)

    @torch.no_grad()
    def scores(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W) score of every pixel of a (H, W) grey image."""
        found: Tensor = self._network.extract_dense_map(_rgb(image))[1]
        return found[0, 0]

    @torch.no_grad()
    def teach(self, image: NDArray[np.uint8]) -> Taught:
        """What it says of a (H, W) grey image."""
        if min(image.shape) < _SMALLEST_SIDE_PX:
            return Taught(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, DESCRIPTOR_SIZE))
        said = self._network(_rgb(image))[0]
        order = said.keypoint_scores.argsort(descending=True, stable=True)
        order = order[said.keypoint_scores[order] > self._threshold]
        return Taught(
            said.keypoints[order].float(),
            said.keypoint_scores[order].float(),
            said.descriptors[order].float(),
        )


def _rgb(image: NDArray[np.uint8]) -> Tensor:
    """(1, 3, H, W): the student sees grey images, so its teacher does."""
    return torch.tensor(image)[None, None].float().div(255.0).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class TaughtOnce:
    """A teacher that is asked once for every image.

    Attributes:
        teacher: who answers.
        folder: of the answers, one file an image.
    """

    teacher: Teacher
    folder: Path

    def teach(self, image: NDArray[np.uint8]) -> Taught:
        """What the teacher says of a (H, W) grey image; descriptors in half precision."""
        path = self.path(image)
        found = _read(path)
        if found is None:
            _write(path, self.teacher.teach(image))
            found = _read(path)
        if found is None:
            raise ModelError(f'{path}: was written and cannot be read')
        return found

    def path(self, image: NDArray[np.uint8]) -> Path:
        """Where the answer for an image is or will be."""
        content = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        name = content.hexdigest()[:32]
        return self.folder / self.teacher.name / name[:2] / f'{name}.npz'


def _read(path: Path) -> Taught | None:
    """An answer; None where there is none, or only part of one."""
    try:
        # Opened here: np.load forgets to close a file that is no archive.
        with path.open('rb') as content, np.load(content, allow_pickle=False) as file:
            xy, scores, descriptors = (
                torch.from_numpy(file[name].astype(np.float32))
                for name in ('xy', 'scores', 'descriptors')
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return Taught(xy, scores, torch.nn.functional.normalize(descriptors, dim=-1))


def _write(path: Path, taught: Taught) -> None:
    """Aside and renamed: several processes may fill one folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    with aside.open('wb') as file:
        np.savez(
            file,
            xy=taught.xy.numpy(),
            scores=taught.scores.numpy(),
            descriptors=taught.descriptors.numpy().astype(np.float16),
        )
    aside.replace(path)
