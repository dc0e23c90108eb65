# SPDX-License-Identifier: Apache-2.0
"""When adapted weights count as better."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clip_scenes import clip_scene, with_wrong

from mv_matcher_ros.training.adaptation.guard import (
    INLIER_PX,
    ClipFigures,
    _half,
    compared,
    figures_of,
    halves_apart,
)
from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.structure import Structure, StructureSolver


def figures(
    tracks: int = 100,
    length: int = 3,
    error_px: float = 0.5,
    apart: float = 0.2,
    wrong: float = 5.0,
) -> ClipFigures:
    """Point k is seen by keypoint k of the first views."""
    table = np.repeat(np.arange(tracks)[:, None], 4, axis=1)
    table[:, length:] = -1
    places = np.tile(5.0 * np.stack([np.arange(tracks), np.arange(tracks) % 7], axis=1), (4, 1, 1))
    residual = np.where(table >= 0, error_px, np.inf)
    return ClipFigures(table, places, residual, 2 * tracks, wrong, apart)


BEFORE = [figures() for _ in range(4)]
BETTER = [figures(110, 4, 0.45, 0.15) for _ in range(4)]


def test_all_figures_better() -> None:
    verdict = compared(BEFORE, BETTER)
    assert verdict.better
    assert verdict.against == ''
    assert [f.good for f in verdict.figures] == [True] * 5


def test_the_same_weights_are_not_better() -> None:
    verdict = compared(BEFORE, BEFORE)
    assert not verdict.better
    assert all(f.before == f.after for f in verdict.figures)


@pytest.mark.parametrize(
    ('after', 'name'),
    [
        (figures(98, 4, 0.45, 0.15), 'points'),
        (figures(110, 2, 0.45, 0.15), 'views of a point'),
        (figures(110, 4, 0.55, 0.15), 'reprojection error'),
        (figures(110, 4, 0.45, 0.3), 'disagreement of halves'),
        (figures(110, 4, 0.45, 0.15, 5.1), 'wrong matches'),
    ],
)
def test_one_figure_that_is_worse_speaks_against_it(after: ClipFigures, name: str) -> None:
    verdict = compared(BEFORE, [after] * 4)
    assert not verdict.better
    assert name in verdict.against
    assert sum(f.good for f in verdict.figures) == 4


def test_as_many_points_are_enough() -> None:
    assert compared(BEFORE, [figures(100, 4, 0.45, 0.15) for _ in range(4)]).better


def test_noise_in_the_number_of_points_is_no_loss_but_a_sure_loss_is() -> None:
    before = [figures(1000) for _ in range(8)]

    def after(*changes: int) -> list[ClipFigures]:
        return [figures(1000 + change, 4, 0.45, 0.15) for change in changes]

    assert compared(before, after(-12, 9, -11, 10, -9, 8, -7, 6)).better
    assert 'points' in compared(before, after(-5, -4, -6, -5, -4, -6, -5, -5)).against
    # However wide the interval: a percent is more than noise may take.
    assert 'points' in compared(before, after(-200, 60, -150, 70, 10, 40, -30, 5)).against


def test_an_error_that_may_be_as_large_as_before_is_not_enough() -> None:
    errors = (0.3, 0.7, 0.6, 0.35, 0.66, 0.5, 0.4, 0.48)
    after = [figures(110, 4, error, 0.15) for error in errors]
    verdict = compared([figures() for _ in errors], after)
    figure = next(f for f in verdict.figures if f.name == 'reprojection error')
    assert figure.after < figure.before
    assert 'reprojection error' in verdict.against


def test_more_points_are_not_blamed_for_being_the_harder_ones() -> None:
    after = figures(110, 4, 0.45, 0.15)
    after.residual_px[100:, :2] = 1.9
    assert compared(BEFORE, [after] * 4).better


def test_more_points_are_not_praised_for_the_best_of_them() -> None:
    # As many new, better ones: of those there were nothing has changed.
    after = figures(200, 3, 0.5, 0.15)
    after.residual_px[100:][after.table[100:] >= 0] = 0.1
    verdict = compared(BEFORE, [after] * 4)
    assert 'reprojection error' in verdict.against
    assert 'views of a point' in verdict.against


def test_points_are_the_same_by_the_keypoints_that_see_them() -> None:
    after = figures(100, 4, 0.45, 0.15)
    order = np.random.default_rng(0).permutation(100)
    shuffled = replace(after, table=after.table[order], residual_px=after.residual_px[order])
    assert compared(BEFORE, [shuffled] * 4) == compared(BEFORE, [after] * 4)


def test_keypoints_are_the_same_by_their_places_whatever_their_numbers() -> None:
    after = figures(100, 4, 0.45, 0.15)
    order = np.random.default_rng(0).permutation(100)
    numbers = np.argsort(order)
    renumbered = replace(after, table=numbers[after.table], places=after.places[:, order] + 0.7)
    assert compared(BEFORE, [renumbered] * 4) == compared(BEFORE, [after] * 4)
    elsewhere = replace(after, places=after.places + 2.5)
    assert 'reprojection error' in compared(BEFORE, [elsewhere] * 4).against


def test_a_clip_that_is_lost_counts_as_no_points() -> None:
    lost = ClipFigures.without(4, 0, 'too few matches')
    verdict = compared(BEFORE, [*BETTER[:3], lost])
    assert not verdict.better
    assert 'points' in verdict.against
    assert verdict.solved == 3


def test_nothing_solved() -> None:
    lost = ClipFigures.without(4, 0, 'too few matches')
    verdict = compared([lost], [lost])
    assert not verdict.better
    assert 'no clip' in verdict.against


def test_figures_of_a_structure() -> None:
    scene = clip_scene()
    found = StructureSolver(StructureSettings(grow_px=0.0)).solve(scene.views, scene.matches)
    assert isinstance(found, Structure)
    measured = figures_of(scene.views, found, with_wrong(scene.matches, 0.1))
    assert measured.tracks > 100
    assert 2.0 < measured.length <= 4.0
    assert (measured.residual_px[measured.table >= 0] <= INLIER_PX).all()
    assert measured.matches == len(scene.matches)
    assert 6.0 < measured.wrong < 12.0


def test_halves_agree_the_better_the_less_noise_there_is() -> None:
    apart = []
    for noise_px in (0.05, 0.5):
        scene = clip_scene(noise_px=noise_px)
        found = StructureSolver(StructureSettings()).solve(scene.views, scene.matches)
        assert isinstance(found, Structure)
        apart.append(halves_apart(scene.views, found))
    assert 5.0 * apart[0][1] < apart[1][1] < 5.0
    assert 5.0 * apart[0][0] < apart[1][0] < 1.0


def test_halves_of_the_same_points_are_the_same() -> None:
    scene = clip_scene()
    found = StructureSolver(StructureSettings()).solve(scene.views, scene.matches)
    assert isinstance(found, Structure)
    places, draws = scene.views.places_px, [torch.Generator().manual_seed(3) for _ in range(4)]
    half = _half(places, found.table, draws[0])
    assert 0.3 < float(half.double().mean()) < 0.7
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_half(places, found.table[order], draws[1]), half[order])
    longer = found.table.clone()
    longer[:, 3] = -1
    kept = (longer >= 0).sum(1) >= 2
    same = _half(places, longer[kept], draws[2]) == half[kept]
    assert 0.75 < float(same.double().mean()) < 1.0
    # Other numbers of the same keypoints.
    turned = torch.where(found.table >= 0, places.shape[1] - 1 - found.table, -1)
    assert torch.equal(_half(places.flip(1), turned, draws[3]), half)
