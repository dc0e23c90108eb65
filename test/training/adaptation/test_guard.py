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
    return ClipFigures(table, np.where(table >= 0, error_px, np.inf), 2 * tracks, wrong, apart)


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
        (figures(99, 4, 0.45, 0.15), 'points'),
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
        apart.append(halves_apart(found))
    assert 5.0 * apart[0][1] < apart[1][1] < 5.0
    assert 5.0 * apart[0][0] < apart[1][0] < 1.0


def test_halves_of_the_same_points_are_the_same() -> None:
    scene = clip_scene()
    found = StructureSolver(StructureSettings()).solve(scene.views, scene.matches)
    assert isinstance(found, Structure)
    draws = [torch.Generator().manual_seed(3) for _ in range(3)]
    half = _half(found.table, 200, draws[0])
    assert 0.3 < float(half.double().mean()) < 0.7
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_half(found.table[order], 200, draws[1]), half[order])
    longer = found.table.clone()
    longer[:, 3] = -1
    kept = (longer >= 0).sum(1) >= 2
    same = _half(longer[kept], 200, draws[2]) == half[kept]
    assert 0.75 < float(same.double().mean()) < 1.0
