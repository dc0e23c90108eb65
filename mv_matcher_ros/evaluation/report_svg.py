# SPDX-License-Identifier: Apache-2.0
"""Small pieces of SVG for the report: scales, ticks, lines, axes.

Drawn here and not by a plotting library so that the page stays small, needs nothing installed,
follows the reader's light or dark theme, and can link its charts under the pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np

from mv_matcher_ros.datatypes import Array

MAX_POINTS = (
    1200  # more than a screen has pixels across; longer series are thinned without losing peaks
)

# From good to bad: blue to orange, distinguishable for colour-blind eyes and on light and dark
# ground alike.
ERROR_RAMP = ('#2f7bf5', '#6f6cf0', '#b05fe0', '#e0559f', '#f0653c', '#f59320')


@dataclass(frozen=True)
class Scale:
    """Linear map from values [low, high] to positions [start, stop] in the drawing."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, values: Array | float) -> Array:
        span = self.high - self.low or 1.0
        share = (np.asarray(values, dtype=np.float64) - self.low) / span
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values within [low, high], about `wanted` of them, 1, 2 or 5 × 10^n apart."""
    span = high - low
    if not (np.isfinite(span) and span > 0):
        return [low]
    rough = span / max(wanted, 1)
    power = 10.0 ** floor(log10(rough))
    step = next(f * power for f in (1.0, 2.0, 5.0, 10.0) if f * power >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def label(value: float, step: float | None = None) -> str:
    """A tick's text with as many decimals as the step between ticks needs."""
    if step is None or step <= 0:
        return f'{value:.3g}'
    decimals = max(0, -floor(log10(step) + 1e-9))
    return f'{value + 0.0:.{min(decimals, 6)}f}'


def ramp_colour(share: float) -> str:
    """Colour of the error ramp at `share` in [0, 1]."""
    place = float(np.clip(share, 0.0, 1.0)) * (len(ERROR_RAMP) - 1)
    index = min(int(place), len(ERROR_RAMP) - 2)
    mix = place - index
    low, high = (
        [int(ERROR_RAMP[k][i : i + 2], 16) for i in (1, 3, 5)] for k in (index, index + 1)
    )
    channels = (round(a + mix * (b - a)) for a, b in zip(low, high, strict=True))
    return '#' + ''.join(f'{c:02x}' for c in channels)


def thin(x: Array, y: Array, limit: int = MAX_POINTS) -> tuple[Array, Array]:
    """At most `limit` points of a series: of each stretch the lowest and the highest."""
    if len(x) <= limit:
        return x, y
    keep: list[int] = []
    for part in np.array_split(np.arange(len(x)), limit // 2):
        values = y[part]
        if np.isfinite(values).any():
            keep.extend(sorted({int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])}))
        else:
            keep.append(int(part[0]))
    return x[keep], y[keep]


def path_data(x: Array, y: Array) -> str:
    """`d` of a polyline through (N,) positions; broken where a position is not finite."""
    parts: list[str] = []
    pen_down = False
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        if not (np.isfinite(px) and np.isfinite(py)):
            pen_down = False
            continue
        parts.append(f'{"L" if pen_down else "M"}{px:.1f} {py:.1f}')
        pen_down = True
    return ''.join(parts)


def polyline(x: Array, y: Array, css: str, style: str = '') -> str:
    """A line through (N,) positions of class `css`."""
    data = path_data(x, y)
    extra = f' style="{style}"' if style else ''
    return f'<path class="{css}" d="{data}"{extra}/>' if data else ''


def area(x: Array, low: Array, high: Array, style: str) -> str:
    """The filled region between two lines over the same (N,) x."""
    if len(x) < 2:
        return ''
    data = path_data(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]))
    return f'<path class="area" d="{data}Z" style="{style}"/>'


def text(x: float, y: float, content: str, css: str = 'tick', anchor: str = 'start') -> str:
    """Text at a position; the content is escaped."""
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f'{escape(content)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line of class `css`."""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def vertical_axis(scale: Scale, left: float, right: float, wanted: int = 4) -> str:
    """Grid lines and labels of a vertical axis whose labels stand left of `left`."""
    values = ticks(scale.low, scale.high, wanted)
    step = values[1] - values[0] if len(values) > 1 else None
    pieces = []
    for value in values:
        y = float(scale(value))
        pieces.append(line(left, y, right, y, 'grid'))
        pieces.append(text(left - 8, y + 4, label(value, step), anchor='end'))
    return ''.join(pieces)


def horizontal_axis(scale: Scale, top: float, bottom: float, unit: str, wanted: int = 8) -> str:
    """Grid lines and labels of a horizontal axis; the unit follows the last label."""
    values = ticks(min(scale.low, scale.high), max(scale.low, scale.high), wanted)
    if (
        scale.low > scale.high
    ):  # drawn from right to left, so the unit still stands at the right end
        values.reverse()
    step = abs(values[1] - values[0]) if len(values) > 1 else None
    pieces = []
    for k, value in enumerate(values):
        x = float(scale(value))
        name = label(value, step) + (f' {unit}' if k == len(values) - 1 else '')
        pieces.append(line(x, top, x, bottom, 'grid'))
        pieces.append(text(x, bottom + 17, name, anchor='middle'))
    return ''.join(pieces)


def document(width: float, height: float, body: Iterable[str], css: str, title: str) -> str:
    """An inline SVG element that scales to the page's width."""
    return (
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(body)}</svg>'
    )


def legend(entries: Sequence[tuple[str, str]], css: str = 'legend') -> str:
    """HTML of a legend: (colour, name) pairs."""
    items = ''.join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for colour, name in entries
    )
    return f'<div class="{css}">{items}</div>'
