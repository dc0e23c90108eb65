# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.matching_error import symmetric_epipolar_distance
from mv_matcher_ros.evaluation.pairs_file import read_pairs

K0 = '500 0 320 0 510 240 0 0 1'
K1 = '400 0 300 0 410 200 0 0 1'
POSE = '1 0 0 0.5 0 1 0 0 0 0 1 0.25 0 0 0 1'
GOOD = f'a.jpg sub/b.jpg 0 1 {K0} {K1} {POSE}'


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        path = tmp_path / 'pairs.txt'
        path.write_text(text, encoding='utf-8')
        return path

    return make


def test_a_line_is_read(write, tmp_path):
    (pair,) = read_pairs(write(f'# comment\n\n{GOOD}\n'))
    assert pair.names == ('a.jpg', 'sub/b.jpg')
    assert pair.paths == (tmp_path / 'a.jpg', tmp_path / 'sub/b.jpg')
    assert pair.quarter_turns == (0, 1)
    assert pair.matrices[0].tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert pair.matrices[1][1, 2] == 200
    assert pair.b_from_a[:3, 3].tolist() == [0.5, 0, 0.25]


def test_images_may_lie_elsewhere(write, tmp_path):
    (tmp_path / 'pictures').mkdir()
    (pair,) = read_pairs(write(GOOD), tmp_path / 'pictures')
    assert pair.paths[0] == tmp_path / 'pictures/a.jpg'
    with pytest.raises(EvaluationError, match='no such folder of images'):
        read_pairs(write(GOOD), tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'holds no pairs'),
        ('# only a comment', 'holds no pairs'),
        (f'{GOOD}\na.jpg b.jpg 0 0', r'pairs.txt:2: 4 fields instead of 38'),
        (GOOD.replace('510', 'wide'), r'pairs.txt:1: not a number: .*wide'),
        (GOOD.replace('0 1 500', '0 1.5 500', 1), r'pairs.txt:1: not a number'),
        (GOOD.replace('500 0 320', '0 0 320'), r'pairs.txt:1: K0 is no camera matrix'),
        (GOOD.replace('400 0 300', 'nan 0 300'), r'pairs.txt:1: K1 is no camera matrix'),
        (GOOD.replace('410 200 0 0 1', '410 200 0 0 2'), r'pairs.txt:1: K1 is no pinhole'),
        (GOOD.replace('1 0 0 0.5', '2 0 0 0.5'), r'pairs.txt:1: T_0to1 is not a rigid'),
        (GOOD.replace('1 0 0 0.5', '-1 0 0 0.5'), r'pairs.txt:1: T_0to1 is not a rigid'),
    ],
)
def test_faults_are_named_with_file_and_line(write, text, message):
    with pytest.raises(EvaluationError, match=message):
        read_pairs(write(text))


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(EvaluationError, match='no such list of pairs'):
        read_pairs(tmp_path / 'none.txt')
    (tmp_path / 'image.txt').write_bytes(b'\xff\xd8\xff\xe0')
    with pytest.raises(EvaluationError, match='not a readable text file'):
        read_pairs(tmp_path / 'image.txt')


@pytest.mark.parametrize('quarters', [(0, 0), (1, 0), (0, 2), (3, 1), (5, 3)])
def test_turning_upright_keeps_the_epipolar_geometry(write, quarters, se3_exp):
    pose = se3_exp(np.array([0.5, -0.1, 0.2, 0.05, -0.2, 0.1]))
    text = ' '.join(repr(float(v)) for v in pose.ravel())
    (pair,) = read_pairs(write(f'a b {quarters[0]} {quarters[1]} {K0} {K1} {text}'))
    sizes = ((640, 480), (600, 400))
    upright = pair.upright(sizes)
    points = np.random.default_rng(0).uniform([-1, -1, 3], [1, 1, 6], (20, 3))
    rays = []
    for k, (matrix, size) in enumerate(zip(pair.matrices, sizes, strict=True)):
        seen = points if k == 0 else points @ pose[:3, :3].T + pose[:3, 3]
        pixels = (seen / seen[:, 2:]) @ matrix.T
        x, y = pixels[:, 0], pixels[:, 1]
        width, height = size
        for _ in range(quarters[k] % 4):  # what np.rot90 does to a pixel's coordinates
            x, y, width, height = y, width - 1 - x, height, width
        turned = np.column_stack([x, y, np.ones(20)])
        rays.append((turned @ np.linalg.inv(upright.matrices[k]).T)[:, :2])
    assert symmetric_epipolar_distance(rays[0], rays[1], upright.b_from_a).max() < 1e-20
    assert upright.quarter_turns == (0, 0)


def test_the_turn_of_coordinates_is_that_of_numpys_rot90(write):
    (pair,) = read_pairs(write(GOOD))
    image = np.zeros((480, 640))
    image[100, 30] = 1.0
    row, column = np.argwhere(np.rot90(image) > 0)[0]
    # A point on the optical axis of the turned camera is the turned principal point.
    turned = pair.upright(((640, 480), (640, 480))).matrices[1]
    assert (turned[0, 2], turned[1, 2]) == (200, 640 - 1 - 300)
    assert (column, row) == (100, 640 - 1 - 30)


@pytest.mark.data
@pytest.mark.parametrize('name', ['strecha', 'lund_door', 'fox', 'sevenscenes'])
def test_real_lists_are_read(data_root, name):
    pairs = read_pairs(data_root / 'pairs' / name / 'pairs_with_gt.txt')
    assert len(pairs) >= 60
    assert all(path.is_file() for pair in pairs for path in pair.paths)
