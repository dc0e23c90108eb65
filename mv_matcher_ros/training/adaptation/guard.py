# SPDX-License-Identifier: Apache-2.0
"""Whether adapted weights are better: on clips that taught nothing, by what needs no truth.

Five figures of the structure that a clip's matches give, all with limits in pixels that do not
change: how many points there are, and what share of the matches it says are wrong; of the points
that both weights find, how exactly they are seen and in how many views; and how well two halves
of them agree on the motion. More points must not be bought with worse ones, nor the other way
round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.datatypes import Array, Features, Matches, Rig
from mv_matcher_ros.evaluation.pair_comparison import bootstrap
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.reprojection import Problem
from mv_matcher_ros.geometry.so3 import rotation_angle
from mv_matcher_ros.models.classical import Detector, Matcher
from mv_matcher_ros.models.matcher import pair_index
from mv_matcher_ros.training.adaptation.clips import Clip
from mv_matcher_ros.training.adaptation.settings import StructureSettings
from mv_matcher_ros.training.adaptation.structure import Fault, Structure, StructureSolver
from mv_matcher_ros.training.adaptation.verdicts import verdicts
from mv_matcher_ros.training.adaptation.views import ClipViews, clip_views

# Of an inlier, pixels of the working image: not a setting, so that figures compare.
INLIER_PX = 2.0
# Of the two halves of the points.
ITERATIONS, CONVERGED = 15, 1e-8
HALVINGS = 24
# Places in the same cell, of so many each way from the principal point, fall into the same half.
CELL_PX, CELLS = 6.0, 128
# Keypoints of two detectors this near are the same one, pixels.
SAME_PX = 1.5
# A count that may stay as it is may be this share worse, unless it surely is worse: noise.
LEVEL = 0.01


@dataclass(frozen=True)
class ClipFigures:
    """What the structure of one clip is like.

    Attributes:
        table: (T, V) int64 keypoints of the points within the limit in two views or more, −1 where
            unseen or beyond it; T is 0 without a structure.
        places: (V, N, 2) all keypoints, pixels from the principal point; NaN for padding.
        residual_px: (T, V) their reprojection errors, infinite there.
        matches: that were made, between all pairs of views.
        wrong: percent of them that the structure says are wrong, of those that it says anything
            of; NaN without one.
        direction_deg: by how much two halves of the points differ in the directions from the first
            to the other views; NaN without a structure.
        fault: why there is none.
    """

    table: NDArray[np.int64]
    places: Array
    residual_px: Array
    matches: int
    wrong: float
    direction_deg: float
    fault: str = ''

    @property
    def tracks(self) -> int:
        """How many points."""
        return len(self.table)

    @property
    def length(self) -> float:
        """Mean number of views that see one."""
        return float((self.table >= 0).sum(1).mean()) if len(self.table) else 0.0

    @classmethod
    def without(cls, views: int, matches: int, fault: str) -> ClipFigures:
        """Of a clip without a structure."""
        nothing, nowhere = np.zeros((0, views)), np.zeros((views, 0, 2))
        return cls(nothing.astype(np.int64), nowhere, nothing, matches, np.nan, np.nan, fault)


@dataclass(frozen=True)
class Figure:
    """A figure before and after, over the clips that both solved.

    Attributes:
        name, unit: for people; better: 'more' or 'less'.
        before, after: means.
        interval: of the difference, 95 %, by resampling clips.
        good: it is as it has to be for the weights to be better.
    """

    name: str
    unit: str
    better: str
    before: float
    after: float
    interval: tuple[float, float]
    good: bool


@dataclass(frozen=True)
class Verdict:
    """Whether adapted weights are better.

    Attributes:
        figures: that decide.
        clips: how many; solved: by both.
    """

    figures: tuple[Figure, ...]
    clips: int
    solved: int

    @property
    def better(self) -> bool:
        """All figures are as they have to be."""
        return self.solved > 0 and all(figure.good for figure in self.figures)

    @property
    def against(self) -> str:
        """What speaks against the weights."""
        if not self.solved:
            return 'no clip that judges could be solved'
        return ', '.join(
            f'{f.name} {f.before:.4g} -> {f.after:.4g} {f.unit}'
            for f in self.figures if not f.good
        )  # fmt: skip


class Judge:
    """Measures detectors and matchers on clips."""

    def __init__(self, clips: Sequence[Clip], rig: Rig) -> None:
        self._clips, self._rig = clips, rig
        self._solver = StructureSolver(StructureSettings(inlier_px=INLIER_PX, grow_px=0.0))

    def figures(
        self,
        detector: Detector,
        matcher: Matcher,
        advance: Callable[[], None] = lambda: None,
        watch: Callable[[int, list[Features], Matches, Structure | None], None] | None = None,
    ) -> list[ClipFigures]:
        """Of each clip.

        Args:
            watch: gets the number of each clip with its features, matches and structure.
        """
        found = []
        for number, clip in enumerate(self._clips):
            features = [
                detector.detect(image, mask)
                for image, mask in zip(clip.images, clip.masks, strict=True)
            ]
            matches = matcher.match(features)
            views, _ = clip_views(clip, features, self._rig)
            structure = self._solver.solve(views, matches)
            solved = None if isinstance(structure, Fault) else structure
            found.append(
                ClipFigures.without(len(features), len(matches), structure.reason)
                if isinstance(structure, Fault)
                else figures_of(views, structure, matches)
            )
            if watch is not None:
                watch(number, features, matches, solved)
            advance()
        return found


def figures_of(views: ClipViews, structure: Structure, matches: Matches) -> ClipFigures:
    """Of a structure."""
    close = structure.residual_px <= INLIER_PX
    tracks = close.sum(1) >= 2
    table = torch.where(close, structure.table, -1)[tracks]
    residual = torch.where(close, structure.residual_px, torch.inf)[tracks]
    places = torch.where(views.valid[..., None], views.places_px, torch.nan)
    return ClipFigures(
        table.numpy(),
        places.numpy(),
        residual.numpy(),
        len(matches),
        _wrong(views, structure, matches),
        halves_apart(views, structure)[1],
    )


def _wrong(views: ClipViews, structure: Structure, matches: Matches) -> float:
    """Percent of the matches that are judged."""
    count, room = views.valid.shape
    pairs = pair_index(count)
    number = torch.full((count, count), -1, dtype=torch.int64)
    number[pairs[:, 0], pairs[:, 1]] = torch.arange(len(pairs))
    partner = torch.full((len(pairs), room), -1, dtype=torch.int64)
    row = number[matches.views[:, 0], matches.views[:, 1]]
    partner[row, matches.keypoints[:, 0]] = matches.keypoints[:, 1]
    said = verdicts(views, structure, pairs, partner, INLIER_PX)
    right = (partner >= 0) & (said.partner_a == partner)
    wrong = said.wrong | ((partner >= 0) & (said.partner_a >= 0) & ~right)
    judged = int((right | wrong).sum())
    return 100.0 * int(wrong.sum()) / judged if judged else math.nan


@torch.no_grad()
def halves_apart(views: ClipViews, structure: Structure) -> tuple[float, float]:
    """Degrees between the motions, from the first view to the others, that two halves of the
    points say.

    Rotation, and direction of translation: root mean squares over views and ways to halve. The two
    estimates share no keypoint: what they differ by is noise.
    """
    squares = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(HALVINGS):
        half = _half(views.places_px, structure.table, generator)
        one, other = _motions(structure, half), _motions(structure, ~half)
        turn = rotation_angle(one[:, :3, :3].mT @ other[:, :3, :3])
        a, b = (torch.nn.functional.normalize(part[:, :3, 3], dim=1) for part in (one, other))
        direction = torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1))
        squares.append(torch.stack([turn, direction]).square().mean(1))
    turn, direction = torch.rad2deg(torch.stack(squares).mean(0).sqrt())
    return float(turn), float(direction)


def _half(places: Tensor, table: Tensor, generator: torch.Generator) -> Tensor:
    """(T,) bool, the points of one half; the same for points that are seen at the same places.

    Whichever of its keypoints lies in the cell that drew the smallest number decides: weights that
    find about the same points are compared on about the same halves, and what these differ by
    cancels.

    Args:
        places: (V, N, 2) keypoints, pixels; table: (T, V) of them.
    """
    side = 2 * CELLS
    cell = ((places / CELL_PX).round().long() + CELLS).clamp(0, side - 1)
    view = torch.arange(table.shape[1])
    cell = (cell[..., 0] * side + cell[..., 1])[view, table.clamp_min(0)]  # (T, V)
    shape = (table.shape[1], side * side)
    number, chosen = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    drawn = torch.where(table >= 0, number[view, cell], torch.inf)
    decides = drawn.argmin(1)
    return chosen[decides, cell[torch.arange(len(table)), decides]] < 0.5


def _motions(structure: Structure, part: Tensor) -> Tensor:
    """(B, 4, 4) poses of the bodies that move in the first, from a part (T,) of the points."""
    problem = structure.problem
    kept = part[structure.track]
    number = torch.cumsum(part, 0) - 1

    def chosen(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:, kept]

    smaller = Problem(
        problem.world_from_body,
        problem.points[:, part],
        problem.pose_index[:, kept],
        number[structure.track[kept]][None],
        problem.measured[:, kept],
        problem.sqrt_information[:, kept],
        problem.fixed,
        problem.camera_from_body,
        chosen(problem.camera_index),
        kernel=problem.kernel,
        kernel_width=problem.kernel_width,
        importance=chosen(problem.importance),
    )
    poses = solve(smaller, ITERATIONS, CONVERGED, point_steps=1).world_from_body[0]
    fixed = problem.fixed[0]
    observed = torch.zeros_like(fixed)
    observed[problem.pose_index[0]] = True
    first = int((fixed & observed).nonzero()[0])  # views that were not found are fixed, too
    return se3.inverse(poses[first]) @ poses[~fixed]


def compared(before: Sequence[ClipFigures], after: Sequence[ClipFigures]) -> Verdict:
    """The verdict on figures of the same clips with the weights before and after."""
    both = [(b, a) for b, a in zip(before, after, strict=True) if not b.fault and not a.fault]
    tracks = [(float(b.tracks), float(a.tracks)) for b, a in zip(before, after, strict=True)]
    figures = [_figure('points', 'a clip', tracks, 'more', wants='no worse')]
    wrong = [(b.wrong, a.wrong) for b, a in both]
    figures.append(_figure('wrong matches', '%', wrong, 'less', wants='no worse'))
    same = [_of_the_same(*pair) for pair in both]
    errors = [(errors_before, errors_after) for errors_before, errors_after, _, _ in same]
    figures.append(_figure('reprojection error', 'px', errors, 'less', wants='surely better'))
    lengths = [(length_before, length_after) for _, _, length_before, length_after in same]
    figures.append(_figure('views of a point', '', lengths, 'more'))
    apart = [(b.direction_deg, a.direction_deg) for b, a in both]
    figures.append(_figure('disagreement of halves', 'deg', apart, 'less', geometric=True))
    return Verdict(tuple(figures), len(before), len(both))


def _of_the_same(before: ClipFigures, after: ClipFigures) -> tuple[float, float, float, float]:
    """Of the points that both have: root mean square errors, pixels, of what both see of them, and
    mean numbers of views; before and after.

    More points are the harder ones: means over all of them would be worse for being more.
    """
    owner = np.full(after.places.shape[:2], -1)
    track, view = np.nonzero(after.table >= 0)
    owner[view, after.table[track, view]] = track
    same = [_same(*places) for places in zip(before.places, after.places, strict=True)]
    # The keypoints before, in the numbers of those after.
    table = np.full_like(before.table, -1)
    for number, partner in enumerate(same):
        column = before.table[:, number]
        table[:, number] = np.where(column >= 0, partner[column], -1)
    views = np.arange(table.shape[1])
    theirs = np.where(table >= 0, owner[views, table], -1)  # (T, V)
    # The one that sees the most of the same keypoints.
    alike = (theirs[:, :, None] == theirs[:, None]) & (theirs >= 0)[:, :, None]
    counts = alike.sum(2)
    best = counts.argmax(1)
    rows = np.arange(len(theirs))
    found = counts[rows, best] >= 2
    mine, other = rows[found], theirs[rows, best][found]
    shared = (table[mine] >= 0) & (table[mine] == after.table[other])
    if not len(mine):
        return (np.nan,) * 4
    return (
        float(np.sqrt(np.square(before.residual_px[mine][shared]).mean())),
        float(np.sqrt(np.square(after.residual_px[other][shared]).mean())),
        float((before.table[mine] >= 0).sum(1).mean()),
        float((after.table[other] >= 0).sum(1).mean()),
    )


def _same(before: Array, after: Array) -> NDArray[np.int64]:
    """(N,) which of the places after (M, 2) is which of those before (N, 2), −1 for none."""
    partner = np.full(len(before), -1)
    if not len(before) or not len(after):
        return partner
    apart = torch.cdist(torch.from_numpy(before), torch.from_numpy(after)).nan_to_num(torch.inf)
    nearest, there = apart.min(dim=1)
    mutual = (apart.argmin(dim=0)[there] == torch.arange(len(before))) & (nearest <= SAME_PX)
    partner[mutual] = there[mutual]
    return partner


def _figure(
    name: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    better: str,
    wants: Literal['no worse', 'better', 'surely better'] = 'better',
    geometric: bool = False,
) -> Figure:
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return Figure(name, unit, better, np.nan, np.nan, (np.nan, np.nan), False)

    def mean(side: int) -> Callable[[NDArray[np.integer]], list[float]]:
        if geometric:
            return lambda index: [float(np.exp(np.log(values[index, side] + 1e-9).mean()))]
        return lambda index: [float(values[index, side].mean())]

    sides = bootstrap({'before': mean(0), 'after': mean(1)}, len(values), [name])
    before, after = sides['before'][name].value, sides['after'][name].value
    gain = after - before if better == 'more' else before - after
    interval = sides['after'][name].difference_interval
    gains = interval if better == 'more' else (-interval[1], -interval[0])
    good = {
        'no worse': gain >= -LEVEL * before and gains[1] >= 0.0,
        'better': gain > 0.0,
        'surely better': gain > 0.0 and gains[0] > 0.0,
    }[wants]
    return Figure(name, unit, better, before, after, interval, good)
