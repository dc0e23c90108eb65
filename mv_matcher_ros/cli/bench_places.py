# SPDX-License-Identifier: Apache-2.0
"""`bench places`: are places found again, beside a bag of words and plain means?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import WidthOption, image_size, report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import ConfigOption, JsonOption, SetOption, settings_from
from mv_matcher_ros.cli.place_baselines import baselines, np_stack, time_search
from mv_matcher_ros.cli.place_sources import LOOPS, PlaceSource, open_places, overlap_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Features
    from mv_matcher_ros.evaluation.place_recall import PlaceTruth, Retrieval, Told

OURS = 'place descriptor'


@dataclass(frozen=True)
class Measured:
    """What was found in one source.

    Attributes:
        keyframes: how many.
        ways: of each way of describing images, how well it finds places.
        told: what the recogniser says; None where nothing can be found.
        describe_ms, ask_ms: medians of describing an image, and of search and recognition.
    """

    keyframes: int
    ways: Mapping[str, Retrieval]
    told: Told
    describe_ms: float
    ask_ms: float


def places(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='[SOURCE]...',
            help='Recordings with ground truth; .glb worlds, in which a walk is rendered; '
            f'{", ".join(LOOPS)}.',
        ),
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help='Bag of words of `train places` to compare with.')
    ] = None,
    every: Annotated[float, typer.Option(min=0.01, help='Time between keyframes, s.')] = 0.25,
    photos: Annotated[
        Path | None, typer.Option(help='Folder of photographs for the walls of .glb worlds.')
    ] = None,
    index: Annotated[
        int, typer.Option(min=0, help='Also time the search among so many keyframes; 0: not.')
    ] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help='Of rendered loops.')] = 0,
    width: WidthOption = 640,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Recall of places seen before, and precision of what the recogniser tells.

    Keyframes of the other sources are always in the index, too. A place is found where the views
    have 30 % in common (depth and poses; without depth: within 5 m and 40 degrees).
    """
    settings = settings_from(config, assignments)
    opened = [open_places(s, every, image_size(width), photos, seed) for s in sources or ()]
    found = measure_places(opened, settings, words)
    timing = None if not index else time_search(index)
    content = {
        'sources': {name: asdict(measured) for name, measured in found.items()},
        'search_ms': timing,
        'every_s': every,
    }
    report({'places': content}, json, lambda: _show(found, timing))


def measure_places(
    sources: Sequence[PlaceSource], settings: Settings, words: Path | None
) -> dict[str, Measured]:
    """Every source by itself, with the keyframes of the others as what must not be found.

    Raises:
        SourceError: no words in the file.
        EvaluationError: a source that sees nothing twice.
    """
    from mv_matcher_ros.evaluation.place_recall import PlaceTruth
    from mv_matcher_ros.models.choice import Models, place_describer

    if not sources:
        return {}
    models = Models.of(settings)
    describer = place_describer(settings, models)
    looked = [_look(source, models) for source in sources]
    vectors: list[dict[str, NDArray[np.float32]]] = []
    times = []
    for one in looked:
        begin = time.perf_counter()
        ours = np_stack([describer.describe(features).numpy() for features in one.features])
        times.append(1e3 * (time.perf_counter() - begin) / len(one.features))
        vectors.append({OURS: ours, **baselines(one.features, words)})
    found = {}
    for number, one in enumerate(looked):
        truth = PlaceTruth.of(one.overlap, one.stamps_ns, settings.mapping.places.gap_s)
        others = [v for k, v in enumerate(vectors) if k != number]
        found[one.name] = _measured(one, truth, vectors[number], others, settings, times[number])
    return found


@dataclass(frozen=True)
class _Looked:
    """Keyframes of a source: what was detected, and which see the same."""

    name: str
    features: list[Features]
    stamps_ns: NDArray[np.int64]
    overlap: NDArray[np.float32]


def _look(source: PlaceSource, models: Any) -> _Looked:
    import numpy as np

    features, depths, stamps = [], [], []
    with progress(source.name, source.count) as advance:
        for frame in source.frames:
            view = frame.views[0]
            features.append(models.detector.detect(view.image, view.mask))
            stamps.append(frame.stamp_ns)
            if view.depth is not None:
                depths.append(view.depth)
            advance()
    overlap = overlap_of(depths, source.camera, source.world_from_camera)
    return _Looked(source.name, features, np.array(stamps, np.int64), overlap)


def _measured(
    one: _Looked,
    truth: PlaceTruth,
    vectors: Mapping[str, NDArray[np.float32]],
    others: Sequence[Mapping[str, NDArray[np.float32]]],
    settings: Settings,
    describe_ms: float,
) -> Measured:
    import numpy as np

    from mv_matcher_ros.evaluation.place_recall import judged, retrieval

    ways = {}
    for way, rows in vectors.items():
        foreign = np.concatenate(
            [np.zeros((0, rows.shape[1]), np.float32)] + [o[way] for o in others]
        )
        shown: NDArray[np.bool_] = np.asarray(rows.any(1))
        scores = np.where(shown[None] & shown[:, None], rows @ rows.T, -np.inf)
        elsewhere = np.where(shown[:, None], rows @ foreign.T, -np.inf)
        ways[way] = retrieval(scores, truth, elsewhere)
    ours = [other[OURS] for other in others]
    answers, times = answers_of(vectors[OURS], one.stamps_ns, ours, settings)
    told = judged(answers, truth)
    return Measured(len(one.features), ways, told, describe_ms, float(np.median(times)))


def answers_of(
    rows: NDArray[np.float32],
    stamps_ns: NDArray[np.int64],
    others: Sequence[NDArray[np.float32]],
    settings: Settings,
) -> tuple[list[int | None], list[float]]:
    """What the recogniser tells of each keyframe (see `place_recall.judged`), and how long it
    takes, ms. Keyframes of elsewhere stand first in the index, long before."""
    import torch

    from mv_matcher_ros.mapping.place_index import PlaceIndex
    from mv_matcher_ros.mapping.places import PlaceRecogniser

    wanted = settings.mapping.places
    index = PlaceIndex(rows.shape[1])
    long_ago = -int(1e9 * (wanted.gap_s + 1.0)) + int(stamps_ns[0])
    for other in others:
        for row in other:
            index.append(-1, long_ago, torch.from_numpy(row))
    recogniser = PlaceRecogniser(index, wanted)
    answers: list[int | None] = []
    times = []
    for number, row in enumerate(rows):
        descriptor = torch.from_numpy(row)
        begin = time.perf_counter()
        candidates = recogniser.recognise(descriptor, int(stamps_ns[number]))
        times.append(1e3 * (time.perf_counter() - begin))
        index.append(number, int(stamps_ns[number]), descriptor)
        best = next((one for one in candidates if one.accepted), None)
        answers.append(None if best is None else best.keys[0])
    return answers, times


def _show(found: Mapping[str, Measured], timing: Mapping[str, float] | None) -> None:
    if found:
        print_table(
            'Places found again: percent of the revisits with the place among the best 1, 5, 10, '
            'and found where 99 % of what is told is right',
            ('source', 'revisits', 'by', '1', '5', '10', 'sure'),
            [
                (name, way.revisits, label, *(f'{v:.1f}' for v in way.recall.values()),
                 f'{way.sure:.1f}')
                for name, measured in found.items()
                for label, way in measured.ways.items()
            ],
            right=(1, 3, 4, 5, 6),
        )  # fmt: skip
        print_table(
            'What the recogniser tells',
            ('source', 'keyframes', 'told', 'wrong', 'precision %', 'recall %',
             'describe ms', 'ask ms'),
            [
                (name, m.keyframes, m.told.told, m.told.wrong,
                 None if m.told.precision is None else f'{m.told.precision:.1f}',
                 f'{m.told.recall:.1f}', f'{m.describe_ms:.1f}', f'{m.ask_ms:.2f}')
                for name, m in found.items()
            ],
            right=range(1, 8),
        )  # fmt: skip
    if timing is not None:
        print_table(
            'Exact search',
            ('keyframes', 'median ms', '95 % ms'),
            [(f'{timing["keyframes"]:.0f}', f'{timing["median"]:.1f}', f'{timing["p95"]:.1f}')],
            right=(0, 1, 2),
        )
