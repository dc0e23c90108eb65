# SPDX-License-Identifier: Apache-2.0
"""A step of adaptation: what learns, what does not, and what wrong matches teach."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Flight

from mv_matcher_ros.config import Settings
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.matcher import Assignment
from mv_matcher_ros.models.shipped import shipped
from mv_matcher_ros.models.weights import load_detector, load_matcher, read_notes, tensors_hash
from mv_matcher_ros.training.adaptation.guard import Judge
from mv_matcher_ros.training.adaptation.settings import AdaptationSettings
from mv_matcher_ros.training.adaptation.task import AdaptationTask, refuted_loss
from mv_matcher_ros.training.joint_task import DETECTOR_FILE, JointNetwork

EVERYTHING = ('matcher', 'confidence', 'descriptors', 'places', 'keypoints')


def task_of(flight: Flight, **changes: object) -> AdaptationTask:
    settings = AdaptationSettings.model_validate({
        'keypoints': 150, 'clips_per_step': 1, 'learns': ('matcher', 'confidence'), **changes,
    })  # fmt: skip
    return AdaptationTask(
        settings,
        Settings(),
        flight.rig,
        flight.teach,
        load_detector(shipped('detector')['light']),
        load_matcher(shipped('matcher')['light']),
    )


def learned(network: JointNetwork) -> set[str]:
    return {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


@pytest.mark.parametrize('of', ['flight', 'stereo_flight'])
def test_a_clip_teaches_every_part_that_learns(request: pytest.FixtureRequest, of: str) -> None:
    task = task_of(request.getfixturevalue(of), learns=EVERYTHING)
    network = task.network.train()
    losses = task.losses(network, task.batch(0, 0, 1))
    assert float(losses['solved']) == 1.0
    assert float(losses['tracks']) > 40
    assert 0.0 < float(losses['objective']) < 1.0
    losses['loss'].backward()
    names = learned(network)
    for name in (
        'matcher.layers.0.update.0.weight',
        'matcher.final.weight',
        'matcher.confidence.together.weight',
        'detector.descriptor.weight',
        'detector.subpixel.3.weight',
        'detector.score.weight',
    ):
        assert name in names, name
    assert not any(n.startswith('detector.encoder') for n in names)
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize('part', EVERYTHING)
def test_only_what_is_named_learns(flight: Flight, part: str) -> None:
    task = task_of(flight, learns=(part,))
    network = task.network.train()
    task.losses(network, task.batch(0, 0, 1))['loss'].backward()
    begins = {
        'matcher': 'matcher.',
        'confidence': 'matcher.confidence',
        'descriptors': 'detector.descriptor',
        'places': 'detector.subpixel',
        'keypoints': ('detector.score', 'detector.detail'),
    }[part]
    names = learned(network)
    assert names
    assert all(name.startswith(begins) for name in names)
    if part == 'matcher':
        assert not any(name.startswith('matcher.confidence') for name in names)


def test_confidences_get_nothing_from_the_objective_or_the_likelihood(flight: Flight) -> None:
    # Nothing that bundle adjustment weighs by may learn from its objective: it would go to zero.
    task = task_of(flight, confidence_weight=0.0, match_weight=0.0)
    network = task.network.train()
    task.losses(network, task.batch(0, 0, 1))['loss'].backward()
    assert not any(name.startswith('matcher.confidence') for name in learned(network))


def test_shuffled_matches_teach_nothing(flight: Flight) -> None:
    task = task_of(flight, control='shuffled')
    network = task.network.train()
    for step in range(3):
        losses = task.losses(network, task.batch(step, 0, 1))
        assert float(losses['solved']) == 0.0
        assert float(losses['loss']) == 0.0


def test_a_wrong_match_is_worth_the_less_the_more_probable_it_is() -> None:
    probability = torch.full((1, 1, 3, 3), 0.01)
    probability[0, 0, 0, 0], probability[0, 0, 1, 1] = 0.9, 0.5
    logarithm = probability.log().requires_grad_()
    made = Assignment(
        torch.tensor([[0, 1]]), logarithm, torch.tensor([[[0, 1]]]), torch.zeros(1, 1, 2),
        torch.ones(1, 1, 2),
    )  # fmt: skip
    wrong = torch.tensor([[[True, False]]])
    loss = refuted_loss(made, made.partner, wrong)
    assert float(loss.detach()) == pytest.approx(-math.log(0.1), rel=1e-4)
    loss.backward()
    assert logarithm.grad is not None
    assert float(logarithm.grad[0, 0, 0, 0]) > 0.0
    assert float(logarithm.grad[0, 0, 1, 1]) == 0.0
    assert float(refuted_loss(made, made.partner, torch.zeros_like(wrong)).detach()) == 0.0


@pytest.mark.slow
def test_learning_lowers_the_loss(flight: Flight) -> None:
    task = task_of(flight, learns=EVERYTHING)
    network = task.network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.0)
    batch = task.batch(0, 0, 1)
    found = []
    for _ in range(12):
        optimiser.zero_grad()
        losses = task.losses(network, batch)
        losses['loss'].backward()
        optimiser.step()
        found.append(float(losses['loss'].detach()))
    # What is solved changes from step to step, and the loss with it.
    assert sum(found[-3:]) < 0.9 * sum(found[:3])


def test_batches_go_by_the_number_of_the_step(flight: Flight) -> None:
    task = task_of(flight)
    first = [task.batch(step, 0, 1).clips for step in range(len(flight.teach))]
    assert first == [task.batch(step, 0, 1).clips for step in range(len(flight.teach))]
    assert sorted(clip for clips in first for clip in clips) == list(range(len(flight.teach)))
    assert task.batch(0, 0, 2) != task.batch(0, 1, 2)


@pytest.mark.slow
def test_what_is_saved_runs(flight: Flight, tmp_path: Path) -> None:
    task = task_of(flight, learns=EVERYTHING)
    half = copy.deepcopy(task.network).half()
    task.save(half, tmp_path / 'best.safetensors', {'trained': 'test'})
    settings = Settings.model_validate({
        'matching': {'matcher': 'multiview', 'weights': str(tmp_path / 'best.safetensors')},
        'detector': {'weights': str(tmp_path / DETECTOR_FILE)},
    })  # fmt: skip
    models = Models.of(settings)
    assert models.graph is not None
    figures = Judge(flight.judge[:2], flight.rig).figures(models.detector, models.graph)
    assert all(not one.fault for one in figures)
    assert all(one.tracks > 50 for one in figures)


@pytest.mark.parametrize('learns', [('places', 'keypoints'), ('places', 'descriptors')])
def test_a_detector_says_whose_descriptors_it_still_gives(
    flight: Flight, tmp_path: Path, learns: tuple[str, ...]
) -> None:
    task = task_of(flight, learns=learns)
    before = tensors_hash(load_detector(shipped('detector')['light']).state_dict())
    task.save(copy.deepcopy(task.network).half(), tmp_path / 'best.safetensors', {})
    said = read_notes(tmp_path / DETECTOR_FILE).get('describes_as')
    assert said == (None if 'descriptors' in learns else before)


def test_a_detector_that_does_not_learn_is_not_written(flight: Flight, tmp_path: Path) -> None:
    task = task_of(flight)
    task.save(copy.deepcopy(task.network).half(), tmp_path / 'best.safetensors', {})
    assert not (tmp_path / DETECTOR_FILE).exists()
    settings = Settings.model_validate({
        'matching': {'matcher': 'multiview', 'weights': str(tmp_path / 'best.safetensors')},
    })  # fmt: skip
    Models.of(settings)  # belongs to the shipped detector
