# SPDX-License-Identifier: Apache-2.0
"""What all tests share: where recordings are, and an environment that needs no screen."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault('MPLBACKEND', 'Agg')
# Tensors of tests are small: a second thread costs more than it brings, and far more where other
# processes want the cores too. Read when torch is imported, so it stands before that.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# The same examples every time: what fails here fails everywhere, and CI does not fail by chance.
hypothesis.settings.register_profile(
    'same', derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile('same')
ROOT = Path(__file__).resolve().parents[1]


def _find_data() -> Path | None:
    """MV_MATCHER_DATA, else a data folder beside the checkout, recognised by its `sequences`."""
    named = os.environ.get('MV_MATCHER_DATA')
    if named:
        return Path(named)
    beside = [ROOT.parent / 'data', *sorted(ROOT.parent.glob('*/data'))]
    return next((folder for folder in beside if (folder / 'sequences').is_dir()), None)


_data = _find_data()
if _data is not None:
    os.environ['MV_MATCHER_DATA'] = str(_data)


# `make test` has two legs that run at a time; slow tests of these folders run in the first alone,
# all others in the second.
SLOW_IN_FIRST = (
    'geometry',
    'models/test_runtime',
    'odometry',
    'ros/test_bench_node',
    'ros/test_stress_live',
    'training/adaptation',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which slow tests run."""
    legs = ('first', 'second')
    parser.addoption('--leg', choices=legs, help='of `make test`: no slow tests of the other')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests over DDS last (the other leg begins with them), each slow test in one leg only."""
    items.sort(key=lambda item: item.get_closest_marker('ros') is not None)
    leg = config.getoption('--leg')
    if leg is None:
        return
    here = Path(__file__).parent

    def elsewhere(item: pytest.Item) -> bool:
        if item.get_closest_marker('slow') is None:
            return False
        file = item.path.relative_to(here).as_posix()
        return ('first' if file.startswith(SLOW_IN_FIRST) else 'second') != leg

    gone = [elsewhere(item) for item in items]
    config.hook.pytest_deselected(items=[i for i, out in zip(items, gone, strict=True) if out])
    items[:] = [i for i, out in zip(items, gone, strict=True) if not out]


def pytest_report_header(config: pytest.Config) -> str:
    import cv2
    import numpy as np
    import torch

    versions = f'numpy {np.__version__}, opencv {cv2.__version__}, torch {torch.__version__}'
    return f'{versions}; recordings: {_data or "none (set MV_MATCHER_DATA)"}'


@pytest.fixture(scope='session')
def data_root() -> Path:
    """Folder of the development recordings; the test is skipped where there is none."""
    if _data is None or not _data.is_dir():
        pytest.skip('no recordings: set MV_MATCHER_DATA')
    return _data


@pytest.fixture(scope='session')
def sequences(data_root: Path) -> Path:
    """Folder that holds one folder a sequence."""
    return data_root / 'sequences'


@pytest.fixture(scope='session')
def box_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .glb: a room of 6 x 5 x 3 m with textured walls, a plain one at x = 3, and a crate."""
    pytest.importorskip('embreex', reason='embreex has no wheel for Linux on aarch64')
    import cv2
    import numpy as np
    import trimesh
    from PIL.Image import fromarray as image_of

    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (64, 64, 3), np.uint8), (256, 256))
    low, high = np.array((-3.0, -2.5, 0.0)), np.array((3.0, 2.5, 3.0))
    scene = trimesh.Scene()
    for axis in range(3):
        for side in (low, high):
            others = [i for i in range(3) if i != axis]
            corners = np.tile(side, (4, 1))
            for k, (a, b) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
                corners[k, others] = (low, high)[a][others[0]], (low, high)[b][others[1]]
            uv = np.array(((0, 0), (2, 0), (2, 2), (0, 2)), np.float64)  # twice: it wraps
            plain = axis == 0 and side is high
            pixels = np.full((4, 4, 3), 180, np.uint8) if plain else noise
            material = trimesh.visual.material.PBRMaterial(baseColorTexture=image_of(pixels))
            scene.add_geometry(
                trimesh.Trimesh(
                    corners,
                    ((0, 1, 2), (0, 2, 3)),
                    visual=trimesh.visual.TextureVisuals(uv, material=material),
                    process=False,
                )
            )
    crate = trimesh.creation.box((0.6, 0.6, 0.8))  # no texture
    place = np.eye(4)
    place[:3, 3] = (1.0, 1.0, 0.4)
    scene.add_geometry(crate, transform=place)
    path = tmp_path_factory.mktemp('worlds') / 'box.glb'
    path.write_bytes(scene.export(file_type='glb'))
    return path
