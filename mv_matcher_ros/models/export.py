# SPDX-License-Identifier: Apache-2.0
"""Networks as ONNX files, from which engines of other runtimes are built.

Shapes are fixed at export: images of one size, so many views with room for so many keypoints.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mv_matcher_ros.errors import MissingDependencyError
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.static import (
    DETECTOR_OUTPUTS,
    MATCHER_INPUTS,
    MATCHER_OUTPUTS,
    POSE_INPUTS,
    StaticDetector,
    StaticMatcher,
)

OPSET = 18


def export_detector(
    network: DetectorNetwork,
    path: Path | str,
    image_size: tuple[int, int],
    max_keypoints: int,
    border_px: int = 4,
    batch: int = 1,
) -> None:
    """Write a detector: images (B, 1, H, W) in [0, 1] → the fields of `Keypoints`.

    Raises:
        MissingDependencyError: the exporter's package is not installed.
    """
    width, height = image_size
    images = torch.rand(batch, 1, height, width)
    module = StaticDetector(network.eval(), max_keypoints, border_px)
    _export(module, (images,), path, ('images',), DETECTOR_OUTPUTS)


def export_matcher(
    network: MatcherNetwork,
    path: Path | str,
    views: int,
    capacity: int,
    batch: int = 1,
    known_poses: bool = False,
) -> None:
    """Write a matcher: the fields of `ViewBatch` → partner, log_score and confidence of all pairs.

    Pairs come in the order (0, 1), (0, 2), …, (1, 2), …; `valid` masks the room that is not used.
    With `known_poses` the fields of `KnownPoses` are inputs too; sigma inf says not known.

    Raises:
        MissingDependencyError: the exporter's package is not installed.
    """
    shape = (batch, views, capacity)
    example: tuple[Tensor | None, ...] = (
        torch.rand(*shape, 2) * 400.0,
        nn.functional.normalize(torch.randn(*shape, network.profile.descriptor_size), dim=-1),
        torch.rand(*shape),
        torch.ones(*shape, dtype=torch.bool),
        torch.tensor([640.0, 480.0]).expand(batch, views, 2).contiguous(),
    )
    inputs: tuple[str, ...] = MATCHER_INPUTS
    if known_poses:
        poses = torch.eye(4).expand(batch, views, views, 4, 4).contiguous()
        example += (None, torch.rand(*shape, 2), poses, torch.ones(batch, views, views))
        inputs += POSE_INPUTS
    _export(StaticMatcher(network.eval()), example, path, inputs, MATCHER_OUTPUTS)


def _export(
    module: nn.Module,
    example: tuple[Tensor | None, ...],
    path: Path | str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingDependencyError('onnxscript', 'export', 'writing ONNX files') from None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # the exporter's, of torch itself
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
