# SPDX-License-Identifier: Apache-2.0
"""How the node fares: counts, latencies, and complaints, once and not a hundred times."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Estimate

# The same complaint is logged again after this long, and the same warning after that long.
REPEAT_S, REPEAT_WARNING_S = 5.0, 60.0
# Frames that are skipped for so long, one after the other, and one that is worked on for so long,
# are a fault.
_IN_VAIN_S, _HANGS_S = 0.9, 3.0
_NUMBER = re.compile(r'\d+(\.\d+)?')
_LATENCIES_KEPT = 200
_RATE_OF = 50
_TIMES_KEPT = 300  # more than the warnings look at


class Health:
    """Numbers for `/diagnostics` and the state topic.

    Args:
        logger: of the node.

    Attributes:
        counts: processed, resets, and what was skipped, by kind.
        last: the last estimate.
        problem: what keeps the node from working; empty while nothing does.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.counts: Counter[str] = Counter()
        self.last: Estimate | None = None
        self.problem = ''
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._done_s: deque[float] = deque(maxlen=_TIMES_KEPT)
        self._stages_ms: deque[Mapping[str, float]] = deque(maxlen=_TIMES_KEPT)
        self._said = ''
        self._said_s = 0.0
        self._warned_s: dict[str, float] = {}
        self.starts()

    def starts(self) -> None:
        """Note that frames will come (again)."""
        self._in_work_s: float | None = None
        self._in_vain, self._in_vain_s, self._why = 0, 0.0, ''

    def begins(self) -> None:
        """Note that a frame is taken to be worked on."""
        self._in_work_s = time.monotonic()

    def ends(self) -> None:
        """Note that it was answered."""
        self._in_work_s = None

    def skipped(self, kind: str, why: str) -> None:
        """Note a frame that the engine does not see; `why` is empty where somebody wants it so."""
        self.counts[f'skipped: {kind}'] += 1
        if not why:
            self._in_vain, self._why = 0, ''
            return
        if not self._in_vain:
            self._in_vain_s = time.monotonic()
        self._in_vain, self._why = self._in_vain + 1, why

    def stuck(self, now_s: float) -> str:
        """Why images come and none is processed; empty where that is not so.

        Args:
            now_s: time.monotonic().
        """
        in_work_s = self._in_work_s
        if in_work_s is not None and now_s - in_work_s > _HANGS_S:
            return f'the frame in work is not finished after {now_s - in_work_s:.0f} s'
        if self._in_vain > 1 and now_s - self._in_vain_s > _IN_VAIN_S:
            return f'no frame is processed: {self._why}'
        return ''

    def processed(self, estimate: Estimate) -> None:
        """Note a frame that went through the engine."""
        self._in_vain, self._why = 0, ''
        self.counts['processed'] += 1
        self.last = estimate
        self._stages_ms.append(estimate.latency_ms)

    def published(self, latency_ms: float) -> None:
        """Note that its estimate is out."""
        self._latencies_ms.append(latency_ms)
        self._done_s.append(time.monotonic())

    def say(self, problem: str) -> None:
        """Log a problem when it is new, not only its numbers, and now and then while it lasts."""
        now_s, kind = time.monotonic(), _NUMBER.sub('', problem)
        if problem and (kind != self._said or now_s - self._said_s > REPEAT_S):
            self._logger.warning(problem)
            self._said_s = now_s
        self._said = kind

    def warn(self, warnings: Mapping[str, str]) -> None:
        """Log warnings, by kind: numbers in them change all the time."""
        now_s = time.monotonic()
        for kind, sentence in warnings.items():
            if now_s - self._warned_s.get(kind, -REPEAT_WARNING_S) >= REPEAT_WARNING_S:
                self._warned_s[kind] = now_s
                self._logger.warning(sentence)

    def done_since(self, since_s: float) -> int:
        """Frames whose estimates went out since a time.monotonic(); the last few are counted."""
        return sum(done_s > since_s for done_s in list(self._done_s))

    def slowest_stages(self) -> str:
        """The two stages that take most of a frame's time, in words; empty before any did."""
        frames = list(self._stages_ms)
        names = {name for stages in frames for name in stages if name != 'total'}
        mean = {n: sum(stages.get(n, 0.0) for stages in frames) / len(frames) for n in names}
        slowest = sorted(mean, key=lambda name: -mean[name])[:2]
        return ', '.join(f'{name} {mean[name]:.0f} ms' for name in slowest)

    def values(self) -> dict[str, object]:
        """Rate, latencies and the engine's counts, by the keys of the diagnostics."""
        values: dict[str, object] = {}
        done = list(self._done_s)[-_RATE_OF:]
        if len(done) > 1 and done[-1] > done[0]:
            values['rate_hz'] = f'{(len(done) - 1) / (done[-1] - done[0]):.1f}'
        latencies_ms = list(self._latencies_ms)
        if latencies_ms:
            p50, p95 = np.percentile(latencies_ms, [50, 95])
            values['latency_p50_ms'], values['latency_p95_ms'] = f'{p50:.1f}', f'{p95:.1f}'
        if self.last is not None:
            values.update({f'count {name}': n for name, n in self.last.counts.items()})
        return values
