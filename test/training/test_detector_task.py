# SPDX-License-Identifier: Apache-2.0
"""The training of the detector on a picture made here, with corners as the teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mv_matcher_ros.config import load_settings
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.profiles import DETECTORS
from mv_matcher_ros.models.weights import read_weights
from mv_matcher_ros.training.data.view_pairs import PhotoPairs
from mv_matcher_ros.training.detector.batch_norm import folded, with_norms
from mv_matcher_ros.training.detector.task import DetectorTask, DetectorTraining, score
from mv_matcher_ros.training.detector.teacher import DESCRIPTOR_SIZE, Taught, TaughtOnce
from mv_matcher_ros.training.detector.validation import (
    DetectorValidation,
    network_finder,
    sift_finder,
    teacher_finder,
)
from mv_matcher_ros.training.processes import Processes
from mv_matcher_ros.training.settings import StageSettings, TrainerSettings, read_train_settings
from mv_matcher_ros.training.trainer import BEST, Slice, Trainer

CONFIGS = Path(__file__).resolve().parents[2] / 'config' / 'train'


class Corners:
    """Corners of OpenCV, described by the grey values around them through a fixed matrix."""

    name, sha256 = 'corners', 'none'

    def __init__(self) -> None:
        self._mix = np.random.default_rng(0).normal(size=(81, DESCRIPTOR_SIZE))

    def teach(self, image: NDArray[np.uint8]) -> Taught:
        found = cv2.goodFeaturesToTrack(image, 60, 0.02, 5)
        xy = np.zeros((0, 2), np.float32) if found is None else found[:, 0]
        wide = cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_REFLECT).astype(np.float32)
        patches = [cv2.getRectSubPix(wide, (9, 9), (x + 4, y + 4)).ravel() for x, y in xy.tolist()]
        patches = np.array(patches).reshape(-1, 81)
        said = (patches - patches.mean(1, keepdims=True)) @ self._mix
        said /= np.linalg.norm(said, axis=1, keepdims=True) + 1e-9
        scores = torch.linspace(0.9, 0.5, len(xy))
        return Taught(torch.from_numpy(xy), scores, torch.from_numpy(said).float())


def picture(path: Path) -> Path:
    """Rectangles of all sizes and greys."""
    rng = np.random.default_rng(5)
    image = np.full((240, 320), 120, np.uint8)
    for _ in range(150):
        x, y = (int(rng.integers(0, side)) for side in (320, 240))
        w, h = (int(v) for v in rng.integers(5, 40, 2))
        cv2.rectangle(image, (x, y), (x + w, y + h), int(rng.integers(0, 255)), -1)
    cv2.imwrite(str(path), image)
    return path


def made(tmp_path: Path, **changes: Any) -> DetectorTask:
    settings = DetectorTraining.model_validate(
        {
            'width': 96,
            'pairs': 2,
            'keypoints': 64,
            'trainer': {'average': 0.5, 'validate_every': 40, 'log_every': 10},
            'stages': [{'steps': 40, 'learning_rate': 3e-3, 'warm_up': 2}],
            **changes,
        }
    )
    photos = [picture(tmp_path / 'a.png')]
    train = PhotoPairs(photos, (96, 72), 4)
    held = PhotoPairs(photos, (160, 120), 2, seed=1)
    validation = DetectorValidation.of({'photos': [held.pair(i) for i in range(2)]}, 80)
    return DetectorTask(
        settings, (train, None), TaughtOnce(Corners(), tmp_path / 'taught'), validation
    )


@pytest.mark.slow
def test_a_training_lowers_its_losses_and_saves_a_detector_that_runs(tmp_path: Path) -> None:
    task = made(tmp_path)
    here = Processes(0, 1, torch.device('cpu'))
    settings = TrainerSettings(average=0.5, validate_every=40, log_every=10)
    stages = (StageSettings(steps=40, learning_rate=3e-3, warm_up=2),)
    trainer = Trainer(task, settings, stages, tmp_path / 'out', here)
    assert trainer.run(Slice())
    log = (tmp_path / 'out' / 'log.jsonl').read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    train = [row for row in rows if row['kind'] == 'train']
    for name in ('presence', 'imitation', 'place'):
        assert train[-1][name] < 0.95 * train[0][name], name
    val = next(row for row in rows if row['kind'] == 'val')
    assert 0 <= val['photos_repeatability_3'] <= 100
    saved = read_weights(tmp_path / 'out' / BEST, 'detector')
    assert 'ALIKED' in saved.notes['teacher']
    assert 'BSD-3' in saved.notes['teacher']
    profile = json.loads(saved.profile)
    assert profile['unrelated_similarity'] == pytest.approx(val['unrelated'], abs=1e-3)
    run = load_settings(
        None,
        {'detector.name': 'learned', 'detector.weights': str(tmp_path / 'out' / BEST)},
    )
    image = cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_GRAYSCALE)
    features = Models.of(run).detector.detect(np.asarray(image, np.uint8))
    assert features.descriptors.shape[1] == 128


def test_batches_depend_on_the_step_only(tmp_path: Path) -> None:
    task = made(tmp_path)
    first = [task.batch(step, 0, 1) for step in range(3)]
    again = made(tmp_path).batch(2, 0, 1)
    for name, part in vars(first[2]).items():
        assert torch.equal(part, getattr(again, name)), name
    other = task.batch(1, 1, 2)
    assert not torch.equal(task.batch(1, 0, 2).images, other.images)
    assert first[0].images.shape == (4, 1, 72, 96)
    assert first[0].seen.any()


def test_all_detectors_are_measured_alike(tmp_path: Path) -> None:
    task = made(tmp_path)
    validation = task._validation
    finders = {
        'student': network_finder(task._student.eval(), 80),
        'sift': sift_finder(80),
        'teacher': teacher_finder(TaughtOnce(Corners(), tmp_path / 'taught')),
    }
    found = {name: validation.figures(find) for name, find in finders.items()}
    assert score(found['sift']) > score(found['student'])
    assert found['sift']['photos'].accuracy[2] > 50
    assert found['teacher']['photos'].repeatability[2] > 50
    unrelated = validation.unrelated_similarity(finders['sift'], 'photos')
    assert -1 <= unrelated <= 1


def test_folded_norms_change_nothing() -> None:
    torch.manual_seed(0)
    network = with_norms(DetectorNetwork(DETECTORS['light']))
    images = torch.rand(2, 1, 32, 40)
    network.train()
    for _ in range(3):
        network.dense(images)
    plain = folded(network)
    assert plain.state_dict().keys() == DetectorNetwork(DETECTORS['light']).state_dict().keys()
    for one, other in zip(
        vars(network.eval().dense(images)).values(),
        vars(plain.dense(images)).values(),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize('name', ['detector_light', 'detector_full'])
def test_the_shipped_settings_are_read(name: str) -> None:
    settings = read_train_settings(DetectorTraining, CONFIGS / f'{name}.yaml')
    assert settings.profile == name.removeprefix('detector_')
    with pytest.raises(SettingsError, match='colour'):
        read_train_settings(DetectorTraining, CONFIGS / f'{name}.yaml', {'colour': True})
