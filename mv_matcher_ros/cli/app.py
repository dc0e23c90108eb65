# SPDX-License-Identifier: Apache-2.0
"""The table of commands. Importing it stays cheap: each command imports what it needs itself."""

from __future__ import annotations

from typing import Annotated

import typer

from mv_matcher_ros.cli.adapt import adapt
from mv_matcher_ros.cli.bench import bench
from mv_matcher_ros.cli.dataset import dataset
from mv_matcher_ros.cli.demo import demo
from mv_matcher_ros.cli.doctor import doctor
from mv_matcher_ros.cli.evaluate import evaluate
from mv_matcher_ros.cli.export import export
from mv_matcher_ros.cli.images import match
from mv_matcher_ros.cli.localize import localize
from mv_matcher_ros.cli.pairs import pairs
from mv_matcher_ros.cli.run import run
from mv_matcher_ros.cli.settings_list import settings
from mv_matcher_ros.cli.stress import stress
from mv_matcher_ros.cli.train import train

app = typer.Typer(
    name='mv-matcher',
    help='Visual odometry from bags, folders and videos: run it, measure it, look at it.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # errors of the input are one line, see cli/__init__.py
    context_settings={'help_option_names': ['-h', '--help']},
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version('mv_matcher_ros'))
        except PackageNotFoundError:  # run from a source tree that was never installed
            print('unknown')
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option('--version', callback=_print_version, is_eager=True, help='Print it.')
    ] = False,
) -> None:
    """Visual odometry from bags, folders and videos: run it, measure it, look at it."""


# In the order in which a newcomer meets them; typer lists what has commands of its own last.
app.command()(demo)
app.command()(run)
app.command('eval')(evaluate)
app.command()(dataset)
app.command()(localize)
app.command()(match)
app.command()(pairs)
app.command()(adapt)
app.command()(stress)
app.command()(settings)
app.command()(doctor)
app.add_typer(bench, name='bench')
app.add_typer(export, name='export')
app.add_typer(train, name='train')
