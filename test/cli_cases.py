# SPDX-License-Identifier: Apache-2.0
"""What tests of commands share: their output and errors, and small pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mv_matcher_ros import cli


def fails_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a command whose input is at fault."""
    code = cli.exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.out == ''
    assert printed.err.startswith('mv-matcher: error: ')
    assert printed.err.count('\n') == 1
    return printed.err.strip()


def prints_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    code = cli.exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def texture(rows: int = 300, columns: int = 400, seed: int = 0) -> np.ndarray:
    """(rows, columns) uint8 picture with corners at several scales."""
    random = np.random.default_rng(seed)
    layers = [
        cv2.resize(random.integers(0, 256, (rows // s, columns // s)).astype(np.float32),
                   (columns, rows), interpolation=cv2.INTER_CUBIC)
        for s in (6, 12, 30)
    ]  # fmt: skip
    return np.clip(np.mean(layers, axis=0), 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def pairs_file(folder: Path, shift_m: float = 0.5) -> Path:
    """Two views of a textured wall 2 m away, the second camera `shift_m` to the right."""
    focal, depth = 300.0, 2.0
    whole = texture(300, 500, seed=3)
    disparity = round(focal * shift_m / depth)
    write(folder / 'a.png', whole[:, :400])
    write(folder / 'b.png', whole[:, disparity : disparity + 400])
    k = f'{focal} 0 200 0 {focal} 150 0 0 1'
    pose = f'1 0 0 {-shift_m} 0 1 0 0 0 0 1 0 0 0 0 1'
    (folder / 'pairs.txt').write_text(f'# one pair\na.png b.png 0 0 {k} {k} {pose}\n')
    return folder / 'pairs.txt'
