# SPDX-License-Identifier: Apache-2.0
"""The teacher with random weights, and what it said on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mv_matcher_ros.errors import MissingDependencyError, ModelError
from mv_matcher_ros.training.detector.teacher import DESCRIPTOR_SIZE, Taught, TaughtOnce, Teacher


def checkpoint(path: Path, **changes: torch.Tensor) -> Path:
    """Random weights in the form of the published file."""
    from kornia.feature import ALIKED

    torch.manual_seed(0)
    tensors = {n: v for n, v in ALIKED('aliked-n16').state_dict().items() if n != 'dkd.hw_grid'}
    torch.save({**tensors, **changes}, path)
    return path


IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64)).astype(np.uint8)


def test_the_teacher_gives_unit_descriptors_in_order_of_the_scores(tmp_path: Path) -> None:
    pytest.importorskip('kornia', reason='kornia with ALIKED needs Python 3.11')
    teacher = Teacher(checkpoint(tmp_path / 'a.pth'), max_keypoints=20, threshold=0.0)
    said = teacher.teach(IMAGE)
    assert 0 < len(said.xy) <= 20
    assert said.descriptors.shape == (len(said.xy), DESCRIPTOR_SIZE)
    assert torch.allclose(said.descriptors.norm(dim=-1), torch.ones(len(said.xy)), atol=1e-5)
    assert (said.scores.diff() <= 0).all()
    assert (said.xy >= 0).all()
    assert (said.xy < torch.tensor([64, 48])).all()
    assert teacher.scores(IMAGE).shape == IMAGE.shape
    assert len(teacher.teach(IMAGE[:16]).xy) == 0


def test_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('kornia', reason='kornia with ALIKED needs Python 3.11')
    with pytest.raises(ModelError, match=r'b\.pth: no such checkpoint'):
        Teacher(tmp_path / 'b.pth')
    (tmp_path / 'c.pth').write_bytes(b'no weights')
    with pytest.raises(ModelError, match=r'c\.pth: not a readable checkpoint'):
        Teacher(tmp_path / 'c.pth')
    other = checkpoint(tmp_path / 'd.pth', **{'block1.conv1.weight': torch.zeros(2, 2)})
    with pytest.raises(ModelError, match=r'd\.pth: not the weights of aliked-n16: .*block1'):
        Teacher(other)
    monkeypatch.setitem(sys.modules, 'kornia.feature', None)
    with pytest.raises(MissingDependencyError, match=r'kornia.*mv_matcher_ros\[train\]'):
        Teacher(tmp_path / 'b.pth')


class Counting:
    """Answers with the image's mean, and counts how often it was asked."""

    name = 'counting'

    def __init__(self) -> None:
        self.asked = 0

    def teach(self, image: NDArray[np.uint8]) -> Taught:
        self.asked += 1
        xy = torch.tensor([[1.5, 2.25], [3.0, 4.0]])
        descriptors = torch.nn.functional.normalize(torch.randn(2, DESCRIPTOR_SIZE), dim=-1)
        return Taught(xy, torch.tensor([0.75, float(image.mean()) / 255]), descriptors)


def test_an_image_is_taught_once_even_after_a_new_start(tmp_path: Path) -> None:
    first = Counting()
    said = TaughtOnce(first, tmp_path).teach(IMAGE)
    again = TaughtOnce(first, tmp_path).teach(IMAGE.copy())
    assert first.asked == 1
    for one, other in zip(vars(said).values(), vars(again).values(), strict=True):
        assert torch.equal(one, other)
    changed = IMAGE.copy()
    changed[0, 0] ^= 1
    TaughtOnce(first, tmp_path).teach(changed)
    TaughtOnce(first, tmp_path).teach(IMAGE.reshape(64, 48))
    assert first.asked == 3


def test_a_broken_answer_is_asked_for_again(tmp_path: Path) -> None:
    teacher = Counting()
    once = TaughtOnce(teacher, tmp_path)
    once.teach(IMAGE)
    once.path(IMAGE).write_bytes(once.path(IMAGE).read_bytes()[:200])
    assert len(once.teach(IMAGE).xy) == 2
    assert teacher.asked == 2
    assert not list(tmp_path.rglob('*.part'))
