# SPDX-License-Identifier: Apache-2.0
"""Labels on scenes with a known answer."""

from __future__ import annotations

from dataclasses import replace

import torch

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.training.data.labels import (
    IGNORED,
    UNMATCHED,
    LabelLimits,
    LabelView,
    depth_at_points,
    match_labels,
)

INTRINSICS = torch.tensor([[200.0, 0.0, 79.5], [0.0, 200.0, 59.5], [0.0, 0.0, 1.0]]).double()


def wall(
    keypoints: list[tuple[float, float]], shift_m: float = 0.0, depth_m: float = 4.0
) -> LabelView:
    """A view of a wall `depth_m` ahead, the camera `shift_m` to the right."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = shift_m
    return LabelView(
        torch.tensor(keypoints).reshape(-1, 2).float(),
        torch.full((120, 160), depth_m),
        INTRINSICS,
        pose,
    )


# 0.4 m to the right at 4 m depth and focal length 200: everything moves 20 px to the left.
SHIFT_M, SHIFT_PX = 0.4, 20.0


def test_the_same_point_is_a_match_within_the_limit() -> None:
    a = wall([(50, 60), (70, 30), (90, 90), (120, 20)])
    b = wall([(100 - SHIFT_PX, 110), (70 - SHIFT_PX + 2, 30), (50 - SHIFT_PX, 60)], SHIFT_M)
    of_a, of_b = match_labels(a, b)
    assert of_a.tolist() == [2, 1, UNMATCHED, UNMATCHED]
    assert of_b.tolist() == [UNMATCHED, 1, 0]


def test_what_is_neither_near_nor_far_teaches_nothing() -> None:
    a, b = wall([(50, 60)]), wall([(50 - SHIFT_PX + 6, 60)], SHIFT_M)
    of_a, of_b = match_labels(a, b)
    assert of_a.tolist() == of_b.tolist() == [IGNORED]


def test_only_the_nearer_of_two_is_the_partner() -> None:
    a = wall([(50, 60), (52, 60)])
    b = wall([(50 - SHIFT_PX, 60)], SHIFT_M)
    of_a, of_b = match_labels(a, b)
    assert of_a.tolist() == [0, IGNORED]
    assert of_b.tolist() == [0]


def test_outside_the_other_image_there_is_no_partner() -> None:
    of_a, _ = match_labels(wall([(5, 60)]), wall([(80, 60)], SHIFT_M))
    assert of_a.tolist() == [UNMATCHED]


def test_behind_something_nearer_there_is_no_partner() -> None:
    """A board at 2 m stands in front of the wall in the second view only."""
    a, b = wall([(80, 60)]), wall([(80 - SHIFT_PX, 60)], SHIFT_M)
    b.depth[40:80, 40:80] = 2.0
    of_a, of_b = match_labels(a, b)
    assert of_a.tolist() == [UNMATCHED]
    assert of_b.tolist() == [IGNORED]  # a board that the first view does not see: no rigid scene


def test_without_depth_nobody_knows() -> None:
    a, b = wall([(80, 60)]), wall([(80 - SHIFT_PX, 60)], SHIFT_M)
    a.depth[:] = 0.0
    of_a, of_b = match_labels(a, b)
    assert of_a.tolist() == [IGNORED]
    assert of_b.tolist() == [IGNORED]


def test_depth_at_an_edge_is_not_known() -> None:
    depth = torch.full((20, 20), 4.0)
    depth[:, 10:] = 2.0
    _, known = depth_at_points(depth, torch.tensor([[5.0, 5.0], [9.4, 5.0], [15.0, 5.0]]))
    assert known.tolist() == [True, False, True]


def test_what_is_foreign_has_no_partner() -> None:
    """Something stands before the wall in the second view: no depth, but surely no partner."""
    a = wall([(80, 60), (30, 100)])
    b = wall([(80 - SHIFT_PX, 60), (30 - SHIFT_PX, 100)], SHIFT_M)
    foreign = torch.zeros(120, 160, dtype=torch.bool)
    foreign[40:80, 40:80] = True
    b = replace(b, depth=torch.where(foreign, 0.0, b.depth), foreign=foreign)
    of_a, of_b = match_labels(a, b)
    assert of_a.tolist() == [UNMATCHED, 1]
    assert of_b.tolist() == [UNMATCHED, 1]


def test_behind_the_camera_there_is_no_partner() -> None:
    a, b = wall([(80, 60)]), wall([(80, 60)])
    turned = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
    of_a, of_b = match_labels(a, replace(b, world_from_camera=turned))
    assert of_a.tolist() == of_b.tolist() == [UNMATCHED]


def test_limits_are_where_the_plan_puts_them() -> None:
    limits = LabelLimits()
    assert 3.0 <= limits.match_px <= 5.0
    assert 10.0 <= limits.far_px <= 15.0
    for off, wanted in ((2.9, 0), (3.1, IGNORED), (9.9, IGNORED), (10.1, UNMATCHED)):
        of_a, _ = match_labels(wall([(70, 60)]), wall([(70 - SHIFT_PX + off, 60)], SHIFT_M))
        assert of_a.tolist() == [wanted]


def test_views_without_keypoints() -> None:
    of_a, of_b = match_labels(wall([]), wall([(30, 40), (2, 40)], SHIFT_M))
    assert of_a.shape == (0,)
    assert of_b.tolist() == [UNMATCHED, UNMATCHED]
    assert match_labels(wall([]), wall([]))[0].shape == (0,)


def test_labels_of_a_rendered_room_agree_with_its_geometry() -> None:
    from mv_matcher_ros.worlds.presets import room_loop

    source = room_loop('rgbd', 11, (320, 240))
    frames = list(source)[::10]
    assert source.truth is not None
    generator = torch.Generator().manual_seed(0)
    fx, fy, cx, cy = source.rig.cameras[0].intrinsics
    intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).double()
    body_from_camera = torch.from_numpy(source.rig.cameras[0].body_from_camera.copy())
    views = []
    for frame, pose in zip(frames, source.truth.world_from_body[::10], strict=True):
        depth = frame.views[0].depth
        assert depth is not None
        xy = torch.rand(800, 2, generator=generator) * torch.tensor([319.0, 239.0])
        views.append(
            LabelView(
                xy,
                torch.from_numpy(depth.copy()),
                intrinsics,
                torch.from_numpy(pose.copy()) @ body_from_camera,
            )
        )
    of_a, of_b = match_labels(*views)
    chosen = (of_a >= 0).nonzero()[:, 0]
    assert len(chosen) > 30
    relative = se3.inverse(views[1].world_from_camera) @ views[0].world_from_camera
    essential = se3.hat(relative[:3, 3]) @ relative[:3, :3]
    inverse = torch.linalg.inv(intrinsics)
    rays = [
        torch.cat([xy.double(), torch.ones(len(xy), 1, dtype=torch.float64)], 1) @ inverse.T
        for xy in (views[0].keypoints_xy[chosen], views[1].keypoints_xy[of_a[chosen]])
    ]
    lines = rays[0] @ essential.T
    distance = (rays[1] * lines).sum(1).abs() / lines[:, :2].norm(dim=1) * fx
    assert float(distance.max()) < 3.5
    assert torch.equal(of_b[of_a[chosen]], chosen)
