# SPDX-License-Identifier: Apache-2.0
"""What links the charts of the report: under the pointer, one frame is shown in all of them."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.evaluation import report_figures as figures
from mv_matcher_ros.evaluation import report_svg as svg


class LinkedFrames:
    """The frames all charts are linked by: their place in time and on the path, their values."""

    def __init__(self, stamps_ns: NDArray[np.int64], time_s: Array) -> None:
        self.stamps_ns = stamps_ns
        self.time_s = time_s
        self._fields: dict[str, tuple[Array, str]] = {}
        self._paths: list[Array] = []

    def frame_of(self, stamps_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) index of the frame nearest to each stamp."""
        after = np.clip(np.searchsorted(self.stamps_ns, stamps_ns), 0, len(self.stamps_ns) - 1)
        before = np.maximum(after - 1, 0)
        earlier = stamps_ns - self.stamps_ns[before] <= self.stamps_ns[after] - stamps_ns
        return np.where(earlier, before, after).astype(np.int64)

    def spread(self, stamps_ns: NDArray[np.int64], values: Array) -> Array:
        """(F, …) values at the frames of their stamps, NaN elsewhere."""
        full = np.full((len(self.stamps_ns), *values.shape[1:]), np.nan)
        if len(stamps_ns):
            full[self.frame_of(stamps_ns)] = values
        return full

    def add_field(self, name: str, values: Array, unit: str) -> str:
        """Show (F,) values under the pointer; returns the HTML of the place where."""
        key = f'f{len(self._fields)}'
        self._fields[key] = (values, unit)
        return f'{escape(name)} <b data-field="{key}"></b>'

    def add_path(self, at: Array) -> None:
        """Show the frame under the pointer at (F, 2) `at` in the next drawing of the path."""
        self._paths.append(at)

    def to_json(self) -> dict[str, Any]:
        """Thinned to what a screen can tell apart."""
        if not len(self.time_s):
            return {}
        chosen = np.arange(0, len(self.time_s), max(1, len(self.time_s) // svg.MAX_POINTS))
        x = figures.time_scale(self.time_s)(self.time_s[chosen])
        return {
            'x': [round(float(v), 1) for v in x],
            'fields': {
                key: [f'{v:.4g}{unit}' if np.isfinite(v) else None for v in values[chosen]]
                for key, (values, unit) in self._fields.items()
            },
            'path': [
                [
                    [round(float(v), 1) for v in at] if np.isfinite(at).all() else None
                    for at in path[chosen]
                ]
                for path in self._paths
            ],
        }
