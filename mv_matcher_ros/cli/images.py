# SPDX-License-Identifier: Apache-2.0
"""`match` and `pairs`: matching of still images, drawn or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import print_json, print_table, progress, say, warn
from mv_matcher_ros.cli.options import ConfigOption, JsonOption, SetOption, settings_from
from mv_matcher_ros.cli.pair_solvers import Solver, relative_pose
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array, Features
    from mv_matcher_ros.evaluation.matching_error import PairResult
    from mv_matcher_ros.evaluation.pairs_file import ImagePair

IMAGES_CACHED = 64  # features of images that come in several pairs


# What `matching.matcher` means for still images, in which nothing can be kept.
MATCHER_NAMES = {
    'nearest': 'mutual nearest neighbours',
    'multiview': 'graph network',
    'streaming': 'graph network',
}


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
    settings = settings_from(config, assignments)
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
        f'Matches of {len(images)} images '
        f'({settings.detector.name}, {MATCHER_NAMES[settings.matching.matcher]})',
        ('first', 'second', 'keypoints', 'matches', 'agree on one geometry'),
        [
            (Path(r['images'][0]).name, Path(r['images'][1]).name,
             ' / '.join(map(str, r['keypoints'])), r['matches'], r['inliers'])
            for r in rows
        ],
        right=(2, 3, 4),
    )  # fmt: skip
    say(f'drawn: {out}')


def pairs(
    file: Annotated[Path, typer.Argument(help='Pairs: name0 name1 rot0 rot1 K0 K1 T_0to1.')],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: the file's.")
    ] = None,
    solver: Annotated[Solver, typer.Option(help='Solver of the relative pose.')] = Solver.magsac,
    threshold_px: Annotated[
        float, typer.Option(min=0.01, help='Inlier threshold of the solver.')
    ] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help='Only the first N pairs.')] = None,
    per_pair: Annotated[
        bool, typer.Option('--per-pair', help='Also say each pair (JSON only).')
    ] = False,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Pose accuracy and precision of the matches on image pairs with known relative pose."""
    from mv_matcher_ros.evaluation.matching_error import summarise_pairs
    from mv_matcher_ros.evaluation.pairs_file import read_pairs

    settings = settings_from(config, assignments)
    room, most = settings.matching.graph_keypoints, settings.detector.max_keypoints
    if settings.matching.matcher != 'nearest' and room < most:
        warn(f'only the strongest {room} of up to {most} keypoints enter the graph '
             '(matching.graph_keypoints)')  # fmt: skip
    listed = read_pairs(file, images)[:limit]
    measure = pair_measurer(settings, solver, threshold_px)
    results = []
    with progress('pairs', len(listed)) as advance:
        for pair in listed:
            results.append(measure(pair))
            advance(f'{results[-1].matches} matches')
    summary = summarise_pairs(results, f'{solver.full_name}-{threshold_px:g}px')
    content = {**summary.to_json(), 'detector': settings.detector.model_dump(),
               'matching': settings.matching.model_dump()}  # fmt: skip
    if per_pair:
        content['results'] = [asdict(result) for result in results]
    if json:
        print_json(content)
        return
    print_table(
        f'{summary.pairs} pairs of {file} ({settings.detector.name}, solver {summary.solver})',
        ('figure', 'value'),
        [
            *((f'pose AUC@{t}°', f'{value:.1f} %') for t, value in content['auc'].items()),
            ('precision', f'{summary.precision_percent:.1f} %'),
            ('matching score', f'{summary.matching_score_percent:.1f} %'),
            ('matches a pair', f'{summary.matches:.0f}'),
            ('pairs without a pose', summary.failed),
            ('median rotation error', f'{summary.rotation_deg.median:.2f}°'),
            ('median translation error', f'{summary.translation_deg.median:.2f}°'),
        ],
        right=(1,),
    )  # fmt: skip


def pair_measurer(
    settings: Settings, solver: Solver, threshold_px: float
) -> Callable[[ImagePair], PairResult]:
    """A function that matches one pair and measures pose and precision."""
    import numpy as np

    from mv_matcher_ros.evaluation.matching_error import PairResult, epipolar_correct, pose_error
    from mv_matcher_ros.files.images import read_image
    from mv_matcher_ros.models.choice import Models

    models = Models.of(settings)

    @lru_cache(IMAGES_CACHED)
    def look_at(path: Path, quarter_turns: int) -> tuple[tuple[int, int], Features]:
        image = read_image(path)
        height, width = image.shape[:2]
        upright = np.ascontiguousarray(np.rot90(image, quarter_turns))
        return (width, height), models.detector.detect(upright)

    def measure(pair: ImagePair) -> PairResult:
        seen = [look_at(p, q) for p, q in zip(pair.paths, pair.quarter_turns, strict=True)]
        upright = pair.upright((seen[0][0], seen[1][0]))
        keypoints, confidence = models.matcher.match([seen[0][1], seen[1][1]]).pair(0, 1)
        points = [
            normalised(seen[i][1].keypoints_xy[keypoints[:, i]].numpy(), upright.matrices[i])
            for i in (0, 1)
        ]
        focal_px = float(np.mean([matrix[[0, 1], [0, 1]] for matrix in upright.matrices]))
        estimate = relative_pose(
            points[0], points[1], confidence.numpy(), threshold_px / focal_px, solver
        )
        correct = epipolar_correct(points[0], points[1], upright.b_from_a)
        return PairResult(
            pair.names,
            pose_error(estimate, upright.b_from_a),
            len(keypoints),
            int(correct.sum()),
            len(seen[0][1]),
        )

    return measure


def normalised(pixels: Any, matrix: Array) -> Array:
    """(N, 2) pixels through the inverse of the (3, 3) pinhole matrix."""
    import numpy as np

    homogeneous = np.column_stack([pixels, np.ones(len(pixels))]).astype(np.float64)
    return (homogeneous @ np.linalg.inv(matrix).T)[:, :2]
