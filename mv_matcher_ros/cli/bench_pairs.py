# SPDX-License-Identifier: Apache-2.0
"""`bench pairs`: several ways of matching side by side on the same image pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import progress
from mv_matcher_ros.cli.options import JsonOption
from mv_matcher_ros.cli.pair_solvers import PairSolver, Solver
from mv_matcher_ros.cli.ways import HELP, Way, median, parse_thresholds, read_ways, show_comparison

if TYPE_CHECKING:
    from mv_matcher_ros.evaluation.pair_comparison import WayResult
    from mv_matcher_ros.evaluation.pairs_file import ImagePair


def pairs(
    file: Annotated[Path, typer.Argument(help='Pairs: name0 name1 rot0 rot1 K0 K1 T_0to1.')],
    ways: Annotated[Path, typer.Option(help=HELP)],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: the file's.")
    ] = None,
    solver: Annotated[
        list[Solver] | None, typer.Option(help='Solver of the relative pose; repeatable.')
    ] = None,
    threshold_px: Annotated[
        float, typer.Option(min=0.01, help='Inlier threshold of the solvers.')
    ] = 1.0,
    thresholds_deg: Annotated[
        str, typer.Option(help='Thresholds of the pose AUC, degrees.')
    ] = '5,10,20',
    shuffles: Annotated[int, typer.Option(min=1, help='Orders of the matches tried.')] = 5,
    every: Annotated[int, typer.Option(min=1, help='Only every N-th pair.')] = 1,
    json: JsonOption = False,
) -> None:
    """Pose AUC, precision and matching score of several ways, with paired bootstrap intervals."""
    from mv_matcher_ros.evaluation.pair_comparison import compare
    from mv_matcher_ros.evaluation.pairs_file import read_pairs

    limits = parse_thresholds(thresholds_deg)
    listed = read_pairs(file, images)[::every]
    results: dict[str, WayResult] = {}
    chosen, solvers = read_ways(ways), solver or [Solver.magsac]
    with progress('pairs', len(chosen) * len(listed)) as advance:
        for way in chosen:
            solved = [
                PairSolver(s, threshold_px, way.only.settings.pose_estimator) for s in solvers
            ]
            found = measure(way, listed, solved, shuffles, partial(advance, way.name))
            results |= {f'{way.name}, {s.value}': r for s, r in zip(solvers, found, strict=True)}
    figures = compare(results, limits)
    content = {
        name: {figure: asdict(value) for figure, value in row.items()}
        | {'solver_ms': median(results[name].milliseconds)}
        for name, row in figures.items()
    }

    def show() -> None:
        times = {name: f'{row["solver_ms"]:.1f}' for name, row in content.items()}
        title = f'{len(listed)} pairs of {file}, {shuffles} orders'
        show_comparison(title, figures, ('solver ms', times))

    report({'pairs': {'file': str(file), 'count': len(listed), 'ways': content}}, json, show)


def measure(
    way: Way,
    listed: Sequence[ImagePair],
    solvers: Sequence[PairSolver],
    shuffles: int,
    advance: Callable[[], object],
) -> list[WayResult]:
    """One result a solver; each pair is matched once."""
    import numpy as np

    from mv_matcher_ros.cli.pair_matching import MatchedPair, PairFeatures
    from mv_matcher_ros.evaluation.matching_error import epipolar_correct, pose_error
    from mv_matcher_ros.evaluation.pair_comparison import WayResult

    detector, matcher = way.only.make()
    features = PairFeatures(detector)
    shape = (len(solvers), shuffles, len(listed))
    errors, seconds = np.full(shape, np.inf), np.zeros(shape)
    precision, score = np.zeros(len(listed)), np.zeros(len(listed))
    for number, pair in enumerate(listed):
        upright, found = features.of(pair)
        matched = MatchedPair.of(upright, found, matcher)
        correct = int(epipolar_correct(*matched.points, upright.b_from_a).sum())
        precision[number] = 100.0 * correct / max(len(matched.keypoints), 1)
        score[number] = 100.0 * correct / max(len(found[0]), 1)
        for order in range(shuffles):
            rng = np.random.default_rng((order, number))
            turned = matched.in_order(rng.permutation(len(matched.keypoints)))
            for k, solver in enumerate(solvers):
                begin = time.perf_counter()
                pose = solver(turned)
                seconds[k, order, number] = time.perf_counter() - begin
                errors[k, order, number] = pose_error(pose, upright.b_from_a).pose_deg
        advance()
    return [
        WayResult(errors[k], precision, score, 1e3 * np.median(seconds[k], axis=0))
        for k in range(len(solvers))
    ]
