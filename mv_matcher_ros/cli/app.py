# SPDX-License-Identifier: Apache-2.0
"""The table of commands. Importing it stays cheap: each command imports what it needs itself."""

from __future__ import annotations

from typing import Annotated

import typer

from mv_matcher_ros.cli.doctor import doctor
from mv_matcher_ros.cli.images import match, pairs

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


app.command()(doctor)
app.command()(match)
app.command()(pairs)
