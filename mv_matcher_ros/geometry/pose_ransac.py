# SPDX-License-Identifier: Apache-2.0
"""Robust start of an absolute pose: many P3P hypotheses scored together, the best ones refined.

Sources: Fischler and Bolles, RANSAC, 1981; Torr and Zisserman, MLESAC, CVIU 78, 2000 (the
truncated score, MSAC); Chum, Matas and Kittler, Locally optimized RANSAC, 2003; Chum and Matas,
PROSAC, CVPR 2005 (samples by confidence; here in proportion to it).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.absolute_pose import refine_absolute_pose
from mv_matcher_ros.geometry.epipolar import homogeneous
from mv_matcher_ros.geometry.p3p import p3p
from mv_matcher_ros.geometry.shapes import check, check_same_type

# Four matches fix the one pose among the up to four of three; a fifth confirms it.
MIN_INLIERS = 5
# Candidates of a round are ranked on this many matches, the best ones scored on all.
_RANKING_MATCHES = 200
_SCORED_FULLY = 32
_REFINED = 4


@dataclass(frozen=True)
class RansacPose:
    """Result of the robust start.

    Attributes:
        camera_from_world: (4, 4); NaN where there is none.
        inliers: (N,) bool, within the threshold and in front of the camera.
        score: mean truncated squared error in units of the threshold, weighted; 1 is no inlier.
        hypotheses: how many samples were drawn.
        valid: at least `MIN_INLIERS` inliers.
    """

    camera_from_world: torch.Tensor
    inliers: torch.Tensor
    score: float
    hypotheses: int
    valid: bool


@torch.no_grad()
def estimate_absolute_pose(
    world_points: torch.Tensor,
    normalised_xy: torch.Tensor,
    threshold: float,
    weights: torch.Tensor | None = None,
    *,
    guesses: torch.Tensor | None = None,
    hypotheses: int = 256,
    max_rounds: int = 8,
    confidence: float = 0.999,
    least_share: float = 0.0,
    seed: int = 0,
) -> RansacPose:
    """Pose from 2D-3D matches of which many may be wrong. The same seed gives the same result.

    Args:
        world_points: (N, 3); N may be zero.
        normalised_xy: (N, 2) observations; rows not finite count as absent.
        threshold: largest reprojection error of an inlier, units of the normalised plane.
        weights: (N,) confidences: samples are drawn and scores summed in proportion; None is ones.
        guesses: (K, 4, 4) camera_from_world poses to score along with the hypotheses.
        hypotheses: samples a round.
        max_rounds: rounds at most.
        confidence: stop when a sample without outlier was drawn with this probability.
        least_share: of the matches must agree for the pose to be of use, 0 to 1; poses that fewer
            agree with are not searched for longer than that takes.
        seed: of the samples.

    Returns:
        RansacPose. No gradient: refine from here with `refine_absolute_pose`, which has one.

    Raises:
        GeometryError: shapes or types disagree, threshold not positive.
    """
    check('world_points', world_points, -1, 3)
    check('normalised_xy', normalised_xy, world_points.shape[-2], 2)
    if weights is None:
        weights = torch.ones_like(normalised_xy[..., 0])
    check('weights', weights, world_points.shape[-2])
    check_same_type(world_points=world_points, normalised_xy=normalised_xy, weights=weights)
    if world_points.dim() != 2:
        raise GeometryError(f'one set of matches at a time, got {tuple(world_points.shape)}')
    if not threshold > 0:
        raise GeometryError(f'threshold must be positive, got {threshold}')
    usable = world_points.isfinite().all(-1) & normalised_xy.isfinite().all(-1)
    usable = usable & weights.isfinite() & (weights > 0)
    problem = _Matches(
        torch.where(usable[:, None], world_points, 0.0),
        torch.where(usable[:, None], normalised_xy, 0.0),
        torch.where(usable, weights, 0.0),
        threshold,
    )
    return _search(problem, guesses, hypotheses, max_rounds, confidence, least_share, seed)


@dataclass(frozen=True)
class _Matches:
    points: torch.Tensor
    xy: torch.Tensor
    weights: torch.Tensor
    threshold: float

    def at(self, index: torch.Tensor) -> _Matches:
        return _Matches(self.points[index], self.xy[index], self.weights[index], self.threshold)


def _search(
    matches: _Matches,
    guesses: torch.Tensor | None,
    hypotheses: int,
    max_rounds: int,
    confidence: float,
    least_share: float,
    seed: int,
) -> RansacPose:
    usable = int((matches.weights > 0).sum())
    best = torch.full((4, 4), torch.nan, dtype=matches.xy.dtype, device=matches.xy.device)
    best_cost = torch.ones((), dtype=matches.xy.dtype, device=matches.xy.device)
    drawn = 0
    if usable >= 3:
        generator = torch.Generator().manual_seed(seed)
        for number in range(max_rounds):
            poses = _hypotheses(matches, hypotheses, generator)
            if guesses is not None and number == 0:
                poses = torch.cat((guesses.to(poses), poses))
            drawn += hypotheses
            found, cost = _best_of(matches, poses, generator)
            if cost < best_cost:
                best, best_cost = found, cost
            share = float((_errors(matches, best[None])[0] < 1.0).sum()) / usable
            if _enough(drawn, max(share, least_share), confidence):
                break
    inliers = _errors(matches, best[None])[0] < 1.0
    inliers = inliers & (matches.weights > 0)
    valid = int(inliers.sum()) >= MIN_INLIERS
    if not valid:
        best, inliers = torch.full_like(best, torch.nan), torch.zeros_like(inliers)
    return RansacPose(best, inliers, float(best_cost), drawn, valid)


def _hypotheses(matches: _Matches, count: int, generator: torch.Generator) -> torch.Tensor:
    """Poses (K, 4, 4) of `count` random triples. A triple that repeats a match has none."""
    weights = matches.weights.detach().cpu().double()
    # multinomial takes at most 2^24 categories; no frame has as many matches.
    index = torch.multinomial(weights, 3 * count, replacement=True, generator=generator)
    index = index.to(matches.xy.device).reshape(count, 3)
    poses, valid = p3p(matches.points[index], homogeneous(matches.xy)[index])
    return poses[valid]


def _errors(matches: _Matches, poses: torch.Tensor) -> torch.Tensor:
    """Squared reprojection errors (K, N) over the squared threshold; inf behind the camera."""
    camera = poses[:, :3, :3] @ matches.points.mT + poses[:, :3, 3:]
    depth = camera[:, 2]
    ahead = depth > 0
    inverse = 1.0 / (torch.where(ahead, depth, 1.0) * matches.threshold)
    target = matches.xy / matches.threshold
    dx = camera[:, 0] * inverse - target[:, 0]
    dy = camera[:, 1] * inverse - target[:, 1]
    return torch.where(ahead, dx * dx + dy * dy, torch.inf)


def _costs(matches: _Matches, poses: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the truncated errors (K,): MSAC."""
    truncated = _errors(matches, poses).clamp_max(1.0)
    return truncated @ matches.weights / matches.weights.sum().clamp_min(1e-30)


def _best_of(
    matches: _Matches, poses: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best pose and its cost after ranking, full scoring and refinement of the few best."""
    if len(poses) == 0:
        nothing = torch.full((4, 4), torch.nan, dtype=matches.xy.dtype, device=matches.xy.device)
        return nothing, matches.weights.new_tensor(1.0)
    if len(matches.points) > 2 * _RANKING_MATCHES and len(poses) > _SCORED_FULLY:
        some = torch.randperm(len(matches.points), generator=generator)[:_RANKING_MATCHES]
        ranking = _costs(matches.at(some.to(poses.device)), poses)
        poses = poses[ranking.argsort(stable=True)[:_SCORED_FULLY]]
    costs = _costs(matches, poses)
    poses = poses[costs.argsort(stable=True)[:_REFINED]]
    refined = poses
    for _ in range(2):
        inside = (_errors(matches, refined) < 1.0).to(poses.dtype) * matches.weights
        refined = refine_absolute_pose(
            matches.points,
            matches.xy,
            refined,
            inside / (matches.threshold**2),
            kernel='huber',
            kernel_width=0.5,
            iterations=4,
        ).camera_from_world
    candidates = torch.cat((poses, refined))
    costs = _costs(matches, candidates)
    best = costs.argmin()
    return candidates[best], costs[best]


def _enough(drawn: int, inlier_share: float, confidence: float) -> bool:
    """At the inlier share found, was an all-inlier triple drawn with this confidence?"""
    good = inlier_share**3
    if good >= 1.0:
        return True
    return good > 0.0 and drawn >= log(1.0 - confidence) / log(1.0 - good)
