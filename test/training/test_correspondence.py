# SPDX-License-Identifier: Apache-2.0
"""Points carried between views whose geometry is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.training.data.correspondence import (
    PosedView,
    by_depth,
    by_homography,
    carry,
    depth_between,
)

WIDTH, HEIGHT = 64, 48


def test_a_homography_and_its_derivative() -> None:
    matrix = torch.tensor([[1.1, 0.1, 3.0], [-0.05, 0.9, 2.0], [1e-3, -5e-4, 1.0]]).double()
    xy = torch.tensor([[10.0, 12.0], [30.5, 20.25], [63.0, 47.0], [0.0, 0.0]])
    found = carry(by_homography(matrix, WIDTH, HEIGHT), xy)
    x, y, w = (torch.nn.functional.pad(xy.double(), (0, 1), value=1.0) @ matrix.T).unbind(1)
    assert torch.allclose(found.xy.double(), torch.stack([x / w, y / w], 1), atol=1e-5)
    exact = torch.stack(
        [
            (matrix[0, :2] - (x / w)[:, None] * matrix[2, :2]) / w[:, None],
            (matrix[1, :2] - (y / w)[:, None] * matrix[2, :2]) / w[:, None],
        ],
        dim=1,
    )
    assert torch.allclose(found.jacobian.double(), exact, atol=1e-4)
    assert found.seen.tolist() == [True, True, False, True]


def slanted(camera: Tensor, slope: float) -> PosedView:
    """A view of the plane z = 4 + slope · x of the world."""
    intrinsics = torch.tensor([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1.0]]).double()
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing='ij')
    rays = torch.stack([(x - 31.5) / 50, (y - 23.5) / 50, torch.ones(HEIGHT, WIDTH)], -1).double()
    turned = rays @ camera[:3, :3].T
    at = camera[:3, 3]
    depth = (4.0 + slope * at[0] - at[2]) / (turned[..., 2] - slope * turned[..., 0])
    return PosedView(depth.float(), intrinsics, camera)


def test_depth_gives_the_homography_of_a_slanted_plane() -> None:
    here, there = torch.eye(4).double(), torch.eye(4).double()
    angle = 0.1
    there[:3, :3] = torch.tensor(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    there[:3, 3] = torch.tensor([0.3, -0.1, 0.2])
    a, b = slanted(here, 0.4), slanted(there, 0.4)
    # The plane n · X = d in the first camera.
    normal, distance = torch.tensor([-0.4, 0.0, 1.0]).double(), 4.0
    back = torch.linalg.inv(there)
    plane = back[:3, :3] + back[:3, 3:] @ normal[None] / distance
    matrix = b.intrinsics @ plane @ torch.linalg.inv(a.intrinsics)
    xy = torch.rand(50, 2) * torch.tensor([WIDTH - 12.0, HEIGHT - 12.0]) + 6.0
    by = carry(by_depth(a, b), xy)
    exact = carry(by_homography(matrix, WIDTH, HEIGHT), xy)
    both = by.seen & exact.seen
    assert both.sum() > 30
    assert torch.allclose(by.xy[both], exact.xy[both], atol=1e-3)
    assert torch.allclose(by.jacobian[both], exact.jacobian[both], atol=1e-3)


def test_shrunk_views_keep_pixel_centres() -> None:
    here, there = torch.eye(4).double(), torch.eye(4).double()
    there[0, 3] = 0.5
    a, b = slanted(here, 0.1), slanted(there, 0.1)
    small = [PosedView(v.depth, v.intrinsics, v.world_from_camera, 2.0) for v in (a, b)]
    xy = torch.tensor([[30.0, 20.0], [41.0, 31.0]])
    full = by_depth(a, b)(xy.double())[0]
    half = by_depth(*small)((xy.double() + 0.5) / 2 - 0.5)[0]
    assert torch.allclose(half, (full + 0.5) / 2 - 0.5)


def test_hidden_points_and_edges_of_depth_are_not_seen() -> None:
    here, there = torch.eye(4).double(), torch.eye(4).double()
    there[0, 3] = 0.4
    a, b = slanted(here, 0.0), slanted(there, 0.0)
    hiding = b.depth.clone()
    hiding[:, :32] = 1.0  # something near covers the left half of the second view
    covered = PosedView(hiding, b.intrinsics, b.world_from_camera)
    xy = torch.tensor([[20.0, 20.0], [50.0, 20.0]])
    assert carry(by_depth(a, b), xy).seen.tolist() == [True, True]
    assert carry(by_depth(a, covered), xy).seen.tolist() == [False, True]
    _, known = depth_between(hiding, torch.tensor([[31.5, 10.0], [40.0, 10.0]]).double())
    assert known.tolist() == [False, True]
