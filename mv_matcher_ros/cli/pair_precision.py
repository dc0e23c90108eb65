# SPDX-License-Identifier: Apache-2.0
"""`pairs --compare-precision`: what half precision of the networks changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from mv_matcher_ros.cli.pair_solvers import PairSolver
from mv_matcher_ros.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Features
    from mv_matcher_ros.evaluation.pairs_file import ImagePair
    from mv_matcher_ros.models.choice import Models

# A keypoint of a learned detector that moved by less than this is the same one.
SAME_KEYPOINT_PX = 1.0


class HalfPrecision(str, Enum):
    """The half precisions that networks can run in."""

    fp16 = 'fp16'
    bf16 = 'bf16'


@dataclass(frozen=True)
class PrecisionChange:
    """What half precision changed on one pair.

    Attributes:
        names: of the two images.
        matches: how many, in single and in half precision.
        jaccard: matches of both over matches of either; 1 if there are none.
        poses: whether there is a pose, in single and in half precision.
        rotation_deg, translation_deg: between the two poses and the directions of their
            translations; None unless there are two.
    """

    names: tuple[str, str]
    matches: tuple[int, int]
    jaccard: float
    poses: tuple[bool, bool]
    rotation_deg: float | None
    translation_deg: float | None


def precision_comparer(
    settings: Settings, solver: PairSolver, precision: HalfPrecision
) -> tuple[Callable[[ImagePair], PrecisionChange], str]:
    """A function that runs one pair in both precisions, and where they ran.

    Raises:
        SettingsError: the settings name no network.
    """
    from mv_matcher_ros.cli.pair_matching import MatchedPair, PairFeatures

    single = _models(settings, 'fp32')
    if not single.networks:
        raise SettingsError(
            '--compare-precision compares networks, the settings name none: '
            'set matching.matcher or detector.name'
        )
    half = _models(settings, precision.value)
    features = PairFeatures(single.detector)
    # A detector without precision finds the same in both.
    others = PairFeatures(half.detector) if 'detector' in single.networks else features

    def compare(pair: ImagePair) -> PrecisionChange:
        upright, ours = features.of(pair)
        theirs = others.of(pair)[1]
        one = MatchedPair.of(upright, ours, single.matcher)
        two = MatchedPair.of(upright, theirs, half.matcher)
        same = [same_keypoints(a, b) for a, b in zip(ours, theirs, strict=True)]
        renamed = [(int(same[0][a]), int(same[1][b])) for a, b in two.keypoints.tolist()]
        rotation_deg, translation_deg, found = None, None, (solver(one), solver(two))
        if found[0] is not None and found[1] is not None:
            from mv_matcher_ros.evaluation.matching_error import pose_error

            change = pose_error(found[1], found[0], signed=True)
            rotation_deg, translation_deg = change.rotation_deg, change.translation_deg
        return PrecisionChange(
            pair.names,
            (len(one.keypoints), len(renamed)),
            jaccard([(a, b) for a, b in one.keypoints.tolist()], renamed),
            (found[0] is not None, found[1] is not None),
            rotation_deg,
            translation_deg,
        )

    places = [', '.join(f'{name} {used.place}' for name, used in models.networks.items())
              for models in (single, half)]  # fmt: skip
    return compare, ' against '.join(reversed(places))


def _models(settings: Settings, precision: str) -> Models:
    """The models that the settings name, in a precision, also in one that is slow here."""
    import torch

    from mv_matcher_ros.models.choice import Models
    from mv_matcher_ros.models.place import DTYPES, Place

    runtime = settings.runtime
    on_cpu = runtime.device == 'cpu' or not torch.cuda.is_available()
    slow = precision == 'fp16' and on_cpu and runtime.device != 'cuda'
    chosen = runtime.model_copy(update={'precision': 'fp32' if slow else precision})
    models = Models.of(settings.model_copy(update={'runtime': chosen}))
    return models.moved(Place(torch.device('cpu'), DTYPES[precision])) if slow else models


def same_keypoints(single: Features, half: Features) -> Tensor:
    """(N,) int64 for keypoints of `half`: their number in `single`, −1 where nothing is near."""
    import torch

    if single is half:
        return torch.arange(len(half))
    if not len(single):
        return torch.full((len(half),), -1)
    distance, nearest = torch.cdist(half.keypoints_xy, single.keypoints_xy).min(dim=1)
    return torch.where(distance < SAME_KEYPOINT_PX, nearest, -1)


def jaccard(single: Sequence[tuple[int, int]], half: Sequence[tuple[int, int]]) -> float:
    """Share of the matches of either that are in both; those with a −1 are in one only."""
    ours = set(single)
    both = len(ours & set(half))
    either = len(ours) + len(half) - both
    return both / either if either else 1.0


def summarise_changes(changes: Sequence[PrecisionChange]) -> dict[str, Any]:
    """The numbers of `--compare-precision`; those that do not exist are None."""
    import numpy as np

    def spread(values: list[float]) -> dict[str, float | None]:
        if not values:
            return {'median': None, 'p90': None}
        median, p90 = np.percentile(values, [50.0, 90.0])
        return {'median': float(median), 'p90': float(p90)}

    shares = [change.jaccard for change in changes]
    return {
        'pairs': len(changes),
        'matches': float(np.mean([change.matches[0] for change in changes])),
        'jaccard': {'mean': float(np.mean(shares)), 'lowest': min(shares)},
        'rotation_deg': spread([c.rotation_deg for c in changes if c.rotation_deg is not None]),
        'translation_deg': spread(
            [c.translation_deg for c in changes if c.translation_deg is not None]
        ),
        'pose_in_one_only': sum(c.poses[0] != c.poses[1] for c in changes),
        'without_pose': sum(not any(c.poses) for c in changes),
    }
