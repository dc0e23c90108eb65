# SPDX-License-Identifier: Apache-2.0
"""The figures of the report: the path from above and from the side, and charts over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.evaluation import report_svg as svg

WIDTH = 1000.0
LEFT, RIGHT = (
    62.0,
    984.0,
)  # horizontal extent of every plot, so that charts over time stand in line
COLOUR_LEVELS = 32
SERIES = ('#2f7bf5', '#12a594', '#f59320', '#b05fe0', '#e0559f', '#7a8699', '#8ab62d', '#c2703d')


@dataclass(frozen=True)
class PathFigure:
    """Paths to draw, in odom's axes (x forward, y left, z up).

    Attributes:
        estimate: (N, 3) positions.
        truth: (M, 3) positions, or None.
        values: (N,) that colour the estimate, or None for one colour.
        value_limit: the value at the end of the colour ramp.
        breaks: (N - 1,) bool, True where poses are missing between i and i + 1.
        keyframe: (N,) bool.
        unit: of lengths.
    """

    estimate: Array
    truth: Array | None
    values: Array | None
    value_limit: float
    breaks: NDArray[np.bool_]
    keyframe: NDArray[np.bool_]
    unit: str


@dataclass(frozen=True)
class TimeSeries:
    """One line of a chart: (F,) values over the chart's times, NaN where there is none."""

    name: str
    values: Array
    colour: str


def path_figures(figure: PathFigure) -> tuple[str, str, Array, Array]:
    """SVG of the path from above and from the side, and the (N, 2) drawn positions in each.

    Both have one scale in all directions and share the horizontal axis, which is the longer of
    forward (x) and sideways (y, then drawn with forward up).
    """
    points = (
        figure.estimate if figure.truth is None else np.vstack([figure.estimate, figure.truth])
    )
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.maximum(high - low, 1e-6)
    sideways = extent[1] > 1.6 * extent[0]
    across, along = (1, 0) if sideways else (0, 1)
    # Units a pixel: the horizontal extent fills the width unless the picture became too high.
    pixels = RIGHT - LEFT - 40
    per_pixel = max(extent[across] / pixels, extent[along] / 460.0, extent[2] / 300.0)
    middle = 0.5 * (low + high)
    half = 0.5 * (RIGHT - LEFT) * per_pixel
    ends = (middle[across] - half, middle[across] + half)
    horizontal = svg.Scale(*(ends[::-1] if sideways else ends), LEFT, RIGHT)
    drawn = []
    for axis, least, name in ((along, 150.0, 'above'), (2, 110.0, 'the side')):
        height = max(extent[axis] / per_pixel + 44, least)
        reach = 0.5 * height * per_pixel
        vertical = svg.Scale(middle[axis] - reach, middle[axis] + reach, 12 + height, 12)
        drawn.append(_path_view(figure, horizontal, vertical, across, axis, name))
    (above, at_above), (side, at_side) = drawn
    return above, side, at_above, at_side


def _path_view(
    figure: PathFigure,
    horizontal: svg.Scale,
    vertical: svg.Scale,
    across: int,
    axis: int,
    name: str,
) -> tuple[str, Array]:
    bottom = vertical.start
    middle = 0.5 * (LEFT + RIGHT)
    names = {0: 'x forward →', 1: '← y left' if across == 1 else 'y left →', 2: 'z up →'}
    body = [
        svg.horizontal_axis(horizontal, vertical.stop, bottom, figure.unit),
        svg.vertical_axis(vertical, LEFT, RIGHT, max(2, round((bottom - 12) / 80))),
        f'<rect class="frame" x="{LEFT}" y="12" width="{RIGHT - LEFT}" '
        f'height="{bottom - 12:.1f}"/>',
        svg.text(middle, bottom + 34, names[across], 'axis', 'middle'),
        f'<text class="axis" transform="translate(16 {0.5 * bottom + 6:.1f}) rotate(-90)" '
        f'text-anchor="middle">{names[axis]}</text>',
    ]
    at = np.column_stack(
        [horizontal(figure.estimate[:, across]), vertical(figure.estimate[:, axis])]
    )
    if figure.truth is not None:
        x, y = horizontal(figure.truth[:, across]), vertical(figure.truth[:, axis])
        body.append(svg.polyline(x, y, 'truth'))
    body.extend(_coloured_path(at, figure))
    keys = at[figure.keyframe]
    dots = ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in keys)
    if len(keys):  # twice: a dot with a rim
        body.append(
            f'<path class="keyframe-rims" d="{dots}"/><path class="keyframes" d="{dots}"/>'
        )
    for index in np.flatnonzero(figure.breaks):
        (x1, y1), (x2, y2) = at[index], at[index + 1]
        body.append(svg.line(x1, y1, x2, y2, 'lost'))
        body.append(f'<path class="lost-end" d="M{x1:.1f} {y1:.1f}h0M{x2:.1f} {y2:.1f}h0"/>')
    body.append(f'<circle class="start" cx="{at[0, 0]:.1f}" cy="{at[0, 1]:.1f}" r="5"/>')
    x, y = at[-1]
    body.append(f'<rect class="end" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>')
    body.append('<circle class="here" r="6" cx="-20" cy="-20"/>')
    title = f'Path from {name}'
    return svg.document(WIDTH, bottom + 40, body, 'path', title), at


def _coloured_path(at: Array, figure: PathFigure) -> list[str]:
    """The estimate as few polylines: neighbours of one colour together, broken at gaps."""
    if len(at) < 2:
        return []
    level = np.zeros(len(at) - 1, dtype=np.int64)
    if figure.values is not None:
        share = np.maximum(figure.values[1:], figure.values[:-1]) / max(figure.value_limit, 1e-12)
        level = np.clip(np.round(share * COLOUR_LEVELS), 0, COLOUR_LEVELS).astype(np.int64)
    level = np.where(figure.breaks, -1, level)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(level)) + 1, [len(level)]])
    pieces = []
    for first, last in pairwise(bounds.tolist()):
        if level[first] < 0:
            continue
        colour = (
            svg.ramp_colour(level[first] / COLOUR_LEVELS)
            if figure.values is not None
            else 'var(--accent)'
        )
        part = at[first : last + 1]
        pieces.append(svg.polyline(part[:, 0], part[:, 1], 'estimate', f'stroke:{colour}'))
    return pieces


def line_chart(
    time_s: Array,
    series: Sequence[TimeSeries],
    *,
    title: str,
    height: float = 150.0,
    filled: bool = False,
    limit: float | None = None,
) -> str:
    """Chart of (F,) series over (F,) times in seconds, from 0 to the largest value or `limit`."""
    largest = max(
        (float(np.nanmax(s.values)) for s in series if np.isfinite(s.values).any()), default=1.0
    )
    scale = svg.Scale(0.0, (limit or largest or 1.0) * 1.06, 10 + height, 10)
    body, horizontal = _time_frame(time_s, scale, height)
    for line in series:
        x, y = svg.thin(time_s, line.values)
        px, py = horizontal(x), np.maximum(scale(y), scale.stop)
        if filled:
            body.extend(_filled_below(px, py, scale.start, line.colour))
        body.append(svg.polyline(px, py, 'series', f'stroke:{line.colour}'))
    return _finish(body, height, title)


def _filled_below(x: Array, y: Array, base: float, colour: str) -> list[str]:
    """The region between a line and the axis, one piece for each unbroken part of the line."""
    known = np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]])))
    return [
        svg.area(x[a:b], np.full(b - a, base), y[a:b], f'fill:{colour};opacity:.13')
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def stacked_chart(
    time_s: Array, series: Sequence[TimeSeries], *, title: str, limit: float, height: float = 190.0
) -> str:
    """Areas of (F,) series on each other, cut at `limit` so that one peak does not flatten all."""
    scale = svg.Scale(0.0, limit, 10 + height, 10)
    body, horizontal = _time_frame(time_s, scale, height)
    # One thinning for all layers, by frames averaged together, keeps the layers on top of each
    # other.
    groups = np.array_split(np.arange(len(time_s)), min(len(time_s), svg.MAX_POINTS // 2))
    x = horizontal(np.array([time_s[g].mean() for g in groups]))
    base = np.zeros(len(groups))
    for layer in series:
        filled = np.nan_to_num(layer.values)
        top = base + np.array([filled[g].mean() for g in groups])
        low, high = (np.maximum(scale(v), scale.stop) for v in (base, top))
        body.append(svg.area(x, low, high, f'fill:{layer.colour};opacity:.85'))
        base = top
    return _finish(body, height, title)


def status_chart(
    time_s: Array, status: Sequence[str], keyframe: NDArray[np.bool_], colours: Mapping[str, str]
) -> str:
    """A strip coloured by status, with a tick for each keyframe below it."""
    height = 44.0
    body, horizontal = _time_frame(time_s, None, height)
    edges = _edges(time_s)
    codes = np.array([list(colours).index(name) if name in colours else -1 for name in status])
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    for first, last in pairwise(bounds.tolist()):
        x1, x2 = float(horizontal(edges[first])), float(horizontal(edges[last]))
        name = status[first]
        body.append(
            f'<rect x="{x1:.1f}" y="10" width="{max(x2 - x1, 1.5):.1f}" height="26" '
            f'style="fill:{colours.get(name, "#7a8699")}"><title>{escape(name)}: '
            f'{last - first} frames</title></rect>'
        )
    ticks = ''.join(f'M{x:.1f} 40v13' for x in horizontal(time_s[keyframe]))
    body.append(f'<path class="key-ticks" d="{ticks}"/>')
    return _finish(body, height, 'Status over time')


def _edges(time_s: Array) -> Array:
    """(F + 1,) borders half-way between (F,) times."""
    if len(time_s) == 1:
        return np.array([time_s[0] - 0.5, time_s[0] + 0.5])
    middle = 0.5 * (time_s[1:] + time_s[:-1])
    return np.concatenate([time_s[:1], middle, time_s[-1:]])


def time_scale(time_s: Array) -> svg.Scale:
    """The horizontal axis that all charts over time share."""
    last = (
        float(time_s[-1]) if len(time_s) > 1 and time_s[-1] > time_s[0] else float(time_s[0]) + 1.0
    )
    return svg.Scale(float(time_s[0]), last, LEFT, RIGHT)


def _time_frame(
    time_s: Array, scale: svg.Scale | None, height: float
) -> tuple[list[str], svg.Scale]:
    horizontal = time_scale(time_s)
    body = [svg.horizontal_axis(horizontal, 10, 10 + height, 's')]
    if scale is not None:
        body.append(svg.vertical_axis(scale, LEFT, RIGHT))
    return body, horizontal


def _finish(body: list[str], height: float, title: str) -> str:
    body.append(f'<line class="cursor" x1="-20" x2="-20" y1="10" y2="{10 + height:.1f}"/>')
    return svg.document(WIDTH, height + 34, body, 'time', title)
