# SPDX-License-Identifier: Apache-2.0
"""One rendered tuple of five views can be learned by heart, and its poses follow."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import DetectorSettings, PoseEstimatorSettings
from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Features, Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import ClassicalDetector
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import MATCHERS
from mv_matcher_ros.models.view_batch import ViewBatch, padded
from mv_matcher_ros.odometry.pose_estimator import PoseEstimator
from mv_matcher_ros.training.data.labels import IGNORED, LabelView, match_labels, packed
from mv_matcher_ros.training.matcher.losses import confidence_loss, matching_loss, pose_angles
from mv_matcher_ros.worlds import scenes
from mv_matcher_ros.worlds.presets import make_rig
from mv_matcher_ros.worlds.rendering import render
from mv_matcher_ros.worlds.trajectories import pose_matrices

KEYPOINTS, STEPS = 256, 120
POSITIONS_M = np.array([
    [-2.4, -1.2, 1.35], [-1.9, -1.0, 1.2], [-1.5, -1.5, 1.5], [-1.1, -0.8, 1.3], [-2.0, -0.5, 1.5],
])  # fmt: skip
ROLL_PITCH_YAW = np.array([
    [0, 0, 0.3], [0.02, 0.03, 0.35], [0, -0.03, 0.2], [0.03, 0, 0.4], [-0.03, 0.02, 0.1],
])  # fmt: skip
PAIRS = list(combinations(range(5), 2))


def rendered_tuple() -> tuple[list[Features], list[LabelView], tuple[float, ...]]:
    """SIFT features of five views of a room, with depth and pose."""
    # Keypoints are off by a fraction of a pixel: large images leave little of it as an angle.
    world, camera = scenes.room(3), make_rig('mono', (1600, 1200)).cameras[0]
    settings = DetectorSettings(name='sift', max_keypoints=KEYPOINTS, working_pixels=0)
    detector = ClassicalDetector(settings)
    fx, fy, cx, cy = camera.intrinsics
    intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).double()
    features, views = [], []
    for pose in pose_matrices(POSITIONS_M, ROLL_PITCH_YAW) @ REP103_FROM_OPTICAL:
        image, depth = render(world, camera, pose)
        features.append(detector.detect(image))
        place = torch.from_numpy(pose)
        views.append(
            LabelView(features[-1].keypoints_xy, torch.from_numpy(depth), intrinsics, place)
        )
    return features, views, camera.intrinsics


@pytest.mark.slow
def test_a_tuple_of_five_views_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    features, views, (fx, fy, cx, cy) = rendered_tuple()
    batch = ViewBatch.of(features)
    sides = zip(*(match_labels(views[a], views[b]) for a, b in PAIRS), strict=True)
    partner_a, partner_b = (packed(side, batch.capacity)[None] for side in sides)
    network = MatcherNetwork(MATCHERS['light'].model_copy(update={'blocks': 2}))
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        made = network(batch)
        loss = matching_loss(made, partner_a, partner_b) + confidence_loss(made, partner_a)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        made = network.eval()(batch)
    sure = (made.confidence > 0.5) & (partner_a != IGNORED)
    right = sure & (made.partner == partner_a)
    precision = float(right.sum() / sure.sum())
    recall = float(right.sum() / (partner_a >= 0).sum())
    matches = made.matches()
    kept = matches.confidence > 0.5
    matches = Matches(matches.views[kept], matches.keypoints[kept], matches.confidence[kept])
    plane = (batch.keypoints_xy[0] - torch.tensor([cx, cy])) / torch.tensor([fx, fy])
    sigma = torch.stack([padded(f.sigma_px, batch.capacity) for f in features]).double() / fx
    found = PoseEstimator(PoseEstimatorSettings()).estimate(plane.double(), sigma, matches)
    truth = torch.stack([view.world_from_camera for view in views])
    relative, expected = (
        se3.inverse(poses[:1]) @ poses[1:] for poses in (found.world_from_body, truth)
    )
    rotation, translation = map(torch.rad2deg, pose_angles(relative, expected))
    print(
        f'{int((partner_a >= 0).sum())} labelled matches, precision {precision:.4f}, recall '
        f'{recall:.4f}, rotation {rotation.max():.3f} deg, translation {translation.mean():.3f} '
        f'deg mean {translation.max():.3f} deg largest, {found.methods}'
    )
    assert precision >= 0.99
    assert recall >= 0.97
    assert float(rotation.max()) < 0.1
    assert float(translation.max()) < 0.1
