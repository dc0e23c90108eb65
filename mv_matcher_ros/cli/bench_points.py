# SPDX-License-Identifier: Apache-2.0
"""`bench points`: poses against thinned and noisy maps, with and without inferred points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import JsonOption, SetOption, parse_assignments

if TYPE_CHECKING:
    from mv_matcher_ros.cli.point_scenes import Scene
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array, Features, Matches
    from mv_matcher_ros.mapping.map import Map
    from mv_matcher_ros.mapping.map_matching import MapMatcher
    from mv_matcher_ros.mapping.point_aggregation import PointMatches
    from mv_matcher_ros.models.choice import Models

# Ways of asking, by whether points are inferred: without merging those of several keyframes, and
# with it.
WAYS = {False: ('plain', '+CPA'), True: ('+PIN', '+PIN +CPA')}
SHARES = (0.1, 0.3, 1.0)
ERRORS_M = (0.0, 0.02, 0.05, 0.1)
# A query is asked where so many keyframes have something in common with it, at least this much.
_LEAST_OVERLAP = 0.15
WITHIN = ((0.05, 5.0), (0.02, 2.0))


@dataclass(frozen=True)
class Query:
    """A view to be found, the keyframes that are asked, and what matched with them."""

    features: Features
    pose: Array
    keys: Sequence[int]
    matches: Matches


def points(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help='Worlds (.glb), and recordings with depth and true poses.', metavar='SOURCE'
        ),
    ],
    scenes: Annotated[int, typer.Option(min=1, help='Ways through a world.')] = 6,
    keyframes: Annotated[int, typer.Option(min=3, help='Of the map of a way.')] = 10,
    queries: Annotated[int, typer.Option(min=1, help='Views to be found, a way.')] = 6,
    references: Annotated[
        int, typer.Option(min=1, max=8, help='Keyframes asked, those that overlap the most.')
    ] = 4,
    threshold_px: Annotated[float, typer.Option(min=0.5, help='Of inliers.')] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help='Of views and errors.')] = 0,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Share of views found, by how many landmarks a map has and how wrong they are.

    Poses of keyframes are true, landmarks are triangulated, thinned and made wrong by so much in
    x, y and z. A recording is one scene: keyframes of its first half, queries of its last part.
    """
    from mv_matcher_ros.config import read_settings
    from mv_matcher_ros.models.choice import Models

    settings = read_settings(parse_assignments(assignments or ()), '--set')
    models = Models.of(settings)
    content: dict[str, list[dict[str, Any]]] = {}
    asked: dict[str, int] = {}
    for source in sources:
        found = _source(
            source, (scenes, keyframes, queries), references, threshold_px, seed, settings, models
        )
        content[source.stem], asked[source.stem] = found

    def show() -> None:
        for name, rows in content.items():
            _print(f'{name}: {asked[name]} queries', rows)

    report({'points': {'queries': asked, 'rows': content}}, json, show)


def _source(
    source: Path,
    counts: tuple[int, int, int],
    references: int,
    threshold_px: float,
    seed: int,
    settings: Settings,
    models: Models,
) -> tuple[list[dict[str, Any]], int]:
    """Figures of each kind of map and way of asking, and how many queries there were."""
    import numpy as np

    from mv_matcher_ros.cli.point_maps import spoiled
    from mv_matcher_ros.cli.point_scenes import scenes_of

    errors: dict[tuple[float, float, str], list[tuple[float, float, int]]] = {}
    number, total = 0, 0
    with progress(f'scenes of {source.stem}', None) as advance:
        for scene in scenes_of(source, *counts, seed):
            ways = _Ways(settings, models, scene, threshold_px)
            whole, asked = _asked(scene, ways.plain, models, references)
            total += len(asked)
            for share in SHARES:
                for error_m in ERRORS_M:
                    rng = np.random.default_rng((seed, number, round(1e3 * share)))
                    world = spoiled(whole, share, error_m, rng)
                    for query in asked:
                        for name, found in ways.tried(world, query):
                            errors.setdefault((share, error_m, name), []).append(found)
                    advance(f'{scene.name}: {share:.0%} of the landmarks, {100 * error_m:.0f} cm')
            number += 1
    rows = [
        {'landmarks': share, 'error_m': error_m, 'way': name, **_figures(found)}
        for (share, error_m, name), found in errors.items()
    ]
    return rows, total


class _Ways:
    """All ways of asking in a scene."""

    def __init__(
        self, settings: Settings, models: Models, scene: Scene, threshold_px: float
    ) -> None:
        import numpy as np

        from mv_matcher_ros.mapping.map_matching import MapMatcher
        from mv_matcher_ros.mapping.point_aggregation import PointAggregation

        self._camera = replace(scene.camera, body_from_camera=np.eye(4))
        self._threshold = threshold_px / self._camera.focal_px
        self._aggregation = PointAggregation(settings.mapping.points, self._camera.focal_px)
        inference = models.point_inference(settings)
        self.plain = MapMatcher(models.matcher, self._camera)
        self._matchers = {False: self.plain}
        if inference is not None:
            self._matchers[True] = MapMatcher(models.matcher, self._camera, inference)

    def tried(self, world: Map, query: Query) -> Iterator[tuple[str, tuple[float, float, int]]]:
        """Each way, with metres, degrees and inliers."""
        from mv_matcher_ros.mapping.point_aggregation import surest

        for infers, matcher in self._matchers.items():
            found = matcher.candidates(world, query.keys, query.matches)
            alone, together = WAYS[infers]
            yield alone, self._error(world, query, surest(found, len(query.matches)))
            merged = self._aggregation.merged(
                found, query.features.keypoints_xy, len(query.matches)
            )
            yield together, self._error(world, query, merged)

    def _error(self, world: Map, query: Query, found: PointMatches) -> tuple[float, float, int]:
        """Metres, degrees and inliers; infinite where no pose was found."""
        import numpy as np
        import torch

        from mv_matcher_ros.geometry import se3
        from mv_matcher_ros.geometry.camera import camera_normalise
        from mv_matcher_ros.mapping.view_pose import find_view_pose

        plane, _ = camera_normalise(self._camera, query.features.keypoints_xy.double())
        sigma = query.features.sigma_px.double() / self._camera.focal_px
        pose = find_view_pose(found, plane, sigma, self._camera, self._threshold)
        if pose is None:
            return float('inf'), float('inf'), 0
        truth = torch.from_numpy(np.linalg.inv(world.pose[query.keys[0]]) @ query.pose)
        off = se3.inverse(truth) @ pose.world_from_body
        turn = se3.log(off)[3:].norm()
        return float(off[:3, 3].norm()), float(torch.rad2deg(turn)), pose.inliers


def _asked(
    scene: Scene, matcher: MapMatcher, models: Models, references: int
) -> tuple[Map, list[Query]]:
    """The map, and queries with their matches, which no landmark changes."""
    from mv_matcher_ros.cli.point_maps import mapped

    features = [models.detector.detect(view.image) for view in scene.mapped]
    world = mapped(scene.mapped, features, scene.camera, models.nearest)
    asked = []
    for number, view in enumerate(scene.queries):
        overlap = scene.overlap(number)
        order = (-overlap).argsort(kind='stable')[:references]
        keys = [int(key) for key in order if overlap[key] >= _LEAST_OVERLAP]
        if keys:
            seen = models.detector.detect(view.image)
            matches = matcher.matches(world, seen, keys)
            asked.append(Query(seen, view.world_from_camera, keys, matches))
    return world, asked


def _figures(found: Sequence[tuple[float, float, int]]) -> dict[str, float]:
    """Percent within each pair of limits, medians."""
    import numpy as np

    metres, degrees, inliers = (np.array(part) for part in zip(*found, strict=True))
    shares = {
        f'within_{round(100 * m)}cm_{d:g}deg': 100.0
        * float(((metres <= m) & (degrees <= d)).mean())
        for m, d in WITHIN
    }
    return {
        **shares,
        'median_cm': 100.0 * float(np.median(metres)),
        'median_deg': float(np.median(degrees)),
        'inliers': float(np.median(inliers)),
    }


def _print(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    body = [
        (
            f'{100 * row["landmarks"]:.0f} %',
            f'{100 * row["error_m"]:.0f} cm',
            row['way'],
            *(f'{row[f"within_{round(100 * m)}cm_{d:g}deg"]:.1f}' for m, d in WITHIN),
            f'{row["median_cm"]:.2f}',
            f'{row["median_deg"]:.2f}',
            f'{row["inliers"]:.0f}',
        )
        for row in rows
    ]
    print_table(
        title,
        ('landmarks', 'error', 'way', '5 cm 5° (%)', '2 cm 2° (%)', 'median cm', 'median °',
         'inliers'),
        body,
        right=(0, 1, 3, 4, 5, 6, 7),
    )  # fmt: skip
