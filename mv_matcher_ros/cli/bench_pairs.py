# SPDX-License-Identifier: Apache-2.0
"""`bench pairs`: several ways of matching side by side on the same image pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import JsonOption
from mv_matcher_ros.cli.pair_solvers import PairSolver, Solver
from mv_matcher_ros.errors import SettingsError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.evaluation.pair_comparison import Figure, WayResult
    from mv_matcher_ros.evaluation.pairs_file import ImagePair
    from mv_matcher_ros.models.classical import Detector, Matcher

KEYS = {'name', 'settings', 'aliked'}


@dataclass(frozen=True)
class Way:
    """A way of matching: its name, and how to make its detector and matcher."""

    name: str
    settings: Settings
    make: Callable[[], tuple[Detector, Matcher]]


def pairs(
    file: Annotated[Path, typer.Argument(help='Pairs: name0 name1 rot0 rot1 K0 K1 T_0to1.')],
    ways: Annotated[
        Path,
        typer.Option(
            help='YAML list of ways: each with `name`, `settings` (by dotted names), and `aliked` '
            '(a checkpoint of ALIKED-n16, which takes the place of the detector). The first is '
            'what the others are compared with.'
        ),
    ],
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

    limits = _numbers(thresholds_deg)
    listed = read_pairs(file, images)[::every]
    results: dict[str, WayResult] = {}
    chosen, solvers = read_ways(ways), solver or [Solver.magsac]
    with progress('pairs', len(chosen) * len(listed)) as advance:
        for way in chosen:
            solved = [PairSolver(s, threshold_px, way.settings.pose_estimator) for s in solvers]
            found = measure(way, listed, solved, shuffles, partial(advance, way.name))
            results |= {f'{way.name}, {s.value}': r for s, r in zip(solvers, found, strict=True)}
    figures = compare(results, limits)
    content = {
        name: {figure: asdict(value) for figure, value in row.items()}
        | {'solver_ms': float(_median(results[name].milliseconds))}
        for name, row in figures.items()
    }

    def show() -> None:
        names = list(next(iter(figures.values())))
        for title, cell in (('value', _value_cell), ('against the first', _difference_cell)):
            print_table(
                f'{len(listed)} pairs of {file}, {shuffles} orders, {title} [95 % interval]',
                ('way', *names, 'solver ms'),
                [
                    (way, *(cell(row[n]) for n in names), f'{content[way]["solver_ms"]:.1f}')
                    for way, row in figures.items()
                ],
                right=tuple(range(1, len(names) + 2)),
            )

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

    detector, matcher = way.make()
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


def read_ways(path: Path) -> list[Way]:
    """The ways that a file lists.

    Raises:
        SettingsError: not a list of ways; says what is wrong.
    """
    import yaml

    from mv_matcher_ros.config import read_settings

    try:
        listed = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f'{path}: cannot be read: {" ".join(str(error).split())}') from None
    if not isinstance(listed, list) or not listed:
        raise SettingsError(f'{path}: a list of ways is expected, each with name and settings')
    ways: list[Way] = []
    for number, item in enumerate(listed, start=1):
        if not isinstance(item, Mapping) or 'name' not in item or item.keys() - KEYS:
            raise SettingsError(f'{path}: way {number} has other keys than {sorted(KEYS)}')
        settings = read_settings(item.get('settings') or {}, f'{path}: {item["name"]}')
        if any(way.name == str(item['name']) for way in ways):
            raise SettingsError(f'{path}: two ways are named {item["name"]}')
        ways.append(Way(str(item['name']), settings, partial(_models, settings, item)))
    return ways


def _models(settings: Settings, item: Mapping[str, Any]) -> tuple[Detector, Matcher]:
    if 'aliked' in item:
        from mv_matcher_ros.cli.aliked_baseline import AlikedDetector
        from mv_matcher_ros.models.classical import NearestNeighbourMatcher

        detector = AlikedDetector(Path(item['aliked']), settings.detector.max_keypoints)
        return detector, NearestNeighbourMatcher(settings.matching, 0.5)
    from mv_matcher_ros.models.choice import Models

    models = Models.of(settings)
    return models.detector, models.matcher


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(',')]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0.0:
        raise SettingsError(f'--thresholds-deg {text}: write positive numbers, e.g. 5,10,20')
    return numbers


def _median(values: Any) -> float:
    import numpy as np

    return float(np.median(values))


def _value_cell(figure: Figure) -> str:
    return f'{figure.value:.1f} [{figure.interval[0]:.1f}, {figure.interval[1]:.1f}]'


def _difference_cell(figure: Figure) -> str:
    low, high = figure.difference_interval
    return f'{figure.difference:+.1f} [{low:+.1f}, {high:+.1f}]'
