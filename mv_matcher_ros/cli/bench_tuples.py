# SPDX-License-Identifier: Apache-2.0
"""`bench tuples`: several ways of matching on rendered tuples of views, by the poses they give."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import progress
from mv_matcher_ros.cli.options import JsonOption
from mv_matcher_ros.cli.ways import (
    HELP,
    Variant,
    median,
    parse_thresholds,
    read_ways,
    show_comparison,
)
from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mv_matcher_ros.datatypes import Features, Matches
    from mv_matcher_ros.evaluation.pair_comparison import TupleResult
    from mv_matcher_ros.training.data.datasets import TrainingTuple

# Pairs of views with less in common are left out.
LEAST_OVERLAP = 0.1
# A match is right within this distance of its true place.
RIGHT_PX = 3.0


def tuples(
    folder: Annotated[Path, typer.Argument(help='Shards of `train tuples`, e.g. tuples/val.')],
    ways: Annotated[
        Path,
        typer.Option(
            help=f'{HELP} `seeds`, a list of settings, stands for several trainings of one kind; '
            '`pairwise: true` matches two views at a time.'
        ),
    ],
    most: Annotated[int | None, typer.Option(min=1, help='Only the first N tuples.')] = None,
    world: Annotated[
        str | None, typer.Option(help='Only tuples of places whose name begins so.')
    ] = None,
    thresholds_deg: Annotated[
        str, typer.Option(help='Thresholds of the pose AUC, degrees.')
    ] = '5,10,20',
    json: JsonOption = False,
) -> None:
    """AUC of rotations and translations of all views of a tuple, with paired bootstrap intervals.

    Views are seen as by cameras with noise, blur and compression. Poses come from the pose
    estimator over all views of a tuple.
    """
    from mv_matcher_ros.evaluation.pair_comparison import compare_tuples
    from mv_matcher_ros.training.data.datasets import TupleDataset

    limits, chosen = parse_thresholds(thresholds_deg), read_ways(ways)
    data = TupleDataset(folder)
    entries = ((number, data.entry(number)) for number in range(len(data)))
    numbers = [
        number
        for number, entry in entries
        if entry.world.startswith(world or '') and shared_pairs(entry.overlap)
    ][:most]
    if not numbers:
        raise SourceError(
            f'{folder}: no tuple with views that overlap, of a place whose name begins with '
            f'{world!r}'
        )
    runs = {way.name: [Run(variant, way.pairwise) for variant in way.seeds] for way in chosen}
    with progress('tuples', len(numbers)) as advance:
        for number in numbers:
            views = data.tuple_at(number, 0)
            found: dict[str, list[Features]] = {}
            for run in (run for several in runs.values() for run in several):
                run.look_at(views, found)
            advance(str(number))
    results = {name: together(several) for name, several in runs.items()}
    figures = compare_tuples(results, limits)
    content = {
        name: {figure: asdict(value) for figure, value in row.items()}
        | {'ms': median(results[name].milliseconds), 'seeds': len(runs[name])}
        for name, row in figures.items()
    }

    def show() -> None:
        times = {name: f'{of["ms"]:.0f}' for name, of in content.items()}
        show_comparison(f'{len(numbers)} tuples of {folder}', figures, ('ms', times))

    report({'tuples': {'folder': str(folder), 'count': len(numbers), 'ways': content}}, json, show)


class Run:
    """One network or other matcher, and what it made of the tuples so far."""

    def __init__(self, variant: Variant, pairwise: bool) -> None:
        from mv_matcher_ros.odometry.pose_estimator import PoseEstimator

        self._detector, self._matcher = variant.make()
        self._looks, self._pairwise = variant.detector, pairwise
        self._estimator = PoseEstimator(variant.settings.pose_estimator)
        self.rows: list[Mapping[str, Any]] = []

    def look_at(self, views: TrainingTuple, found: dict[str, list[Features]]) -> None:
        """Detect, where none with the same settings has, match and estimate poses."""
        import numpy as np
        import torch

        if self._looks not in found:
            images = (views.images[:, 0] * 255.0).round().to(torch.uint8).numpy()
            looked = [self._detector.detect(np.ascontiguousarray(one)) for one in images]
            found[self._looks] = looked
        features = found[self._looks]
        begin = time.perf_counter()
        matches = self._matched(features)
        middle = time.perf_counter()
        rotation, translation = self._errors(views, features, matches)
        end = time.perf_counter()
        right, made = judged(views, features, matches)
        self.rows.append({
            'rotation': rotation, 'translation': translation, 'right': right, 'made': made,
            'ms': 1e3 * (middle - begin), 'pose_ms': 1e3 * (end - middle),
        })  # fmt: skip

    def _matched(self, features: Sequence[Features]) -> Matches:
        import torch

        from mv_matcher_ros.datatypes import Matches

        if not self._pairwise:
            return self._matcher.match(features)
        parts = []
        for a, b in combinations(range(len(features)), 2):
            one = self._matcher.match([features[a], features[b]])
            parts.append(
                Matches(torch.tensor([[a, b]]).expand(len(one), 2), one.keypoints, one.confidence)
            )
        return Matches(
            torch.cat([part.views for part in parts]),
            torch.cat([part.keypoints for part in parts]),
            torch.cat([part.confidence for part in parts]),
        )

    def _errors(
        self, views: TrainingTuple, features: Sequence[Features], matches: Matches
    ) -> tuple[list[float], list[float]]:
        """Degrees of the pairs with enough overlap, infinite without a pose."""
        import torch

        from mv_matcher_ros.evaluation.matching_error import NO_POSE, pose_error
        from mv_matcher_ros.geometry import se3
        from mv_matcher_ros.models.view_batch import padded

        room = max(len(one) for one in features)
        focal = views.intrinsics[:, 0, 0]
        centre = views.intrinsics[:, :2, 2]
        plane = torch.stack([
            padded((one.keypoints_xy.double() - c) / f, room)
            for one, f, c in zip(features, focal, centre, strict=True)
        ])  # fmt: skip
        sigma = torch.stack([padded(one.sigma_px.double(), room) for one in features])
        sigma = torch.where(sigma > 0, sigma, 1.0) / focal[:, None]
        found = self._estimator.estimate(plane, sigma, matches)
        rotation, translation = [], []
        for a, b in shared_pairs(views.overlap.numpy()):
            truth = se3.inverse(views.world_from_camera[b]) @ views.world_from_camera[a]
            error = NO_POSE
            if bool(found.found[a]) and bool(found.found[b]):
                pose = se3.inverse(found.world_from_body[b]) @ found.world_from_body[a]
                error = pose_error(pose.numpy(), truth.numpy())
            rotation.append(error.rotation_deg)
            translation.append(error.translation_deg)
        return rotation, translation


def shared_pairs(overlap: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pairs of views with enough in common, of the (V, V) overlaps of a tuple."""
    mean = 0.5 * (overlap + overlap.T)
    return [(a, b) for a, b in combinations(range(len(mean)), 2) if mean[a, b] >= LEAST_OVERLAP]


def judged(
    views: TrainingTuple, features: Sequence[Features], matches: Matches
) -> tuple[int, int]:
    """Matches within `RIGHT_PX` of their true place, and all whose true place is known."""
    from mv_matcher_ros.training.data.correspondence import PosedView, by_depth

    posed = [
        PosedView(views.depths[v], views.intrinsics[v], views.world_from_camera[v])
        for v in range(len(features))
    ]
    right = made = 0
    for a, b in combinations(range(len(features)), 2):
        keypoints, _ = matches.pair(a, b)
        there, seen = by_depth(posed[a], posed[b])(
            features[a].keypoints_xy[keypoints[:, 0]].double()
        )
        error = (there - features[b].keypoints_xy[keypoints[:, 1]]).norm(dim=1)
        right += int((seen & (error <= RIGHT_PX)).sum())
        made += int(seen.sum())
    return right, made


def together(runs: Sequence[Run]) -> TupleResult:
    """The results of all seeds of one way."""
    import numpy as np

    from mv_matcher_ros.evaluation.pair_comparison import TupleResult

    pairs = [len(row['rotation']) for row in runs[0].rows]

    def of_pairs(name: str) -> Any:
        return np.array([[v for row in run.rows for v in row[name]] for run in runs])

    def of_tuples(name: str) -> Any:
        return np.array([[row[name] for row in run.rows] for run in runs], np.float64)

    return TupleResult(
        of_pairs('rotation'),
        of_pairs('translation'),
        np.repeat(np.arange(len(pairs)), pairs),
        of_tuples('right'),
        of_tuples('made'),
        np.median(of_tuples('ms') + of_tuples('pose_ms'), axis=0),
    )
