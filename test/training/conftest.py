# SPDX-License-Identifier: Apache-2.0
"""What tests of training share stands beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mv_matcher_ros.training.data.tuple_rendering import RenderingPlan, render_shards
from mv_matcher_ros.training.data.tuple_sources import TupleSources

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope='session')
def tuples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of two tuples of three views to train on, one of one tuple to validate."""
    photos, out = (tmp_path_factory.mktemp(name) for name in ('photos', 'tuples'))
    for number in range(9):
        rng = np.random.default_rng(number)
        image = np.kron(rng.integers(0, 256, (60, 80, 3)), np.ones((6, 6, 1))).astype(np.uint8)
        cv2.imwrite(str(photos / f'{number}.png'), image)
    sources = TupleSources.find(None, photos, procedural=False)
    list(render_shards(sources, RenderingPlan(4, 1, (160, 120), 3, 2), out))
    return out
