# SPDX-License-Identifier: Apache-2.0
"""Pairs of views: the maps between them say where the same picture is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.data.shards import write_shard
from mv_matcher_ros.training.data.view_pairs import PhotoPairs, TuplePairs, ViewPair
from mv_matcher_ros.worlds.view_tuples import ViewTuple


def smooth(rows: int, columns: int) -> NDArray[np.uint8]:
    """A picture without edges: between pixels it is what its neighbours say."""
    noise = np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 9.0)
    return np.clip(128 + 60 * blurred / blurred.std(), 0, 255).astype(np.uint8)


def difference(pair: ViewPair) -> tuple[float, float]:
    """Mean grey difference of the same points, and the share of points seen in both views."""
    height, width = pair.images.shape[1:]
    y, x = torch.meshgrid(torch.arange(4, height - 4, 5), torch.arange(4, width - 4, 5))
    xy = torch.stack([x.flatten(), y.flatten()], -1).double()
    there, seen = pair.forth(xy)
    place = there[seen].numpy().astype(np.float32)
    found = cv2.remap(pair.images[1], place[None], None, cv2.INTER_LINEAR)[0].astype(float)
    column, row = xy[seen].long().unbind(1)
    here = pair.images[0][row, column].astype(float)
    return float(np.abs(found - here).mean()), float(seen.float().mean())


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
def test_homographies_of_a_photo_fit_its_views(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / 'a.png'), smooth(400, 500))
    pairs = PhotoPairs([tmp_path / 'a.png'], (160, 120), 6, seed=2)
    assert len(pairs) == 6
    shares = []
    for index in range(6):
        pair = pairs.pair(index)
        grey, share = difference(pair)
        shares.append(share)
        assert grey < 2.0, index
        assert np.array_equal(pair.images, pairs.pair(index).images)
        xy = torch.tensor([[80.0, 60.0]]).double()
        again, _ = pair.back(pair.forth(xy)[0])
        assert torch.allclose(again, xy, atol=1e-6)
    assert max(shares) > 0.6
    with pytest.raises(SourceError, match=r'photo .*b\.png'):
        PhotoPairs([tmp_path / 'b.png'], (160, 120)).pair(0)


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
def test_tuples_are_shrunk_with_their_geometry(tmp_path: Path) -> None:
    """A wall 3 m ahead; the second camera stands 0.3 m to the right: 20 px at 200 px focal."""
    wall = smooth(120, 200)
    poses = np.stack([np.eye(4), np.eye(4)])
    poses[1, 0, 3] = 0.3
    intrinsics = np.array([[200.0, 0, 79.5], [0, 200.0, 59.5], [0, 0, 1]])
    views = ViewTuple(
        images=np.stack([wall[:, :160], wall[:, 20:180]]),
        depths=np.full((2, 120, 160), 3.0, np.float32),
        world_from_camera=poses,
        intrinsics=np.stack([intrinsics] * 2),
        overlap=np.ones((2, 2), np.float32),
        world='wall',
        baseline='wide',
    )
    write_shard(tmp_path / '00000.zip', [views], [(0,)])
    pair = TuplePairs(tmp_path, 80).pair(0)
    assert pair.images.shape == (2, 60, 80)
    there, seen = pair.forth(torch.tensor([[40.0, 30.0], [5.0, 30.0]]).double())
    assert torch.allclose(there[0], torch.tensor([30.0, 30.0]).double(), atol=1e-2)
    assert seen.tolist() == [True, False]
    grey, share = difference(pair)
    assert grey < 2.0
    assert share == pytest.approx(0.85, abs=0.1)
    with pytest.raises(SourceError, match='shrunk evenly'):
        TuplePairs(tmp_path, 60).pair(0)
