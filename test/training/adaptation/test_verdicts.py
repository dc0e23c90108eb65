# SPDX-License-Identifier: Apache-2.0
"""What bundle adjustment says of keypoints and matches, against what is true."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from clip_scenes import ClipScene, clip_scene

from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.structure import Structure, StructureSolver
from mv_matcher_ros.training.adaptation.verdicts import Verdicts, verdicts
from mv_matcher_ros.training.data.labels import IGNORED, UNMATCHED

LIMIT_PX = 2.5


def judged(scene: ClipScene, partner: torch.Tensor | None = None) -> Verdicts:
    found = StructureSolver(StructureSettings()).solve(
        scene.views, scene.matches, least_similarity=0.5
    )
    assert isinstance(found, Structure)
    made = true_partners(scene) if partner is None else partner
    return verdicts(scene.views, found, scene.pairs, made, LIMIT_PX)


def true_partners(scene: ClipScene) -> torch.Tensor:
    made = torch.full((len(scene.pairs), scene.shows.shape[1]), -1, dtype=torch.int64)
    for number, (a, b) in enumerate(scene.pairs.tolist()):
        keypoints, _ = scene.matches.pair(a, b)
        made[number, keypoints[:, 0]] = keypoints[:, 1]
    return made


def test_partners_are_those_of_the_scene() -> None:
    scene = clip_scene(noise_px=0.2)
    truth, said = true_partners(scene), judged(scene)
    named = said.partner_a >= 0
    assert float((said.partner_a == truth)[named].double().mean()) > 0.99
    assert int(named.sum()) > 0.9 * int((truth >= 0).sum())
    # From the other side they are the same.
    for number in range(len(scene.pairs)):
        here = named[number].nonzero()[:, 0]
        assert torch.equal(said.partner_b[number, said.partner_a[number, here]], here)


def test_what_is_said_to_have_no_partner_has_none() -> None:
    # Half of the points are hidden in each view: nothing is at their place.
    scene = clip_scene(seen=0.6, noise_px=0.2)
    truth, said = true_partners(scene), judged(scene)
    alone = said.partner_a == UNMATCHED
    assert int(alone.sum()) > 50
    assert int((truth[alone] >= 0).sum()) == 0


def test_of_keypoints_without_a_point_nothing_is_said() -> None:
    scene = clip_scene(strays=40)
    said = judged(scene)
    for number, (a, _) in enumerate(scene.pairs.tolist()):
        assert bool((said.partner_a[number, scene.shows[a] < 0] == IGNORED).all())


def test_wrong_matches_are_named_and_right_ones_are_not() -> None:
    scene = clip_scene(noise_px=0.2)
    truth = true_partners(scene)
    assert not bool(judged(scene).wrong.any())
    made = truth.clone()
    for row in made:
        matched = (row >= 0).nonzero()[:, 0][:30]
        row[matched] = row[matched].roll(7)
    said = judged(scene, made)
    swapped = (made != truth) & (made >= 0)
    assert float(said.wrong[swapped].double().mean()) > 0.9
    assert int(said.wrong[~swapped].sum()) == 0


def test_a_stray_matched_off_its_line_is_wrong() -> None:
    scene = clip_scene(noise_px=0.2)
    made = true_partners(scene)
    found = StructureSolver(StructureSettings()).solve(scene.views, scene.matches)
    assert isinstance(found, Structure)
    a, b = scene.pairs[0].tolist()
    stray_a = (scene.shows[a] < 0).nonzero()[:, 0]
    stray_b = (scene.shows[b] < 0).nonzero()[:, 0]
    made[0, stray_a[:20]] = stray_b[:20]
    wrong = verdicts(scene.views, found, scene.pairs, made, LIMIT_PX).wrong[0, stray_a[:20]]
    # The camera moved sideways: lines are level, so most strays lie off them, and some may not.
    level = (
        scene.views.plane_xy[a, stray_a[:20], 1] - scene.views.plane_xy[b, stray_b[:20], 1]
    ).abs() / scene.views.pixel[0]
    assert bool(wrong[level > 40.0].all())
    assert int((level > 40.0).sum()) > 5
