# SPDX-License-Identifier: Apache-2.0
"""Clips of random points with known poses, and what a matcher would say of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.datatypes import Camera, Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.sinkhorn import log_optimal_transport
from mv_matcher_ros.odometry.view_tree import ViewSetup
from mv_matcher_ros.training.adaptation.structure import Structure
from mv_matcher_ros.training.adaptation.views import ClipViews

CAMERA = Camera(640, 480, (500.0, 500.0, 319.5, 239.5))
STEP = 0.3
WIDTH = 32


@dataclass(frozen=True)
class ClipScene:
    """A clip with a known answer.

    Attributes:
        views: of the clip; keypoint k of view v shows point `shows[v, k]`, −1: none.
        world_from_camera: (V, 4, 4) truth.
        world: (P, 3) points.
        pairs: (P, 2) of views.
        scores: (P, N, N) similarities.
        matches: that are true.
    """

    views: ClipViews
    shows: Tensor
    world_from_camera: Tensor
    world: Tensor
    pairs: Tensor
    scores: Tensor
    matches: Matches

    def log_probability(self, scores: Tensor | None = None) -> Tensor:
        """(P, N + 1, N + 1) of the transport of these scores."""
        given = self.scores if scores is None else scores
        a, b = self.pairs.T
        valid = self.views.valid
        dustbin = given.new_tensor(8.0)
        return log_optimal_transport(given, dustbin, valid[a], valid[b], 20, 'kernel')


def clip_scene(
    seed: int = 0,
    views: int = 4,
    points: int = 120,
    strays: int = 30,
    noise_px: float = 0.3,
    seen: float = 0.9,
    poses: Tensor | None = None,
) -> ClipScene:
    """A camera that moves sideways and turns a little, in front of points 4 to 9 away."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if poses is None:
        motion = torch.zeros(views, 6, dtype=torch.float64)
        motion[:, 0] = STEP * torch.arange(views)
        motion[1:, :3] += 0.05 * normal(views - 1, 3)
        motion[1:, 3:] = 0.02 * normal(views - 1, 3)
        poses = se3.exp(motion)
    views = len(poses)
    cube = torch.rand(points, 3, generator=generator, dtype=torch.float64)
    world = cube * torch.tensor([4.0, 3.0, 5.0]) + torch.tensor([-1.6, -1.5, 4.0])
    local = se3.transform(se3.inverse(poses), world)
    plane = local[..., :2] / local[..., 2:] + noise_px / CAMERA.focal_px * normal(views, points, 2)
    stray = torch.rand(views, strays, 2, generator=generator, dtype=torch.float64)
    stray = (stray - 0.5) * torch.tensor([1.2, 0.9])
    look = functional.normalize(normal(points, WIDTH), dim=1)
    room = points + strays
    everyone = torch.cat([plane, stray], dim=1)
    appears = torch.cat(
        [
            look + 0.05 * normal(views, points, WIDTH),
            functional.normalize(normal(views, strays, WIDTH), dim=2),
        ],
        dim=1,
    )
    shows = torch.full((views, room), -1, dtype=torch.int64)
    xy, descriptors = torch.empty_like(everyone), torch.empty_like(appears)
    for view in range(views):
        order = torch.randperm(room, generator=generator)
        hidden = torch.rand(room, generator=generator) > seen
        point = torch.where((order < points) & ~hidden, order, -1)
        shows[view], xy[view] = point, everyone[view, order]
        descriptors[view] = functional.normalize(appears[view, order], dim=1)
        # What is hidden is seen by no keypoint at its place.
        gone = (order < points) & hidden
        xy[view, gone] = 2.0 + normal(int(gone.sum()), 2).abs()
        descriptors[view, gone] = functional.normalize(normal(int(gone.sum()), WIDTH), dim=1)
    valid = torch.ones(views, room, dtype=torch.bool)
    clip = ClipViews(xy, valid, descriptors.float(), (CAMERA,) * views, ViewSetup.separate(views))
    pairs = torch.tensor(list(combinations(range(views), 2)))
    a, b = pairs.T
    scores = 20.0 * descriptors[a] @ descriptors[b].mT
    return ClipScene(clip, shows, poses, world, pairs, scores, _true(shows, pairs))


def _true(shows: Tensor, pairs: Tensor) -> Matches:
    found, keypoints = [], []
    for a, b in pairs.tolist():
        same = (shows[a][:, None] == shows[b]) & (shows[a] >= 0)[:, None]
        which = same.nonzero()
        found.append(torch.tensor([[a, b]]).expand(len(which), 2))
        keypoints.append(which)
    joined = torch.cat(keypoints)
    return Matches(torch.cat(found), joined, torch.full((len(joined),), 0.9))


def with_wrong(matches: Matches, share: float, seed: int = 0) -> Matches:
    """A share of the matches with the partner of another one."""
    generator = torch.Generator().manual_seed(seed)
    keypoints = matches.keypoints.clone()
    wrong = torch.rand(len(matches), generator=generator) < share
    keypoints[wrong, 1] = keypoints[wrong, 1].roll(1)
    return Matches(matches.views, keypoints, matches.confidence)


def motion_errors(found: Structure, scene: ClipScene) -> tuple[float, float]:
    """Largest error of rotation, and of direction from the first view, degrees."""
    estimate = found.camera_from_world
    truth = se3.inverse(scene.world_from_camera)
    one = estimate @ se3.inverse(estimate[:1])
    other = truth @ se3.inverse(truth[:1])
    turn = one[:, :3, :3].mT @ other[:, :3, :3]
    cosine = (0.5 * (turn.diagonal(dim1=1, dim2=2).sum(1) - 1.0)).clamp(-1.0, 1.0)
    a, b = (functional.normalize(x[1:, :3, 3], dim=1) for x in (one, other))
    across = torch.linalg.cross(a, b).norm(dim=1)
    direction = torch.atan2(across, (a * b).sum(1))
    return float(torch.rad2deg(cosine.arccos()).max()), float(torch.rad2deg(direction).max())
