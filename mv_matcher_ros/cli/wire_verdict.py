# SPDX-License-Identifier: Apache-2.0
"""What came of a fault on the wire, judged from outside and against the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.wire_faults import BEGIN_S, WireFault
from mv_matcher_ros.cli.wire_session import MOST_RESTART_S, Heard
from mv_matcher_ros.datatypes import Array

if TYPE_CHECKING:
    from mv_matcher_ros.ros.wire import Pose

# A motion since the fault is false if it is off by more than this, and by more than `_SIGMAS` of
# what the node itself says that it may be off by.
_FALSE_M, _FALSE_SHARE = 0.05, 0.02
_SIGMAS = 3.0
# Good images must be answered by a measured pose within this time.
MOST_RECOVERY_S = 1.0
_MOST_GROWTH_MB = 60.0
# odom moves at most so much faster than the body ever did, and this far at once.
_FASTER, _AT_ONCE_M = 2.0, 0.05
_MEASURED = ('TRACKING', 'RELOCALISED')


@dataclass(frozen=True)
class Verdict:
    """What came of a fault.

    Attributes:
        survived: the process was still there, and ended with code 0.
        statuses: how often each was said of frames of the fault; nothing for those dropped.
        recovery_s: from the publication of the first good image after the fault to the arrival of
            a pose that the node calls measured; None if none came.
        error_m: of the motion from before the fault to the end; of mono, in metres by the scale
            that the poses since the fault have.
        scale_change: of mono, metres in a unit since the fault over those before; 1 for metric.
        largest_step_m: of odom, from one pose to the next.
        false_poses: called measured, and neither right nor within what the node admits.
        growth_mb: of the node's memory.
        complaints: what is not as it must be; empty when all is.
        said: what the node said of the fault most often.
    """

    survived: bool
    statuses: dict[str, int]
    recovery_s: float | None
    error_m: float | None
    scale_change: float
    largest_step_m: float
    false_poses: int
    growth_mb: float
    complaints: tuple[str, ...]
    said: str


def judge(fault: WireFault, clip: Clip, heard: Heard) -> Verdict:
    """Compare what was heard with what was shown."""
    evidence = _Evidence(fault, clip, heard)
    recovery_s, error = evidence.recovery_s(), evidence.error()
    false, step, growth = evidence.false_poses(), evidence.largest_step_m(), heard.memory_mb
    survived = not heard.ended
    complaints = [
        *([heard.ended] if heard.ended else []),
        *evidence.silence_about_the_fault(),
        *(evidence.too_late(recovery_s) if fault.begins else evidence.begun()),
        *([f'{false} false poses'] if false else []),
        *evidence.jump(),
        *evidence.map_is_lost(),
    ]
    grown_mb = 0.0 if heard.restarted_s is not None else growth[1] - growth[0]
    if grown_mb > _MOST_GROWTH_MB:
        complaints.append(f'memory grew by {grown_mb:.0f} MB')
    return Verdict(
        survived,
        dict(evidence.statuses()),
        recovery_s,
        error,
        evidence.scale_since() / evidence.scale_before(),
        step,
        false,
        grown_mb,
        tuple(complaints),
        evidence.said(),
    )


class _Evidence:
    def __init__(self, fault: WireFault, clip: Clip, heard: Heard) -> None:
        assert clip.truth is not None
        self._fault, self._clip, self._heard = fault, clip, heard
        truth = dict(zip(clip.truth.stamps_ns.tolist(), clip.truth.world_from_body, strict=True))
        # Of two with the same stamp the second is skipped.
        self._shot = {shot.stamp_ns: shot for shot in reversed(heard.shots)}
        self._truth: dict[int, Array] = {
            stamp: truth[shot.frame.stamp_ns] for stamp, shot in self._shot.items()
        }
        self._during = {
            shot.stamp_ns for shot in heard.shots if BEGIN_S <= shot.at_s < fault.end_s
        }
        self._status = {s.stamp_ns: s.status for s in heard.states if s.status != 'SKIPPED'}
        known = [pose for pose in heard.poses if pose.stamp_ns in self._truth]
        self._measured = [p for p in known if self._status.get(p.stamp_ns) in _MEASURED]
        self._known = known
        self._metric = clip.sensor != 'mono'

    def statuses(self) -> Counter[str]:
        """Of the frames of the fault, or, where it is over at once, of those after it."""
        of = self._during or {s.stamp_ns for s in self._heard.shots if s.at_s >= BEGIN_S}
        return Counter(s.status for s in self._heard.states if s.stamp_ns in of)

    def said(self) -> str:
        """The message that was given most often since the fault began."""
        since = {shot.stamp_ns for shot in self._heard.shots if shot.at_s >= BEGIN_S}
        messages = Counter(
            s.message for s in self._heard.states if s.stamp_ns in since and s.message
        )
        return messages.most_common(1)[0][0] if messages else ''

    def _good_since_s(self) -> float:
        """When the first image after the fault was sent."""
        return next(
            sent
            for shot, sent in zip(self._heard.shots, self._heard.sent_s, strict=True)
            if shot.at_s >= self._fault.end_s and shot.lit
        )

    def recovery_s(self) -> float | None:
        """See `Verdict`; of a process that was started again, since then."""
        sent_s = self._good_since_s()
        if self._fault.event == 'kill node' and self._heard.restarted_s is not None:
            sent_s = self._heard.restarted_s
        again = [p.arrived_s for p in self._measured if p.arrived_s > sent_s]
        return min(again) - sent_s if again else None

    def too_late(self, recovery_s: float | None) -> list[str]:
        """Whether the recovery took longer than it may."""
        most_s = MOST_RESTART_S if self._fault.event == 'kill node' else MOST_RECOVERY_S
        if recovery_s is None:
            return ['never recovered']
        return [f'recovery took {recovery_s:.1f} s'] if recovery_s > most_s else []

    def begun(self) -> list[str]:
        """Whether there are poses where no map can begin."""
        return [f'{len(self._known)} poses without parallax'] if self._known else []

    def silence_about_the_fault(self) -> list[str]:
        """Frames that show nothing must not be called tracked."""
        if not self._fault.must_say:
            return []
        bold = sum(self._status.get(stamp) in _MEASURED for stamp in self._during)
        return [f'{bold} blind frames called TRACKING'] if bold else []

    def _reference(self) -> Pose | None:
        """The last measured pose before the fault; after a start anew, the first one."""
        if self._fault.event == 'kill node':
            begin_s = self._heard.restarted_s or 0.0
            return next((p for p in self._measured if p.arrived_s > begin_s), None)
        before = [p for p in self._measured if self._shot[p.stamp_ns].at_s < BEGIN_S]
        return before[-1] if before else None

    def _since(self) -> list[tuple[Pose, float, float]]:
        """Measured poses after the reference: error of the motion since it, m, and way, m."""
        reference = self._reference()
        if reference is None:
            return []
        start = self._truth[reference.stamp_ns]
        poses, scale = self._after(reference), self.scale_since()
        way, last, found = 0.0, start, []
        for pose in poses:
            there = self._truth[pose.stamp_ns]
            way += float(np.linalg.norm(there[:3, 3] - last[:3, 3]))
            last = there
            moved = np.linalg.inv(reference.odom_from_body) @ pose.odom_from_body
            moved[:3, 3] *= scale
            off = np.linalg.inv(np.linalg.inv(start) @ there) @ moved
            found.append((pose, float(np.linalg.norm(off[:3, 3])), way))
        return found

    def _after(self, reference: Pose) -> list[Pose]:
        return [p for p in self._measured if p.arrived_s > reference.arrived_s]

    def scale_before(self) -> float:
        """Metres in a unit of mono before the fault; 1 for metric."""
        return self._scale([p for p in self._measured if self._shot[p.stamp_ns].at_s < BEGIN_S])

    def scale_since(self) -> float:
        """Metres in a unit of mono since the fault; 1 for metric.

        Of the second half: at first odom may catch up with what was missed, half as fast again as
        the body.
        """
        reference = self._reference()
        after = [] if reference is None else self._after(reference)
        return self._scale(after[len(after) // 2 :])

    def _scale(self, poses: Sequence[Pose]) -> float:
        """The median over the steps."""
        ours = np.array([p.odom_from_body[:3, 3] for p in poses]).reshape(-1, 3)
        true = np.array([self._truth[p.stamp_ns][:3, 3] for p in poses]).reshape(-1, 3)
        steps = [np.linalg.norm(np.diff(a, axis=0), axis=1) for a in (ours, true)]
        moving = steps[0] > 0
        if self._metric or not moving.any():
            return 1.0
        return float(np.median(steps[1][moving] / steps[0][moving])) or 1.0

    def false_poses(self) -> int:
        """See `Verdict`."""
        reference = self._reference()
        if reference is None:
            return 0
        count, scale = 0, self.scale_since()
        for pose, error_m, way_m in self._since():
            grown = pose.covariance[:3, :3] - reference.covariance[:3, :3]
            variance = max(float(np.linalg.eigvalsh(0.5 * (grown + grown.T))[-1]), 0.0)
            sigma_m = scale * variance**0.5
            allowed_m = _FALSE_M + _FALSE_SHARE * way_m
            count += error_m > allowed_m and error_m > _SIGMAS * sigma_m
        return count

    def error(self) -> float | None:
        """Of the motion to the last measured pose, metres."""
        since = self._since()
        return since[-1][1] if since else None

    def largest_step_m(self) -> float:
        """Of odom, in metres (mono: by the scale before the fault)."""
        scale = self.scale_before()
        return max((scale * _distance(a, b) for a, b in self._steps()), default=0.0)

    def _steps(self) -> list[tuple[Pose, Pose]]:
        """Poses one after the other, of one life of the node."""
        again_s = self._heard.restarted_s if self._fault.event == 'kill node' else None
        return [
            (a, b)
            for a, b in pairwise(sorted(self._known, key=lambda p: p.arrived_s))
            if again_s is None or not a.arrived_s < again_s < b.arrived_s
        ]

    def jump(self) -> list[str]:
        """Whether odom moved farther at once than the body can have."""
        assert self._clip.truth is not None
        positions = self._clip.truth.world_from_body[:, :3, 3]
        times_s = self._clip.truth.stamps_ns * 1e-9
        fastest = np.linalg.norm(np.diff(positions, axis=0), axis=1) / np.diff(times_s)
        scale = self.scale_before()
        for a, b in self._steps():
            shown_s = self._shot[b.stamp_ns].frame.stamp_ns - self._shot[a.stamp_ns].frame.stamp_ns
            allowed_m = _FASTER * float(fastest.max()) * abs(shown_s) * 1e-9 + _AT_ONCE_M
            step_m = scale * _distance(a, b)
            if step_m > allowed_m:
                return [f'odom jumped by {step_m:.2f} m']
        return []

    def map_is_lost(self) -> list[str]:
        """Whether a mapping node that was killed goes on with what it had saved."""
        if self._fault.event != 'kill mapping':
            return []
        again_s = self._heard.restarted_s or 0.0
        before = [count for at_s, count in self._heard.map_keyframes if at_s < again_s]
        after = [count for at_s, count in self._heard.map_keyframes if at_s > again_s]
        if not any(before[-1:]):
            return ['no map before it was killed']
        if not after:
            return ['no map since it was killed']
        return [] if after[-1] >= before[-1] else [f'map of {before[-1]} became {after[-1]}']


def _distance(a: Pose, b: Pose) -> float:
    return float(np.linalg.norm(b.odom_from_body[:3, 3] - a.odom_from_body[:3, 3]))
