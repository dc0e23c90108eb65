# SPDX-License-Identifier: Apache-2.0
"""Ways of matching that commands compare: how a file lists them, and how figures are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv_matcher_ros.cli.console import print_table
from mv_matcher_ros.cli.options import for_still_images
from mv_matcher_ros.errors import SettingsError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array
    from mv_matcher_ros.evaluation.pair_comparison import Figure
    from mv_matcher_ros.models.classical import Detector, Matcher

KEYS = {'name', 'settings', 'aliked', 'iterations', 'seeds', 'pairwise'}
HELP = (
    'YAML list of ways: each with `name`, `settings` (by dotted names), `aliked` (a checkpoint of '
    'ALIKED-n16, which takes the place of the detector) and `iterations` (of Sinkhorn, instead of '
    "the network's own). The first is what the others are compared with."
)


@dataclass(frozen=True)
class Variant:
    """One network of a way, or the only one.

    Attributes:
        settings: of it.
        detector: what tells detectors apart.
        make: makes its detector and matcher.
    """

    settings: Settings
    detector: str
    make: Callable[[], tuple[Detector, Matcher]]


@dataclass(frozen=True)
class Way:
    """A way of matching.

    Attributes:
        name: for tables.
        seeds: its variants: what was trained alike with other seeds, in most cases one.
        pairwise: of several views it matches two at a time.
    """

    name: str
    seeds: tuple[Variant, ...]
    pairwise: bool

    @property
    def only(self) -> Variant:
        """The variant of a way that has one.

        Raises:
            SettingsError: it has several.
        """
        if len(self.seeds) != 1:
            raise SettingsError(f'{self.name}: `seeds` are for `bench tuples`')
        return self.seeds[0]


def read_ways(path: Path) -> list[Way]:
    """The ways that a file lists.

    Raises:
        SettingsError: not a list of ways; says what is wrong.
    """
    import yaml

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
        if any(way.name == str(item['name']) for way in ways):
            raise SettingsError(f'{path}: two ways are named {item["name"]}')
        seeds = item.get('seeds') or [{}]
        variants = tuple(_variant(item, seed, f'{path}: {item["name"]}') for seed in seeds)
        ways.append(Way(str(item['name']), variants, bool(item.get('pairwise', False))))
    return ways


def _variant(item: Mapping[str, Any], seed: Mapping[str, Any], where: str) -> Variant:
    from mv_matcher_ros.config import read_settings
    from mv_matcher_ros.models.shipped import matcher_file

    settings = read_settings({**(item.get('settings') or {}), **seed}, where)
    settings = for_still_images(settings)
    detector = f'{settings.detector.model_dump_json()} {item.get("aliked", "")}'
    iterations = item.get('iterations')
    graph = 'aliked' not in item and matcher_file(settings) is not None
    if iterations is not None and not (graph and isinstance(iterations, int) and iterations > 0):
        raise SettingsError(f'{where}: iterations {iterations}: 1 or more, of a graph network')
    make = partial(_models, settings, item.get('aliked'), iterations)
    return Variant(settings, detector, make)


def _models(
    settings: Settings, aliked: str | None, iterations: int | None
) -> tuple[Detector, Matcher]:
    if aliked is not None:
        from mv_matcher_ros.cli.aliked_baseline import AlikedDetector
        from mv_matcher_ros.models.classical import NearestNeighbourMatcher

        detector = AlikedDetector(Path(aliked), settings.detector.max_keypoints)
        return detector, NearestNeighbourMatcher(settings.matching, 0.5)
    from mv_matcher_ros.models.choice import Models

    models = Models.of(settings)
    if iterations is not None and models.graph is not None:
        network = models.graph.network
        network.profile = network.profile.model_copy(update={'iterations': iterations})
    return models.detector, models.matcher


def parse_thresholds(text: str) -> list[float]:
    """Degrees, separated by commas.

    Raises:
        SettingsError: not positive numbers.
    """
    try:
        numbers = [float(part) for part in text.split(',')]
    except ValueError:
        numbers = []
    if not numbers or not all(0.0 < number <= 180.0 for number in numbers):
        raise SettingsError(f'--thresholds-deg {text}: write positive numbers, e.g. 5,10,20')
    return numbers


def show_comparison(
    title: str,
    figures: Mapping[str, Mapping[str, Figure]],
    more: tuple[str, Mapping[str, str]],
) -> None:
    """Two tables: values, and differences from the first way; `more` is a last column."""
    names = list(next(iter(figures.values())))
    for of, cell in (('value', value_cell), ('against the first', difference_cell)):
        print_table(
            f'{title}, {of} [95 % interval]',
            ('way', *names, more[0]),
            [(way, *(cell(row[n]) for n in names), more[1][way]) for way, row in figures.items()],
            right=tuple(range(1, len(names) + 2)),
        )


def value_cell(figure: Figure) -> str:
    return f'{figure.value:.1f} [{figure.interval[0]:.1f}, {figure.interval[1]:.1f}]'


def difference_cell(figure: Figure) -> str:
    low, high = figure.difference_interval
    return f'{figure.difference:+.1f} [{low:+.1f}, {high:+.1f}]'


def median(values: Array) -> float:
    """A plain number, for JSON."""
    import numpy as np

    return float(np.median(values))
