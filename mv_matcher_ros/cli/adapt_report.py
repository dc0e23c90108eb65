# SPDX-License-Identifier: Apache-2.0
"""The page that shows what an adaptation did: figures, and matches before and after."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mv_matcher_ros.cli.console import write_text
from mv_matcher_ros.cli.match_drawing import draw_row
from mv_matcher_ros.evaluation.report import page

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mv_matcher_ros.datatypes import Features, Matches
    from mv_matcher_ros.training.adaptation.clips import Clip
    from mv_matcher_ros.training.adaptation.guard import Figure, Verdict
    from mv_matcher_ros.training.adaptation.structure import Structure

REPORT = 'report.html'
PICTURES = 3
WIDTH_PX = 1600


@dataclass
class Pictures:
    """Takes pictures of a few clips while they are judged."""

    clips: Sequence[Clip]
    side: str

    def __post_init__(self) -> None:
        count = len(self.clips)
        self.wanted = {round(x) for x in np.linspace(0, count - 1, min(PICTURES, count))}
        self.taken: dict[int, tuple[NDArray[np.uint8], str]] = {}

    def watch(
        self, number: int, features: list[Features], matches: Matches, found: Structure | None
    ) -> None:
        """See `Judge.figures`."""
        if number not in self.wanted:
            return
        clip = self.clips[number]
        pairs, total, good = [], 0, 0
        for view in range(len(clip.images) - 1):
            keypoints, _ = matches.pair(view, view + 1)
            agrees = _agrees(keypoints.numpy(), view, found)
            ends = (features[view + k].keypoints_xy.numpy()[keypoints[:, k]] for k in (0, 1))
            pairs.append((*ends, agrees))
            total, good = total + len(agrees), good + int(agrees.sum())
        words = f'{self.side}: {total} matches of neighbouring views, {good} of them of points'
        self.taken[number] = draw_row(clip.images, pairs), words


def _agrees(keypoints: NDArray[np.int64], view: int, found: Structure | None) -> NDArray[np.bool_]:
    """(K,) whether both ends of matches of a view and the next are the same point."""
    if found is None or not len(keypoints):
        return np.zeros(len(keypoints), np.bool_)
    table = found.table.numpy()
    seen = {(int(a), int(b)) for a, b in table[:, view : view + 2] if a >= 0 and b >= 0}
    return np.array([(int(a), int(b)) in seen for a, b in keypoints])


def write_adaptation_report(
    path: Path,
    name: str,
    verdict: Verdict,
    pictures: Sequence[Pictures],
    log: Path,
    content: Mapping[str, Any],
) -> Path:
    """One self-contained page.

    Args:
        path: to write.
        name: of the recording.
        pictures: before and after.
        log: lines of the training.
        content: what stands in the JSON file, with the settings.
    """
    result = 'The adapted weights are better' if verdict.better else 'Nothing was written'
    why = '' if verdict.better else f': {escape(verdict.against)}'
    body = [
        f'<h1>{escape(name)}</h1><p class="lead"><b>{result}</b>{why}. Judged by {verdict.clips} '
        f'clips of the last part of the recording, which taught nothing; {content["teach"]} clips '
        'taught.</p>',
        _figures(verdict.figures),
        _clips(pictures),
        _training(log),
        '<section class="card"><h2>Settings</h2><code>'
        f'{escape(json.dumps(content["settings"]))}</code></section>',
    ]
    write_text(path, page(f'{name} – adaptation', body))
    return path


def _figures(figures: Sequence[Figure]) -> str:
    rows = ''.join(
        f'<tr><td>{escape(f.name)}</td><td>{f.before:.4g}</td><td>{f.after:.4g}</td>'
        f'<td class="text">{escape(f.unit)}</td>'
        f'<td>{f.interval[0]:+.3g} to {f.interval[1]:+.3g}</td>'
        f'<td class="text">{"yes" if f.good else "no"}</td></tr>'
        for f in figures
    )
    head = (
        '<tr><th>figure</th><th>before</th><th>after</th><th class="text">unit</th>'
        '<th>difference</th><th class="text">as it must be</th></tr>'
    )
    return (
        '<section class="card"><h2>Before and after</h2><p class="hint">Means over clips. Points: '
        'triangulated from the matches, seen within 2 px in two views or more. Wrong matches: by '
        'bundle adjustment. Error and views: of the points that both have. Halves: by how much '
        'the motions differ that two halves of the points give. The difference with its 95 % '
        f'interval, by resampling clips.</p><table>{head}{rows}</table></section>'
    )


def _clips(pictures: Sequence[Pictures]) -> str:
    shown = []
    for number in sorted(pictures[0].wanted) if pictures else ():
        for side in pictures:
            if number in side.taken:
                image, words = side.taken[number]
                shown.append(
                    f'<figure><img alt="{escape(words)}" src="data:image/jpeg;base64,'
                    f'{_jpeg(image)}"><figcaption>{escape(words)}</figcaption></figure>'
                )
    return (
        '<section class="card"><h2>Clips that judged</h2><p class="hint">Matches of neighbouring '
        'views; green ones are of a point that bundle adjustment accepts.</p>'
        f'{"".join(shown)}</section>'
    )


def _jpeg(image: NDArray[np.uint8]) -> str:
    scale = min(1.0, WIDTH_PX / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return base64.b64encode(data.tobytes()).decode('ascii')


def _training(log: Path) -> str:
    names = ('loss', 'objective', 'match', 'confidence', 'tracks', 'length', 'wrong', 'solved')
    lines = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
    lines = [line for line in lines if line['kind'] == 'train' and 'objective' in line]
    chosen = lines[:: max(1, len(lines) // 12)]
    head = ''.join(f'<th>{name}</th>' for name in ('step', *names))
    rows = ''.join(
        f'<tr><td>{line["step"]}</td>'
        + ''.join(f'<td>{_cell(line.get(name))}</td>' for name in names)
        + '</tr>'
        for line in chosen
    )
    return (
        '<section class="card"><h2>Learning</h2><p class="hint">Means between two lines. wrong: '
        'share of the matches that were made and judged that bundle adjustment says are wrong; '
        'solved: share of the clips that it could solve.</p>'
        f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div></section>'
    )


def _cell(value: float | None) -> str:
    return '–' if value is None else f'{value:.3g}'
