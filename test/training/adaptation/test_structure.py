# SPDX-License-Identifier: Apache-2.0
"""The lower level: known answers, wrong matches, views left out, growing, merging, faults."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clip_scenes import clip_scene, motion_errors, with_wrong

from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.reprojection import linearise
from mv_matcher_ros.odometry.view_tree import ViewSetup
from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.structure import (
    APART,
    NO_PARALLAX,
    TOO_FEW,
    Fault,
    Structure,
    StructureSolver,
)

SOLVER = StructureSolver(StructureSettings())
PLAIN = StructureSolver(StructureSettings(grow_px=0.0))


def solved(found: Structure | Fault) -> Structure:
    assert isinstance(found, Structure), found
    return found


@pytest.mark.parametrize('seed', range(3))
def test_poses_and_points_of_a_known_scene(seed: int) -> None:
    scene = clip_scene(seed)
    found = solved(SOLVER.solve(scene.views, scene.matches))
    turn, direction = motion_errors(found, scene)
    assert turn < 0.3
    assert direction < 2.0
    assert bool(found.seen.all())
    assert len(found) > 100
    assert float(found.residual_px[found.table >= 0].median()) < 0.6


def test_every_track_is_one_point_of_the_scene() -> None:
    scene = clip_scene()
    found = solved(SOLVER.solve(scene.views, with_wrong(scene.matches, 0.2)))
    shown = scene.shows[torch.arange(4), found.table.clamp_min(0)]
    shown = torch.where(found.table >= 0, shown, -1)
    first = shown.amax(1, keepdim=True)
    wrong = (found.table >= 0) & (shown != first)
    assert float(wrong.sum()) <= 0.01 * float((found.table >= 0).sum())


def test_the_gradient_by_poses_and_points_is_zero_at_the_end() -> None:
    scene = clip_scene()
    found = solved(SOLVER.solve(scene.views, with_wrong(scene.matches, 0.1)))
    equations = linearise(found.problem)
    scale = float(equations.pose_pose.diagonal(dim1=1, dim2=2).sqrt().max())
    free = ~found.problem.fixed.repeat_interleave(6, dim=1)
    assert float(equations.pose_gradient[free].abs().max()) < 1e-3 * scale
    assert float(equations.point_gradient.abs().max()) < 1e-3 * scale


def test_weights_have_mean_one() -> None:
    scene = clip_scene()
    faint = replace(scene.matches, confidence=0.11 * torch.ones(len(scene.matches)))
    for matches in (scene.matches, faint):
        found = solved(SOLVER.solve(scene.views, matches))
        assert found.problem.importance is not None
        assert float(found.problem.importance.mean()) == pytest.approx(1.0)


def test_tracks_grow_where_a_match_is_missing() -> None:
    scene = clip_scene(noise_px=0.1)
    v = scene.matches.views
    # No match with the last view but the direct ones of half of the keypoints of its neighbour.
    half = (scene.matches.keypoints[:, 0] % 2 == 0) & (v[:, 0] == 2)
    kept = (v[:, 1] != 3) | half
    matches = Matches(v[kept], scene.matches.keypoints[kept], scene.matches.confidence[kept])
    without = solved(PLAIN.solve(scene.views, matches))
    found = solved(SOLVER.solve(scene.views, matches, least_similarity=0.5))
    assert int((found.table[:, 3] >= 0).sum()) > 1.6 * int((without.table[:, 3] >= 0).sum())
    shown = scene.shows[torch.arange(4), found.table.clamp_min(0)]
    right = shown == torch.where(found.table >= 0, shown, -1).amax(1, keepdim=True)
    assert float(right[found.table >= 0].double().mean()) > 0.99


def test_tracks_of_one_point_merge() -> None:
    scene = clip_scene(noise_px=0.1, seen=1.0)
    v, keypoints = scene.matches.views, scene.matches.keypoints
    # Views 0 and 1, and views 2 and 3, say nothing of each other but for a few points.
    bridge = scene.shows[v[:, 0], keypoints[:, 0]] < 40
    apart = (v[:, 0] <= 1) == (v[:, 1] <= 1)
    kept = apart | bridge
    matches = Matches(v[kept], keypoints[kept], scene.matches.confidence[kept])
    without = solved(PLAIN.solve(scene.views, matches))
    found = solved(SOLVER.solve(scene.views, matches, least_similarity=0.5))
    assert float((without.table >= 0).sum(1).double().mean()) < 3.0
    assert float((found.table >= 0).sum(1).double().mean()) > 3.5
    shown = scene.shows[torch.arange(4), found.table.clamp_min(0)]
    assert len(torch.unique(shown.amax(1))) > 0.95 * len(found)


def test_a_view_that_the_tree_left_out_is_found_by_what_it_sees() -> None:
    scene = clip_scene(views=5)
    v, keypoints = scene.matches.views, scene.matches.keypoints
    # The last view is matched thinly with each other one: too little for a pair of views, enough
    # for a pose from points.
    thin = (v[:, 1] == 4) & (scene.shows[v[:, 0], keypoints[:, 0]] % 4 == v[:, 0])
    kept = (v[:, 1] != 4) | thin
    matches = Matches(v[kept], keypoints[kept], scene.matches.confidence[kept])
    settings = StructureSettings(poses={'min_mass': 60.0, 'relative': 'eight_point'})
    found = solved(StructureSolver(settings).solve(scene.views, matches))
    assert bool(found.seen.all())
    turn, _ = motion_errors(found, scene)
    assert turn < 0.5


def test_two_cameras_have_a_scale() -> None:
    mono = clip_scene(views=4)
    # Views 0, 1 and 2, 3 as a rig that moved: the second camera is where the motion says.
    world_from_camera = mono.world_from_camera.clone()
    rig = se3.inverse(world_from_camera[0]) @ world_from_camera[1]
    poses = torch.stack([
        world_from_camera[0], world_from_camera[0] @ rig,
        world_from_camera[2], world_from_camera[2] @ rig,
    ])  # fmt: skip
    scene = clip_scene(poses=poses, noise_px=0.1)
    setup = ViewSetup(
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0, 1, 0, 1]),
        torch.stack([torch.eye(4, dtype=torch.float64), se3.inverse(rig)]),
        torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        torch.zeros(2, dtype=torch.bool),
    )
    found = solved(SOLVER.solve(replace(scene.views, setup=setup), scene.matches))
    moved = se3.inverse(found.camera_from_world[2])[:3, 3]
    truth = se3.inverse(poses[0]) @ poses[2]
    assert float(moved.norm()) == pytest.approx(float(truth[:3, 3].norm()), rel=0.05)


# --------------------------------------------------------------------- faults


def test_few_matches() -> None:
    scene = clip_scene()
    few = torch.arange(7)
    matches = Matches(
        scene.matches.views[few], scene.matches.keypoints[few], scene.matches.confidence[few]
    )
    assert SOLVER.solve(scene.views, matches) == Fault(TOO_FEW)
    none = torch.arange(0)
    matches = Matches(matches.views[none], matches.keypoints[none], matches.confidence[none])
    assert SOLVER.solve(scene.views, matches) == Fault(TOO_FEW)


def test_a_turn_is_no_structure() -> None:
    motion = torch.zeros(4, 6, dtype=torch.float64)
    motion[:, 4] = 0.05 * torch.arange(4)
    scene = clip_scene(poses=se3.exp(motion))
    assert SOLVER.solve(scene.views, scene.matches) == Fault(NO_PARALLAX)


def test_a_camera_that_stands_still_is_no_structure() -> None:
    scene = clip_scene(poses=torch.eye(4, dtype=torch.float64).repeat(4, 1, 1))
    assert SOLVER.solve(scene.views, scene.matches) == Fault(NO_PARALLAX)


def test_shuffled_matches_are_no_structure() -> None:
    scene = clip_scene()
    generator = torch.Generator().manual_seed(0)
    keypoints = scene.matches.keypoints.clone()
    keypoints[:, 1] = keypoints[torch.randperm(len(keypoints), generator=generator), 1]
    matches = Matches(scene.matches.views, keypoints, scene.matches.confidence)
    found = SOLVER.solve(scene.views, matches)
    assert isinstance(found, Fault)
    assert found.reason in (APART, NO_PARALLAX)
