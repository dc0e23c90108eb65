# SPDX-License-Identifier: Apache-2.0
"""`match`: matching of still images, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mv_matcher_ros.cli.console import print_json, print_table, say, warn
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SetOption,
    for_still_images,
    settings_from,
)
from mv_matcher_ros.errors import SourceError


def match(
    images: Annotated[list[Path], typer.Argument(help='Two or more images.', metavar='IMAGE…')],
    out: Annotated[Path, typer.Option(help='Drawing to write.')] = Path('matches.png'),
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Match images with each other and draw the matches of neighbours."""
    from itertools import combinations

    from mv_matcher_ros.cli.match_drawing import draw_row, epipolar_inliers, save_image
    from mv_matcher_ros.files.images import read_image
    from mv_matcher_ros.models.choice import Models

    if len(images) < 2:
        raise SourceError(f'match needs at least two images, {len(images)} given')
    settings = for_still_images(settings_from(config, assignments))
    pictures = [read_image(path) for path in images]
    models = Models.of(settings)
    features = [models.detector.detect(picture) for picture in pictures]
    matches = models.matcher.match(features)
    if models.graph is not None and (cut := models.graph.left_out(features)):
        warn(f'{cut} of the weakest keypoints left out (matching.graph_keypoints)')
    rows: list[dict[str, Any]] = []
    drawn = []
    for a, b in combinations(range(len(images)), 2):
        keypoints, confidence = matches.pair(a, b)
        ends = (
            features[a].keypoints_xy[keypoints[:, 0]].numpy(),
            features[b].keypoints_xy[keypoints[:, 1]].numpy(),
        )
        inlier = epipolar_inliers(*ends)
        rows.append({
            'images': [str(images[a]), str(images[b])],
            'keypoints': [len(features[a]), len(features[b])],
            'matches': len(keypoints),
            'inliers': int(inlier.sum()),
            'confidence': float(confidence.mean()) if len(confidence) else 0.0,
        })  # fmt: skip
        if b == a + 1:
            drawn.append((*ends, inlier))
    save_image(out, draw_row(pictures, drawn))
    if json:
        print_json({'pairs': rows, 'drawing': str(out)})
        return
    print_table(
        f'Matches of {len(images)} images ({settings.detector.name}, '
        f'{"mutual nearest neighbours" if models.graph is None else "graph network"})',
        ('first', 'second', 'keypoints', 'matches', 'agree on one geometry'),
        [
            (Path(r['images'][0]).name, Path(r['images'][1]).name,
             ' / '.join(map(str, r['keypoints'])), r['matches'], r['inliers'])
            for r in rows
        ],
        right=(2, 3, 4),
    )  # fmt: skip
    say(f'drawn: {out}')
