# SPDX-License-Identifier: Apache-2.0
"""Settings of an adaptation: every default, range and description."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mv_matcher_ros.config import PoseEstimatorSettings, Section
from mv_matcher_ros.training.settings import StageSettings, TrainerSettings

Part = Literal['matcher', 'confidence', 'descriptors', 'places', 'keypoints']


class ClipSettings(Section):
    """Which frames of a recording become clips."""

    views: int = Field(5, ge=3, le=6, description='Times of a clip; with two cameras half of it.')
    strides: tuple[int, ...] = Field(
        (1, 2), min_length=1, description='Chosen frames from one view of a clip to the next.'
    )
    parallax_px: float = Field(
        6.0,
        gt=0.0,
        description='A frame is chosen once the nearer points moved this far by translation (at '
        '640 px width).',
    )
    min_overlap: float = Field(
        0.7, gt=0.0, lt=1.0, description='Or once fewer points than this share are still seen.'
    )
    most: int = Field(240, ge=4, description='Clips at most, spread over the recording.')
    fewest: int = Field(8, ge=1, description='Fewer clips to learn from teach nothing.')
    held_out: float = Field(
        0.25, gt=0.0, lt=0.8, description='Last share of the recording that judges, not teaches.'
    )


class StructureSettings(Section):
    """The lower level: poses and points of a clip from its matches."""

    noise_px: float = Field(
        1.0, gt=0.0, description='Standard deviation of a keypoint: the unit of residuals.'
    )
    kernel_width: float = Field(1.0, gt=0.0, description='Of the Cauchy kernel, in that unit.')
    inlier_px: float = Field(
        2.5, gt=0.0, description='Observations with a larger residual are dropped.'
    )
    rounds: int = Field(
        3, ge=2, le=10, description='Rounds of adjusting, dropping, growing and merging.'
    )
    grow_px: float = Field(
        2.0, ge=0.0, description='A point is seen by the keypoint nearest to it within this.'
    )
    min_parallax_deg: float = Field(
        0.5, ge=0.0, description='Points whose rays meet at less are left out.'
    )
    min_tracks: int = Field(25, ge=8, description='Fewer points are no structure.')
    min_share: float = Field(
        0.3, ge=0.0, le=1.0, description='Least share of the matches that the structure explains.'
    )
    iterations: int = Field(30, ge=1, description='Of bundle adjustment in the last round.')
    poses: PoseEstimatorSettings = PoseEstimatorSettings()


class AdaptationTrainer(TrainerSettings):
    """The loop, for a network that has learned before."""

    weight_decay: float = Field(0.0, ge=0.0, description='Of AdamW.')
    average: float = Field(
        0.99, ge=0.0, lt=1.0, description='Decay a step of the average that is kept.'
    )
    validate_every: int = Field(
        10_000, ge=1, description='Steps between validations; and at the end.'
    )
    checkpoint_every: int = Field(50, ge=1, description='Steps between checkpoints.')
    log_every: int = Field(10, ge=1, description='Steps between lines of the log.')


class AdaptationStage(StageSettings):
    """How long, and how fast."""

    name: str = Field('adapt', description='What the log calls it.')
    steps: int = Field(100, ge=1, description='Steps of the optimiser.')
    learning_rate: float = Field(5e-4, gt=0.0, description='Its peak, after the warm-up.')
    warm_up: int = Field(20, ge=0, description='Steps in which the learning rate grows.')
    clip: float = Field(0.5, gt=0.0, description='Largest norm of the gradient.')


class AdaptationSettings(Section):
    """One adaptation."""

    learns: tuple[Part, ...] = Field(
        ('places',),
        min_length=1,
        description='What changes: the graph, the confidences, and of the detector the head of '
        'descriptors and that of places between pixels.',
    )
    keypoints: int = Field(400, ge=64, le=4096, description='Of a view in a step.')
    spare_keypoints: float = Field(
        1.5, ge=1.0, description='So many times as many are found; a step takes some of them.'
    )
    clips_per_step: int = Field(2, ge=1, description='Whose gradients are averaged.')
    reach_px: float = Field(
        12.0, gt=0.0, description='A match is the mean over keypoints within this distance.'
    )
    reach_keypoints: int = Field(8, ge=1, description='And so many at most.')
    min_confidence: float = Field(
        0.1, ge=0.0, le=1.0, description='Of matches that the lower level begins with.'
    )
    verdict_px: float = Field(
        1.5, gt=0.0, description='A match is right within this distance of its point.'
    )
    objective_weight: float = Field(
        10.0, ge=0.0, description='Of the objective of bundle adjustment at its optimum.'
    )
    match_weight: float = Field(
        1.0, ge=0.0, description='Of the likelihood of what bundle adjustment says is a match.'
    )
    confidence_weight: float = Field(
        0.5, ge=0.0, description='Of its verdict on each match that was made.'
    )
    choice_weight: float = Field(
        1.0, ge=0.0, description='Of scores that rank keypoints by how often they are seen again.'
    )
    keep: float = Field(
        1.0, ge=0.0, description='Of staying with the places and scores there were.'
    )
    control: Literal['none', 'shuffled'] = Field(
        'none',
        description='For comparison: partners are dealt out anew before the lower level.',
    )
    clips: ClipSettings = ClipSettings()
    structure: StructureSettings = StructureSettings()
    trainer: AdaptationTrainer = AdaptationTrainer()
    stage: AdaptationStage = AdaptationStage()
