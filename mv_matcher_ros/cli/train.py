# SPDX-License-Identifier: Apache-2.0
"""`train`: what networks learn from, and their training."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from mv_matcher_ros.cli.console import progress, say
from mv_matcher_ros.cli.train_detector import detector, detector_figures
from mv_matcher_ros.cli.train_joint import joint
from mv_matcher_ros.cli.train_matcher import matcher
from mv_matcher_ros.cli.train_places import places
from mv_matcher_ros.cli.train_points import points
from mv_matcher_ros.errors import SourceError

train = typer.Typer(
    help='Render what networks learn from, and train them.',
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
)


train.command()(matcher)
train.command('detector')(detector)
train.command('detector-figures')(detector_figures)
train.command()(joint)
train.command()(places)
train.command()(points)


@train.callback()
def root() -> None:
    """Render what networks learn from, and train them."""


@train.command()
def tuples(
    out: Annotated[Path, typer.Option(help='Folder of the shards.')],
    worlds: Annotated[
        Path | None, typer.Option(help='Folder of .glb files: metres, z up, with textures.')
    ] = None,
    photos: Annotated[Path | None, typer.Option(help='Folder of photographs.')] = None,
    count: Annotated[int, typer.Option(min=0, help='Tuples to train on.')] = 5000,
    validation: Annotated[int, typer.Option(min=0, help='Tuples of what is held out.')] = 0,
    hold_out: Annotated[
        list[str] | None,
        typer.Option('--hold-out', metavar='NAME', help='World for validation; repeatable.'),
    ] = None,
    size: Annotated[str, typer.Option(help='Width x height in pixels.')] = '640x480',
    views: Annotated[int, typer.Option(min=2, max=10, help='Views of a tuple.')] = 5,
    per_shard: Annotated[int, typer.Option(min=1, help='Tuples of a shard.')] = 50,
    procedural: Annotated[
        bool, typer.Option(help='Also rooms, corridors and streets made by the program.')
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help='Of everything.')] = 0,
    workers: Annotated[int, typer.Option(min=1, help='Processes, one core each.')] = 1,
    pictures: Annotated[
        Path | None, typer.Option(help='Sheet of some of the tuples to draw, PNG.')
    ] = None,
) -> None:
    """Render tuples of views with exact depth and pose; what is there already is kept."""
    import cv2

    from mv_matcher_ros.training.data.tuple_rendering import RenderingPlan, jobs, render_shards
    from mv_matcher_ros.training.data.tuple_sources import TupleSources

    sources = TupleSources.find(worlds, photos, hold_out or (), procedural)
    plan = RenderingPlan(count, validation, _size(size), views, per_shard, seed)
    todo = jobs(plan)
    total = sum(job.tuples for job in todo)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    begin, done, made = time.monotonic(), 0, 0
    try:
        with progress('rendering shards', len(todo)) as advance:
            for job in render_shards(sources, plan, out, workers):
                done += job.tuples
                advance(f'{done} of {total} tuples')
                seconds = time.monotonic() - begin
                if seconds > 1.0:
                    made += job.tuples
                    left = (total - done) * seconds / made
                    say(f'{job.path(out)}: {done} of {total} tuples, {_span(left)} left')
    finally:
        cv2.setNumThreads(threads)
    if pictures is not None:
        from mv_matcher_ros.cli.contact_sheet import draw_sheet

        draw_sheet([job.path(out) for job in todo], pictures)
        say(f'drawn: {pictures}')
    say(f'{total} tuples of {views} views in {out}')


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'(\d+)x(\d+)', text)
    if found is None:
        raise SourceError(f'--size {text}: write WIDTHxHEIGHT, e.g. 640x480')
    return int(found[1]), int(found[2])


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{minutes} min'
