# SPDX-License-Identifier: Apache-2.0
"""`export`: networks as ONNX files, for engines of other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mv_matcher_ros.cli.console import say

WeightsArgument = Annotated[Path, typer.Argument(help='File of weights.', metavar='WEIGHTS')]
OutOption = Annotated[Path, typer.Option(help='ONNX file to write.')]

export = typer.Typer(
    help='Write a network as an ONNX file.',
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
)


@export.command()
def detector(
    weights: WeightsArgument,
    out: OutOption = Path('detector.onnx'),
    width: Annotated[int, typer.Option(min=8, help='Of the images.')] = 640,
    height: Annotated[int, typer.Option(min=8, help='Of the images.')] = 480,
    keypoints: Annotated[int, typer.Option(min=1, help='Room for so many.')] = 1024,
    batch: Annotated[int, typer.Option(min=1, help='Images at once.')] = 1,
) -> None:
    """Images (B, 1, H, W) in [0, 1] to keypoints, scores, descriptors, errors and validity."""
    from mv_matcher_ros.models.export import export_detector
    from mv_matcher_ros.models.weights import load_detector

    network = load_detector(weights)
    export_detector(network, out, (width, height), keypoints, batch=batch)
    say(f'written: {out} ({batch} x 1 x {height} x {width} to {keypoints} keypoints)')


@export.command()
def matcher(
    weights: WeightsArgument,
    out: OutOption = Path('matcher.onnx'),
    views: Annotated[int, typer.Option(min=2, max=10, help='Views in one graph.')] = 5,
    keypoints: Annotated[int, typer.Option(min=1, help='Room for so many in a view.')] = 512,
    batch: Annotated[int, typer.Option(min=1, help='Tuples of views at once.')] = 1,
    known_poses: Annotated[
        bool, typer.Option('--known-poses', help='Relative poses of the views are inputs too.')
    ] = False,
) -> None:
    """Features of V views to partners, scores and confidences of all pairs."""
    from mv_matcher_ros.models.export import export_matcher
    from mv_matcher_ros.models.weights import load_matcher

    export_matcher(load_matcher(weights), out, views, keypoints, batch, known_poses)
    say(f'written: {out} ({batch} x {views} views x {keypoints} keypoints)')
