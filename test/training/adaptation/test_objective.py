# SPDX-License-Identifier: Apache-2.0
"""The upper level: its gradient is that of the whole bilevel problem, and nothing can cheat it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from clip_scenes import ClipScene, clip_scene, with_wrong

from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.reprojection import cost
from mv_matcher_ros.training.adaptation.objective import ExpectedPlaces, objective_at_optimum
from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.structure import Structure, StructureSolver

SOLVER = StructureSolver(StructureSettings(grow_px=0.0))


def places_of(
    scene: ClipScene, scores: Tensor | None = None, plane_xy: Tensor | None = None
) -> ExpectedPlaces:
    views = scene.views
    xy = views.plane_xy if plane_xy is None else plane_xy
    return ExpectedPlaces.of(
        xy, views.valid, views.pixel, scene.pairs, scene.log_probability(scores), 12.0, 8
    )


def solved(scene: ClipScene, places: ExpectedPlaces) -> Structure:
    found = SOLVER.solve(scene.views, with_wrong(scene.matches, 0.05), places.detached())
    assert isinstance(found, Structure)
    return found


def bilevel(structure: Structure, measured: Tensor, iterations: int, unroll: bool) -> Tensor:
    """The objective at the optimum that these places have, found anew from where it was."""
    problem = replace(structure.problem, measured=measured)
    solution = solve(problem, iterations, 1e-15, unroll=unroll)
    return solution.cost[0] / len(structure.track)


# ----------------------------------------------------------------- expectations


def test_places_are_means_of_what_is_near() -> None:
    scene = clip_scene()
    places = places_of(scene)
    found = solved(scene, places)
    given = places(found.table)
    plain = scene.views.as_they_are(found.table)
    seen = found.table >= 0
    first = seen.to(torch.int64).argmax(1)
    rows = torch.arange(len(found))
    assert torch.equal(given[rows, first], plain[rows, first])
    moved_px = (given - plain).norm(dim=-1)[seen] / scene.views.pixel[0]
    # Descriptors tell points apart here: means are the keypoints but for neighbours in doubt.
    assert float(moved_px.quantile(0.9)) < 0.1
    assert float(moved_px.max()) < 12.0


def test_a_mean_of_equal_shares_is_the_middle() -> None:
    xy = torch.tensor([[[0.0, 0.0], [9.0, 9.0]], [[0.002, 0.0], [0.006, 0.0]]]).double()
    valid = torch.ones(2, 2, dtype=torch.bool)
    pixel = torch.full((2,), 0.001, dtype=torch.float64)
    even = torch.zeros(1, 3, 3)
    pairs = torch.tensor([[0, 1]])
    places = ExpectedPlaces.of(xy, valid, pixel, pairs, even, 12.0, 8)
    table = torch.tensor([[0, 0]])
    assert places(table)[0, 1].tolist() == pytest.approx([0.004, 0.0])
    alone = ExpectedPlaces.of(xy, valid, pixel, pairs, even, 3.0, 8)
    assert alone(table)[0, 1].tolist() == pytest.approx([0.002, 0.0])


def test_places_do_not_depend_on_which_view_of_a_pair_is_first() -> None:
    scene = clip_scene(views=3)
    places = places_of(scene)
    table = torch.full((1, 3), -1, dtype=torch.int64)
    a, b = scene.matches.keypoints[0].tolist()  # of views 0 and 1
    table[0, 0], table[0, 1] = a, b
    flipped = replace(
        places,
        plane_xy=places.plane_xy.flip(0),
        around=places.around.flip(0),
        pair=places.pair.flip(0).flip(1),
    )
    forth, back = places(table), flipped(table.flip(1))
    # The other one is now the first: what was the mean around b is the mean around a.
    assert torch.equal(back[0, 1], scene.views.plane_xy[1, b])
    row = scene.log_probability()[0]
    near = places.around[0, a]
    near = near[near >= 0]
    share = row[near, b].double().softmax(0)
    wanted = (share[:, None] * scene.views.plane_xy[0, near]).sum(0)
    assert torch.allclose(back[0, 2], wanted)
    assert torch.equal(forth[0, 0], scene.views.plane_xy[0, a])


# -------------------------------------------------------------------- gradients


@pytest.mark.parametrize('seed', range(2))
def test_gradient_is_that_of_unrolled_bundle_adjustment(seed: int) -> None:
    scene = clip_scene(seed, points=60, strays=15)
    scores = scene.scores.clone().requires_grad_()
    xy = scene.views.plane_xy.clone().requires_grad_()
    places = places_of(scene, scores, xy)
    found = solved(scene, places)
    measured = places(found.table)
    held = torch.autograd.grad(
        objective_at_optimum(found, measured), (scores, xy), retain_graph=True
    )
    through = torch.autograd.grad(
        bilevel(found, measured[found.track, found.view][None], 30, True), (scores, xy)
    )
    for ours, unrolled in zip(held, through, strict=True):
        assert float(unrolled.norm()) > 0.0
        assert float((ours - unrolled).norm()) < 1e-2 * float(unrolled.norm())


def test_gradient_is_that_of_finite_differences() -> None:
    scene = clip_scene(points=60, strays=15)
    xy = scene.views.plane_xy.clone().requires_grad_()
    places = places_of(scene, plane_xy=xy)
    found = solved(scene, places)
    (gradient,) = torch.autograd.grad(objective_at_optimum(found, places(found.table)), xy)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(xy.shape, generator=generator, dtype=torch.float64)
    direction = direction * scene.views.pixel[:, None, None]

    def value(step: float) -> float:
        moved = places_of(scene, plane_xy=scene.views.plane_xy + step * direction)
        measured = moved(found.table)[found.track, found.view][None]
        return float(bilevel(found, measured, 40, False))

    difference = (value(1e-3) - value(-1e-3)) / 2e-3
    assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-2)


def test_another_kernel_in_the_upper_level_would_be_wrong() -> None:
    # What the envelope theorem needs: the same objective on both levels.
    scene = clip_scene(points=60, strays=15, noise_px=0.6)
    xy = scene.views.plane_xy.clone().requires_grad_()
    places = places_of(scene, plane_xy=xy)
    found = solved(scene, places)
    measured = places(found.table)[found.track, found.view][None]
    squared = replace(found.problem, measured=measured, kernel='none')
    (held,) = torch.autograd.grad(cost(squared)[0], xy, retain_graph=True)
    problem = replace(found.problem, measured=measured)
    at = solve(problem, 30, 1e-15, unroll=True)
    through = cost(replace(squared, world_from_body=at.world_from_body, points=at.points))[0]
    (unrolled,) = torch.autograd.grad(through, xy)
    assert float((held - unrolled).norm()) > 3e-2 * float(unrolled.norm())


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    """Of all tensors that autograd keeps for the way back."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute().backward()
    return total


def test_memory_does_not_grow_with_the_iterations() -> None:
    scene = clip_scene(points=60, strays=15)
    xy = scene.views.plane_xy.clone().requires_grad_()
    places = places_of(scene, plane_xy=xy)
    found = solved(scene, places)

    def unrolled(iterations: int) -> int:
        # Begun where it was before: another start would end sooner.
        measured = places(found.table)[found.track, found.view][None]
        start = replace(found.problem, points=found.problem.points * 1.05, measured=measured)
        return saved_bytes(lambda: solve(start, iterations, 0.0, unroll=True).cost[0])

    few, many = unrolled(3), unrolled(9)
    assert many > 2 * few
    assert saved_bytes(lambda: objective_at_optimum(found, places(found.table))) < few


# --------------------------------------------------------------------- cheating


def test_less_confidence_makes_the_objective_no_smaller() -> None:
    scene = clip_scene()
    values = []
    for factor in (1.0, 0.2):
        faint = replace(scene.matches, confidence=factor * scene.matches.confidence)
        found = SOLVER.solve(scene.views, faint)
        assert isinstance(found, Structure)
        plain = scene.views.as_they_are(found.table)
        values.append(float(objective_at_optimum(found, plain)))
    assert values[1] == pytest.approx(values[0], rel=1e-6)


def test_learning_by_the_objective_alone_moves_matches_to_their_places() -> None:
    # Scores that are wrong by a push towards a neighbour within reach.
    scene = clip_scene(points=80, strays=0, noise_px=0.05, seen=1.0)
    generator = torch.Generator().manual_seed(1)
    pushed = 3.0 * torch.rand(scene.scores.shape, generator=generator, dtype=torch.float64)
    near = places_of(scene).around[scene.pairs[:, 1]]  # (P, N, K) around keypoints of b
    start = (scene.scores + pushed).clone()
    # Doubt between each keypoint of b and its nearest neighbour, if it has one.
    for pair in range(len(scene.pairs)):
        for j in range(near.shape[1]):
            if int(near[pair, j, 1]) >= 0:
                other = int(near[pair, j, 1])
                start[pair, :, other] = torch.maximum(
                    start[pair, :, other], start[pair, :, j] - 1.0
                )
    scores = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([scores], lr=0.2)

    def error() -> float:
        places = places_of(scene, scores.detach())
        found = solved(scene, places)
        plain = scene.views.as_they_are(found.table)
        moved = (places(found.table) - plain).norm(dim=-1)[found.table >= 0]
        return float((moved / scene.views.pixel[0]).mean())

    before = error()
    for _ in range(15):
        optimiser.zero_grad()
        places = places_of(scene, scores)
        found = solved(scene, places)
        objective_at_optimum(found, places(found.table)).backward()
        optimiser.step()
    assert before > 0.3
    assert error() < 0.7 * before
