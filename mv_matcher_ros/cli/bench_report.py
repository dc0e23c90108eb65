# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: where and with what they ran is part of every result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from mv_matcher_ros.cli.console import print_json, say

WidthOption = Annotated[
    int, typer.Option(min=160, max=1920, help='Width of the rendered images; height is 3/4.')
]


def image_size(width: int) -> tuple[int, int]:
    """Width and height of rendered images."""
    return width, 3 * width // 4


def report(content: Mapping[str, Any], json: bool, show: Callable[[], None]) -> None:
    """Print a result with machine and versions: as JSON, or as `show` prints it.

    Args:
        content: the result, by the name of the benchmark.
        json: print JSON.
        show: prints the tables.
    """
    from mv_matcher_ros.files.results import machine, versions

    where: dict[str, Mapping[str, Any]] = {'machine': machine(), 'versions': versions()}
    if json:
        print_json({**where, **content})
        return
    for name, values in where.items():
        say(f'{name}: {", ".join(f"{k} {v}" for k, v in values.items())}')
    show()
