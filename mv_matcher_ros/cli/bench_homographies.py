# SPDX-License-Identifier: Apache-2.0
"""`bench homographies`: keypoints found again and matched on photographs of planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import JsonOption
from mv_matcher_ros.cli.ways import HELP, Way, read_ways

if TYPE_CHECKING:
    from mv_matcher_ros.evaluation.homography_folder import HomographyPair
    from mv_matcher_ros.evaluation.keypoint_error import KeypointFigures


def homographies(
    folder: Annotated[Path, typer.Argument(help='A scene in the layout of HPatches, or many.')],
    ways: Annotated[Path, typer.Option(help=HELP)],
    json: JsonOption = False,
) -> None:
    """Repeatability, matching accuracy and matching score of several ways on planes."""
    from mv_matcher_ros.evaluation.homography_folder import homography_pairs
    from mv_matcher_ros.evaluation.keypoint_error import THRESHOLDS_PX

    listed, chosen = homography_pairs(folder), read_ways(ways)
    figures: dict[str, KeypointFigures] = {}
    with progress('homographies', len(chosen) * len(listed)) as advance:
        for way in chosen:
            figures[way.name] = measure(way, listed, advance)
    content = {name: found.named() for name, found in figures.items()}

    def show() -> None:
        limits = ' / '.join(f'{threshold:g}' for threshold in THRESHOLDS_PX)
        print_table(
            f'{len(listed)} pairs of {folder}; percent within {limits} px',
            (
                'way',
                'repeatability',
                'accuracy',
                'matching score',
                'found px',
                'matched px',
                'matches',
            ),
            [_row(name, found) for name, found in figures.items()],
            right=tuple(range(1, 7)),
        )

    report(
        {'homographies': {'folder': str(folder), 'pairs': len(listed), 'ways': content}},
        json,
        show,
    )


def measure(
    way: Way, listed: Sequence[HomographyPair], advance: Callable[[str], object]
) -> KeypointFigures:
    """Means over the pairs; each image is looked at once a pair."""
    import numpy as np
    import torch

    from mv_matcher_ros.evaluation.keypoint_error import (
        KeypointFigures,
        ViewKeypoints,
        keypoint_figures,
    )
    from mv_matcher_ros.files.images import read_image
    from mv_matcher_ros.training.data.correspondence import by_homography

    detector, matcher = way.only.make()
    found = []
    for pair in listed:
        images = [read_image(path) for path in (pair.first, pair.second)]
        features = [detector.detect(image) for image in images]
        forth = torch.from_numpy(np.asarray(pair.second_from_first, np.float64))
        views = []
        for number, matrix in enumerate((forth, forth.inverse())):
            height, width = images[1 - number].shape[:2]
            xy = features[number].keypoints_xy.double()
            there, seen = by_homography(matrix / matrix[2, 2], width, height)(xy)
            views.append(ViewKeypoints(xy.numpy(), there.numpy(), seen.numpy()))
        matches, _ = matcher.match(features).pair(0, 1)
        found.append(keypoint_figures(views[0], views[1], matches.numpy()))
        advance(f'{way.name}: {pair.name}')
    return KeypointFigures.mean(found)


def _row(name: str, figures: KeypointFigures) -> tuple[str, ...]:
    from mv_matcher_ros.cli.train_detector import figure_cells

    return (name, *figure_cells(figures), f'{figures.matches:.0f}')
