# SPDX-License-Identifier: Apache-2.0
"""ONNX files say what the networks say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.export import export_detector, export_matcher
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import DetectorProfile, MatcherProfile
from mv_matcher_ros.models.static import DETECTOR_OUTPUTS, MATCHER_OUTPUTS, POSE_INPUTS
from mv_matcher_ros.models.view_batch import ViewBatch

DETECTOR = DetectorProfile(
    widths=(4, 4, 8, 8), head_width=16, descriptor_size=8, threshold=0.0, nms_rounds=1
)
MATCHER = MatcherProfile(
    descriptor_size=8, width=16, attention_size=16, blocks=2, encoder=(8,), confidence_size=4
)


def run(path: Path, **inputs: torch.Tensor) -> list[torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return [torch.from_numpy(part) for part in session.run(None, arrays)]


@pytest.mark.slow
def test_a_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DetectorNetwork(DETECTOR).eval()
    with torch.no_grad():  # scores that differ by more than rounding
        network.score.weight.mul_(50.0)
    path = tmp_path / 'd.onnx'
    export_detector(network, path, (100, 75), 40, batch=2)
    images = torch.rand(2, 1, 75, 100)
    with torch.inference_mode():
        expected = network(images, 40, 4)
    for name, got in zip(DETECTOR_OUTPUTS, run(path, images=images), strict=True):
        wanted = getattr(expected, 'xy' if name == 'keypoints_xy' else name)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('informed', [False, True])
def test_a_matcher_with_room_that_is_not_used(tmp_path: Path, informed: bool) -> None:
    torch.manual_seed(0)
    network = MatcherNetwork(MATCHER).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path = tmp_path / 'm.onnx'
    export_matcher(network, path, views=3, capacity=24, known_poses=informed)
    inputs = {
        'keypoints_xy': 400.0 * torch.rand(1, 3, 24, 2),
        'descriptors': torch.nn.functional.normalize(torch.randn(1, 3, 24, 8), dim=-1),
        'scores': torch.rand(1, 3, 24),
        'valid': torch.rand(1, 3, 24) > 0.3,
        'image_size': torch.tensor([640.0, 480.0]).repeat(1, 3, 1),
    }
    batch, known = ViewBatch(**inputs), None
    if informed:
        pose = torch.eye(4).repeat(1, 3, 1, 1)
        pose[0, :, 0, 3] = torch.tensor([0.0, 0.3, 0.7])
        sigma = torch.full((1, 3, 3), 0.1)
        sigma[0, 0, 1] = sigma[0, 1, 0] = torch.inf
        known = KnownPoses.of(0.01 * inputs['keypoints_xy'], pose, sigma)
        inputs |= {name: getattr(known, name) for name in POSE_INPUTS}
    with torch.inference_mode():
        expected = network(batch, known=known)
    assert int((expected.partner >= 0).sum()) > 5
    for name, got in zip(MATCHER_OUTPUTS, run(path, **inputs), strict=True):
        torch.testing.assert_close(got, getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name)


def test_a_missing_exporter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(MissingDependencyError, match=r'onnxscript.*\[export\]'):
        export_matcher(MatcherNetwork(MATCHER), tmp_path / 'm.onnx', 2, 8)
