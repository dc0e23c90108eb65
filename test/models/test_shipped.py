# SPDX-License-Identifier: Apache-2.0
"""The weights that come with the package: whole, small, described, and of detectors that fit."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from cli_cases import texture

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.models.choice import Models, place_describer
from mv_matcher_ros.models.shipped import FOLDER, shipped
from mv_matcher_ros.models.weights import load_detector, read_notes, read_weights, tensors_hash
from mv_matcher_ros.worlds.effects import PERFECT
from mv_matcher_ros.worlds.presets import room_loop

Picture = NDArray[np.uint8]
MOST_BYTES = 40e6
MOST_PLACE_BYTES = 2e6
FILES = [
    (kind, path) for kind in ('detector', 'matcher', 'points') for path in shipped(kind).values()
]


def test_there_are_some() -> None:
    assert 'light' in shipped('detector')
    assert 'light' in shipped('matcher')
    assert 'light' in shipped('points')


@pytest.mark.parametrize(('kind', 'path'), FILES, ids=[path.stem for _, path in FILES])
def test_a_file_is_whole_small_and_described(kind: str, path: Path) -> None:
    weights = read_weights(path, kind)
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float16}
    assert path.stat().st_size <= MOST_BYTES
    assert f'## {path.stem}\n' in (FOLDER / 'README.md').read_text()
    assert int(weights.notes['steps']) + int(weights.notes.get('from_steps', 0)) > 1000


def test_other_networks_belong_to_detectors_that_are_there() -> None:
    files = shipped('detector').values()
    known = {tensors_hash(load_detector(file).state_dict()) for file in files}
    for path in (*shipped('matcher').values(), *shipped('points').values()):
        notes = read_notes(path)
        assert notes['detector'] != 'learned' or notes['detector_sha256'] in known


def test_places_are_small_described_and_of_a_detector_that_is_there() -> None:
    known = {tensors_hash(load_detector(f).state_dict()) for f in shipped('detector').values()}
    assert 'light' in shipped('place')
    for path in shipped('place').values():
        weights = read_weights(path, 'place')
        assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float16}
        assert path.stat().st_size <= MOST_PLACE_BYTES
        assert f'## {path.stem}\n' in (FOLDER / 'README.md').read_text()
        assert weights.notes['detector_sha256'] in known


def test_the_light_place_descriptor_knows_a_place_in_a_room() -> None:
    settings = read_settings({})
    models = Models.of(settings)
    describer = place_describer(settings, models)
    room = room_loop('mono', size=(320, 240), effects=PERFECT)
    pictures = [room.frame(index).views[0].image for index in (0, 8, 100)]
    first, near, other = (describer.describe(models.detector.detect(p)) for p in pictures)
    assert float(first @ near) > 0.5
    assert float(first @ other) < 0.3


def turned_picture() -> tuple[Picture, Picture, NDArray[np.float64]]:
    """A picture, the same turned by 10 degrees, and the (2, 3) matrix between them."""
    first = texture(240, 320)
    matrix = cv2.getRotationMatrix2D((160.0, 120.0), 10.0, 1.0)
    return first, np.asarray(cv2.warpAffine(first, matrix, (320, 240)), np.uint8), matrix


def errors_px(
    a: Features, b: Features, pairs: torch.Tensor, matrix: NDArray[np.float64]
) -> NDArray[np.float64]:
    there = a.keypoints_xy[pairs[:, 0]].numpy() @ matrix[:, :2].T + matrix[:, 2]
    return np.linalg.norm(there - b.keypoints_xy[pairs[:, 1]].numpy(), axis=1)


def test_the_light_detector_finds_a_picture_again() -> None:
    first, second, matrix = turned_picture()
    models = Models.of(read_settings({'detector.name': 'learned', 'matching.ratio': 1.0}))
    a, b = (models.detector.detect(picture) for picture in (first, second))
    error = errors_px(a, b, models.nearest.match([a, b]).pair(0, 1)[0], matrix)
    assert len(error) > 150
    assert np.mean(error < 2.0) > 0.8
    assert np.median(error) < 0.6


def test_the_light_matcher_knows_which_matches_are_wrong() -> None:
    first, second, matrix = turned_picture()
    settings = {'detector.name': 'learned', 'matching.ratio': 1.0}
    models = Models.of(read_settings(settings))
    a, b = (models.detector.detect(picture) for picture in (first, second))
    assert models.graph is not None
    found = errors_px(a, b, models.graph.match([a, b]).pair(0, 1)[0], matrix)
    nearest = errors_px(a, b, models.nearest.match([a, b]).pair(0, 1)[0], matrix)
    assert np.mean(found < 3.0) > 0.97
    assert np.mean(found < 3.0) > np.mean(nearest < 3.0)
    assert (found < 3.0).sum() > 0.9 * (nearest < 3.0).sum()
