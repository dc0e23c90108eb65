# SPDX-License-Identifier: Apache-2.0
"""`pairs`: matches and poses of image pairs with known relative pose, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import print_json, print_table, progress, warn
from mv_matcher_ros.cli.options import (
    ConfigOption,
    JsonOption,
    SetOption,
    for_still_images,
    settings_from,
)
from mv_matcher_ros.cli.pair_precision import (
    HalfPrecision,
    precision_comparer,
    summarise_changes,
)
from mv_matcher_ros.cli.pair_solvers import PairSolver, Solver

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.evaluation.matching_error import PairResult
    from mv_matcher_ros.evaluation.pairs_file import ImagePair


def pairs(
    file: Annotated[Path, typer.Argument(help='Pairs: name0 name1 rot0 rot1 K0 K1 T_0to1.')],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: the file's.")
    ] = None,
    solver: Annotated[Solver, typer.Option(help='Solver of the relative pose.')] = Solver.magsac,
    threshold_px: Annotated[
        float, typer.Option(min=0.01, help='Inlier threshold of the solver.')
    ] = 1.0,
    every: Annotated[int, typer.Option(min=1, help='Only every N-th pair.')] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help='Only the first N pairs (of those of --every).')
    ] = None,
    per_pair: Annotated[
        bool, typer.Option('--per-pair', help='Also say each pair (JSON only).')
    ] = False,
    compare_precision: Annotated[
        HalfPrecision | None,
        typer.Option(
            help='Run each pair twice, networks in fp32 and in this precision, and say what that '
            'changes in matches and poses. Works on a CPU too: fp16 there computes with the same '
            'numbers as on a GPU (stored as fp16, summed in fp32), only slowly.'
        ),
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Pose accuracy and precision of the matches on image pairs with known relative pose."""
    from mv_matcher_ros.evaluation.pairs_file import read_pairs
    from mv_matcher_ros.models.shipped import matcher_file

    settings = for_still_images(settings_from(config, assignments))
    room, most = settings.matching.graph_keypoints, settings.detector.max_keypoints
    if matcher_file(settings) is not None and room < most:
        warn(f'only the strongest {room} of up to {most} keypoints enter the graph '
             '(matching.graph_keypoints)')  # fmt: skip
    chosen = PairSolver(solver, threshold_px, settings.pose_estimator)
    listed = read_pairs(file, images)[::every][:limit]
    used = {'detector': settings.detector.model_dump(), 'matching': settings.matching.model_dump()}
    if compare_precision is None:
        results = _each(listed, pair_measurer(settings, chosen), 'matches')
        content = {**_summary(results, chosen), **used}
        title = f'{len(listed)} pairs of {file} ({settings.detector.name}, solver {chosen.name})'
        rows = _accuracy_rows(content)
    else:
        compare, places = precision_comparer(settings, chosen, compare_precision)
        results = _each(listed, compare, 'jaccard')
        content = {'compared': places, **summarise_changes(results), 'solver': chosen.name, **used}
        title = f'{len(listed)} pairs of {file}, {places} (solver {chosen.name})'
        rows = _change_rows(content)
    if per_pair:
        content['results'] = [asdict(result) for result in results]
    if json:
        print_json(content)
    else:
        print_table(title, ('figure', 'value'), rows, right=(1,))


def _each(listed: Sequence[ImagePair], work: Callable[[ImagePair], Any], says: str) -> list[Any]:
    """The results of all pairs; the bar says one attribute of the newest."""
    results = []
    with progress('pairs', len(listed)) as advance:
        for pair in listed:
            results.append(work(pair))
            advance(f'{getattr(results[-1], says):.4g} {says}')
    return results


def _summary(results: Sequence[PairResult], solver: PairSolver) -> dict[str, Any]:
    from mv_matcher_ros.evaluation.matching_error import summarise_pairs

    return summarise_pairs(results, solver.name).to_json()


def _accuracy_rows(content: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        *((f'pose AUC@{t}°', f'{value:.1f} %') for t, value in content['auc'].items()),
        ('precision', f'{content["precision"]:.1f} %'),
        ('matching score', f'{content["matching_score"]:.1f} %'),
        ('matches a pair', f'{content["matches"]:.0f}'),
        ('pairs without a pose', content['failed']),
        ('poses wrong by more than 20°', content['wrong']),
        ('median rotation error', _degrees(content['rotation_deg']['median'])),
        ('median translation error', _degrees(content['translation_deg']['median'])),
    ]


def _change_rows(content: dict[str, Any]) -> list[tuple[str, Any]]:
    rotation, translation = content['rotation_deg'], content['translation_deg']
    return [
        ('Jaccard of the match sets, mean', f'{content["jaccard"]["mean"]:.4f}'),
        ('Jaccard, lowest', f'{content["jaccard"]["lowest"]:.4f}'),
        ('matches a pair, fp32', f'{content["matches"]:.0f}'),
        ('change of rotation, median', _degrees(rotation['median'], 4)),
        ('change of rotation, 90 %', _degrees(rotation['p90'], 4)),
        ("change of the translation's direction, median", _degrees(translation['median'], 4)),
        ("change of the translation's direction, 90 %", _degrees(translation['p90'], 4)),
        ('pairs with a pose in one precision only', content['pose_in_one_only']),
        ('pairs without a pose in either', content['without_pose']),
    ]


def _degrees(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f'{value:.{digits}f}°'


def pair_measurer(settings: Settings, solver: PairSolver) -> Callable[[ImagePair], PairResult]:
    """A function that matches one pair and measures pose and precision."""
    from mv_matcher_ros.cli.pair_matching import MatchedPair, PairFeatures
    from mv_matcher_ros.evaluation.matching_error import PairResult, epipolar_correct, pose_error
    from mv_matcher_ros.models.choice import Models

    models = Models.of(settings)
    features = PairFeatures(models.detector)

    def measure(pair: ImagePair) -> PairResult:
        upright, found = features.of(pair)
        matched = MatchedPair.of(upright, found, models.matcher)
        correct = epipolar_correct(*matched.points, upright.b_from_a)
        return PairResult(
            pair.names,
            pose_error(solver(matched), upright.b_from_a),
            len(matched.keypoints),
            int(correct.sum()),
            len(found[0]),
        )

    return measure
