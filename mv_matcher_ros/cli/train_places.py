# SPDX-License-Identifier: Apache-2.0
"""`train places`: a descriptor of places from rendered tuples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mv_matcher_ros.cli.console import print_json, print_table, progress, say
from mv_matcher_ros.cli.options import JsonOption, SetOption, parse_assignments
from mv_matcher_ros.cli.train_matcher import SIDES, data_note

if TYPE_CHECKING:
    from mv_matcher_ros.training.matcher.feature_cache import FeatureRecipe

WEIGHTS, WORDS = 'best.safetensors', 'words.npz'


def places(
    config: Annotated[Path, typer.Argument(help='YAML file, e.g. config/train/place_light.yaml.')],
    tuples: Annotated[Path, typer.Option(help='Folder of `train tuples`.')],
    out: Annotated[Path, typer.Option(help='Folder of the weights and the words.')],
    features: Annotated[
        Path | None, typer.Option(help='Folder of features, made once; default: OUT/features.')
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help='Processes that find features.')] = 1,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train a descriptor of places, and a bag of words to compare it with: minutes on a CPU.

    Figures are of the held-out tuples: percent of views whose most similar other view is of the
    same place.
    """
    import numpy as np

    from mv_matcher_ros.models.weights import save_place
    from mv_matcher_ros.training.matcher.feature_cache import FeatureRecipe
    from mv_matcher_ros.training.matcher.feature_set import FeatureSet
    from mv_matcher_ros.training.places.fit import comparison, fit_place, recall_at_one
    from mv_matcher_ros.training.places.settings import PlaceTraining
    from mv_matcher_ros.training.settings import read_train_settings

    settings = read_train_settings(PlaceTraining, config, parse_assignments(assignments or ()))
    recipe = FeatureRecipe(settings.detector, seed=settings.feature_seed)
    files = {
        side: _features(recipe, tuples / side, (features or out / 'features') / side,
                        settings.augmentations if side == 'train' else 1, workers)
        for side in SIDES
    }  # fmt: skip
    data = FeatureSet(files['train'])
    judge = FeatureSet(files['val'], most=settings.validation)
    say(f'{data_note(data.worlds())}')
    network = fit_place(settings, data)
    figures = recall_at_one(judge, network.half().float(), settings.min_overlap)
    detector = recipe.content()['detector']
    notes = {
        'trained': f'mv-matcher train places {config.name}',
        'data': data_note(data.worlds()),
        'detector': detector['name'],
        'detector_sha256': detector['weights'] if detector['name'] == 'learned' else '',
        **{f'validation_{name}': f'{value:.6g}' for name, value in figures.items()},
    }
    digest = save_place(out / WEIGHTS, network.half(), notes)
    if settings.vocabulary.comparison:
        words, weights = comparison(settings, data)
        np.savez(out / WORDS, words=words.numpy(), weights=weights.numpy())
    if json:
        print_json({'weights': str(out / WEIGHTS), 'sha256': digest, **figures})
        return
    print_table(
        f'{out / WEIGHTS}: {len(judge)} held-out tuples',
        ('figure', '%'),
        [(name, f'{value:.1f}') for name, value in figures.items()],
        right=(1,),
    )


def _features(
    recipe: FeatureRecipe, tuples: Path, folder: Path, augmentations: int, workers: int
) -> Sequence[Sequence[Path]]:
    """Files of features of one side, of each shard; made where they are missing."""
    from mv_matcher_ros.training.matcher.feature_cache import (
        feature_jobs,
        make_features,
        variants,
    )

    jobs = feature_jobs(tuples, variants(augmentations))
    with progress(f'features, {tuples.name}', len(jobs)) as advance:
        for job in make_features(recipe, jobs, folder, workers):
            advance(job.shard.name)
    return [[job.path(folder)] for job in jobs]
