# SPDX-License-Identifier: Apache-2.0
"""What all tests share: where recordings are, and an environment that needs no screen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault('MPLBACKEND', 'Agg')
# Tensors of tests are small: a second thread costs more than it brings, and far more where other
# processes want the cores too. Read when torch is imported, so it stands before that.
os.environ.setdefault('OMP_NUM_THREADS', '1')
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
