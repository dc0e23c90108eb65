# SPDX-License-Identifier: Apache-2.0
"""What keypoints are worth, against how often they are seen in a known scene."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clip_scenes import ClipScene, clip_scene, with_wrong

from mv_matcher_ros.models.detector import DenseFeatures
from mv_matcher_ros.models.matcher import pair_index
from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.structure import Structure, StructureSolver
from mv_matcher_ros.training.adaptation.verdicts import verdicts
from mv_matcher_ros.training.adaptation.worth import density_moved, ranking_loss, worth

LIMIT_PX = 2.5


def partners(scene: ClipScene) -> torch.Tensor:
    made = torch.full((len(scene.pairs), scene.shows.shape[1]), -1, dtype=torch.int64)
    for number, (a, b) in enumerate(scene.pairs.tolist()):
        keypoints, _ = scene.matches.pair(a, b)
        made[number, keypoints[:, 0]] = keypoints[:, 1]
    return made


def judged(scene: ClipScene, made: torch.Tensor) -> torch.Tensor:
    found = StructureSolver(StructureSettings()).solve(
        scene.views, scene.matches, least_similarity=0.5
    )
    assert isinstance(found, Structure)
    pairs = pair_index(len(scene.shows))
    said = verdicts(scene.views, found, pairs, made, LIMIT_PX)
    return worth(scene.views, found, pairs, made, said.wrong, LIMIT_PX)


def times_seen(scene: ClipScene) -> torch.Tensor:
    """(V, N) in how many views the point of each keypoint is seen; 0 for strays."""
    points = torch.arange(len(scene.world))
    seen = (scene.shows[:, :, None] == points).any(1).sum(0)
    return torch.where(scene.shows >= 0, seen[scene.shows.clamp_min(0)], 0)


def test_worth_grows_with_the_share_of_the_other_views_that_see_the_point() -> None:
    scene = clip_scene(seen=0.7, noise_px=0.2)
    value, seen = judged(scene, partners(scene)), times_seen(scene)
    everywhere = (seen == 4) & ~value.isnan()
    assert float((value[everywhere] == 1.0).double().mean()) > 0.95
    means = [float(value[(seen == n) & ~value.isnan()].mean()) for n in (1, 2, 3, 4)]
    assert means == sorted(means)
    assert means[0] < 0.02
    # Where the point leaves an image it need not be seen there: more than 1/3 and 2/3 as share.
    assert 0.66 < means[1] < 0.85
    assert 0.83 < means[2] < 0.98


def test_strays_are_worth_nothing_also_when_they_are_matched_wrongly() -> None:
    scene = clip_scene(strays=40)
    made = partners(scene)
    strays = scene.shows < 0
    assert float(judged(scene, made)[strays].nan_to_num(1.0).mean()) < 0.05
    for number, (a, b) in enumerate(scene.pairs.tolist()):
        here, there = strays[a].nonzero()[:, 0], strays[b].nonzero()[:, 0]
        count = min(len(here), len(there))
        made[number, here[:count]] = there[:count]
    value = judged(scene, made)
    # Some of these happen to lie on their lines: nobody knows.
    assert float(value[strays].isnan().double().mean()) < 0.5
    assert float(value[strays & ~value.isnan()].mean()) < 0.05


def test_of_a_match_without_a_point_nobody_knows() -> None:
    scene = clip_scene(noise_px=0.2)
    made = partners(scene)
    found = StructureSolver(StructureSettings()).solve(
        scene.views, scene.matches, least_similarity=0.5
    )
    assert isinstance(found, Structure)
    nothing = torch.zeros_like(made, dtype=torch.bool)
    kept = torch.arange(len(found)) >= 20  # the first twenty points are not known
    smaller = Structure(
        found.problem, found.track, found.view, found.table[kept], found.camera_from_world,
        found.seen, found.points[kept], found.residual_px[kept],
    )  # fmt: skip
    pairs = pair_index(len(scene.shows))
    value = worth(scene.views, smaller, pairs, made, nothing, LIMIT_PX)
    gone = found.table[:20]
    of_gone = [float(value[view, gone[k, view]]) for k in range(20) for view in range(4)
               if gone[k, view] >= 0]  # fmt: skip
    assert sum(v != v for v in of_gone) > 0.9 * len(of_gone)


def test_wrong_matches_do_not_make_a_keypoint_worth_more() -> None:
    scene = clip_scene(noise_px=0.2)
    value = judged(scene, partners(scene))
    wrong = with_wrong(scene.matches, 0.2)
    made = torch.full_like(partners(scene), -1)
    for number, (a, b) in enumerate(scene.pairs.tolist()):
        keypoints, _ = wrong.pair(a, b)
        made[number, keypoints[:, 0]] = keypoints[:, 1]
    other = judged(scene, made)
    both = ~value.isnan() & ~other.isnan()
    assert torch.equal(value[both], other[both])


def test_the_loss_puts_scores_in_order() -> None:
    value = torch.tensor([1.0, 0.0, 0.5, float('nan')])
    scores = torch.zeros(4, requires_grad=True)
    for _ in range(200):
        loss = ranking_loss(scores, value)
        (slope,) = torch.autograd.grad(loss, scores)
        scores = (scores - slope).detach().requires_grad_()
    best, worst, middle, unknown = scores.tolist()
    assert best > middle > worst
    assert unknown == 0.0
    assert loss.item() < 0.1


def test_density_is_that_of_before_or_dear() -> None:
    logits = torch.randn(1, 65, 6, 8, generator=torch.Generator().manual_seed(0))

    def said(shift: float) -> DenseFeatures:
        moved = logits.clone()
        moved[:, :-1] += shift
        nothing = torch.zeros(1, 1, 1, 1)
        return DenseFeatures(nothing[0], moved.log_softmax(1), nothing, nothing)

    assert density_moved(said(0.0), said(0.0)).item() == 0.0
    fewer, more = density_moved(said(0.0), said(-3.0)), density_moved(said(-3.0), said(0.0))
    assert fewer.item() == pytest.approx(more.item(), rel=1e-4)
    assert fewer.item() > density_moved(said(0.0), said(-1.0)).item() > 0.0


def test_nothing_known_or_all_alike_is_no_loss() -> None:
    scores = torch.randn(5, requires_grad=True)
    for value in (torch.full((5,), torch.nan), torch.ones(5)):
        loss = ranking_loss(scores, value)
        assert loss.item() == 0.0
        loss.backward()
