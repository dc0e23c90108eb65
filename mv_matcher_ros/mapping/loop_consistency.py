# SPDX-License-Identifier: Apache-2.0
"""Which loops are believed: those that agree with odometry and with each other.

A new loop is compared with its nearest fellows and with the tightest way round through all that is
believed. Three outcomes:

- It agrees, and few mistaken loops would have agreed by chance: believed at once.
- It neither clearly agrees nor contradicts (odometry has drifted far, or belongs to another
  segment): it waits until enough others from other images agree with it, and with each other.
- It contradicts: it waits too. Should more loops agree with it than speak for those it
  contradicts, these are dropped in its favour. Against odometry alone no number of loops prevails:
  a street that looks like another one gives as many agreeing loops as one likes.

So the believed set is the largest consistent one as far as its members have been compared
(Mangelson et al., ICRA 2018), found step by step: what is believed is only exchanged for more.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.loop_cycles import Link, Paths, pair_misfit
from mv_matcher_ros.mapping.odometry_chain import OdometryChain

# Squared Mahalanobis distance that one in a thousand true loops exceeds, by degrees of freedom.
GATE = {6: 22.46, 7: 24.32}
# Standard deviations that bound where a mistaken loop could hide; for `_chance` only.
REACH = 3.0
# The median of true loops.
MEDIAN = {6: 5.35, 7: 6.35}
# Loops that wait; the oldest are forgotten.
MOST_WAITING = 1000


@dataclass
class Candidate:
    """A loop and how it stands to those it was compared with.

    Attributes:
        link: the measurement; its newer keyframe `b` is the one that looked for it.
        agrees, contradicts: numbers of others.
    """

    link: Link
    agrees: set[int] = field(default_factory=set)
    contradicts: set[int] = field(default_factory=set)


class WayRound(NamedTuple):
    """How a loop goes together with what is believed.

    Attributes:
        squared: squared Mahalanobis distance of the cycle from the identity.
        chance: share of mistaken loops that would agree as well.
        loops: the believed ones on the way.
        by_odometry: odometry is most of what is uncertain about it.
    """

    squared: float
    chance: float
    loops: set[int]
    by_odometry: bool


class LoopConsistency:
    """Loops in the order in which they came, believed or waiting.

    Args:
        chain: odometry.
        settings: how much agreement is asked for.
        extent: size of the map in the units of a keyframe.
    """

    def __init__(
        self,
        chain: OdometryChain,
        settings: PoseGraphSettings,
        extent: Callable[[int], float],
    ) -> None:
        self._chain, self._settings, self._extent = chain, settings, extent
        self._gate = GATE[chain.algebra.size]
        self.contradiction = self._gate * settings.overconfidence**2
        self._paths = Paths(chain)
        self._waiting: deque[int] = deque()
        self._candidates: dict[int, Candidate] = {}
        self._believed: set[int] = set()
        # The keyframes of all loops between two segments, by number.
        self._ends: defaultdict[tuple[int, int], dict[int, tuple[int, int]]] = defaultdict(dict)
        self._count = 0
        # Squared misfits of what was believed by its way round; at first a guess.
        guess = settings.overconfidence**2 * MEDIAN[chain.algebra.size]
        self._misfits = [guess]
        # Loops believed although they did not clearly agree, and their squared misfit.
        self._on_trial: list[tuple[float, int]] = []

    @property
    def believed(self) -> Set[int]:
        """Numbers of the loops that take part; they increase in the order of finding."""
        return self._believed

    def link(self, number: int) -> Link:
        """The loop of a number."""
        return self._candidates[number].link

    def add(self, link: Link, trusted: bool = False) -> int:
        """Weigh a new loop, and others that it gives or takes weight; returns its number.

        Args:
            link: the loop.
            trusted: believe it whatever the others say.
        """
        number, self._count = self._count, self._count + 1
        self._candidates[number] = Candidate(link)
        self._beside(link)[number] = (link.a, link.b)
        if trusted:
            self._believe([number])
            return number
        self._compare(number)
        self._waiting.append(number)
        self._settle([number])
        if len(self._waiting) > MOST_WAITING:
            self._forget(self._waiting[0])
        return number

    def drop(self, number: int) -> None:
        """Believe a loop no more; it waits for others."""
        self._paths.remove(number)
        self._believed.discard(number)
        self._waiting.append(number)

    def reconsider(self, most: int) -> None:
        """Look again at some loops that wait, in turn: what is believed has changed since."""
        self._waiting.rotate(most)
        self._settle(list(self._waiting)[:most])

    def _forget(self, number: int) -> None:
        gone = self._candidates.pop(number)
        del self._beside(gone.link)[number]
        self._waiting.remove(number)
        for other in gone.agrees | gone.contradicts:
            self._candidates[other].agrees.discard(number)
            self._candidates[other].contradicts.discard(number)

    def _compare(self, number: int) -> None:
        """Agreement and contradiction with the nearest loops of the same two segments."""
        link = self._candidates[number].link
        near = self._nearest(number)
        if not near:
            return
        misfit = pair_misfit(self._chain, link, [self._candidates[n].link for n in near])
        chance = self._chance(misfit.covariance, link.a)
        for other, squared, luck in zip(near, misfit.squared, chance, strict=True):
            if squared > self.contradiction:
                self._note(number, other, 'contradicts')
                continue
            # Two loops of one new image share its mistake.
            alike = self._candidates[other].link.b == link.b
            if squared <= self._gate and luck <= self._settings.alone_chance and not alike:
                self._note(number, other, 'agrees')

    def _note(self, one: int, other: int, what: str) -> None:
        getattr(self._candidates[one], what).add(other)
        getattr(self._candidates[other], what).add(one)

    def _beside(self, link: Link) -> dict[int, tuple[int, int]]:
        """Loops between the same two segments: number and keyframes."""
        segment = self._chain.segment
        return self._ends[segment[link.a], segment[link.b]]

    def _nearest(self, number: int) -> list[int]:
        """Loops between the same two segments with the least odometry in between."""
        link, along = self._candidates[number].link, self._chain.lengths()
        beside = {n: ends for n, ends in self._beside(link).items() if n != number}
        others = np.array(list(beside), dtype=np.int64)
        if len(others) > self._settings.compared_loops:
            ends = np.array(list(beside.values()))
            apart = np.abs(along[ends] - along[[link.a, link.b]]).sum(1)
            nearest = np.argpartition(apart, self._settings.compared_loops)
            others = others[nearest[: self._settings.compared_loops]]
        return others.tolist()

    def _chance(self, covariance: Array, k: int) -> Array:
        """(K,) share of mistaken loops that would agree with what is known with (K, n, n).

        A mistaken loop leads anywhere on the map and, cameras being mostly upright, turns about
        one axis: the two widest directions of the position and the widest of the rotation count.
        """
        position = np.linalg.eigvalsh(covariance[:, :3, :3])
        turn = np.sqrt(np.linalg.eigvalsh(covariance[:, 3:6, 3:6])[:, -1])
        area = REACH**2 * np.sqrt(position[:, 1] * position[:, 2]) / self._extent(k) ** 2
        return np.minimum(area, 1.0) * np.minimum(REACH * turn / np.pi, 1.0)

    def _settle(self, numbers: Iterable[int]) -> None:
        """Decide on waiting loops, and on those that change sides with them."""
        queue, seen = deque(numbers), set(numbers)
        while queue:
            number = queue.popleft()
            if number not in self._candidates or number in self._believed:
                continue
            for changed in self._decide(number):
                candidate = self._candidates[changed]
                # What agrees with one that is believed now; or one that is not any more may be
                # right all the same, or what contradicted it.
                touched = (
                    candidate.agrees
                    if changed in self._believed
                    else {changed, *candidate.contradicts}
                )
                fresh = touched - seen - self._believed
                seen |= fresh
                queue.extend(sorted(fresh))

    def _decide(self, number: int) -> list[int]:
        """Believe a waiting loop if there is reason to; returns what changed sides."""
        candidate = self._candidates[number]
        foes = candidate.contradicts & self._believed
        if foes:
            return self._challenge(number, foes)
        way = self._way_round(number)
        if way is None:
            return self._believe_together(number)
        if way.squared > self.contradiction:
            return self._challenge(number, way.loops)
        alone = way.squared <= self._gate and way.chance <= self._settings.alone_chance
        changed: list[int] = []
        if alone or (candidate.agrees & self._believed and way.squared <= self._tolerated()):
            changed = self._believe([number])
        elif way.squared <= self._tolerated():
            changed = self._believe_together(number)
        if changed and way.by_odometry:
            insort(self._misfits, way.squared)
            if way.squared > self._gate:
                self._on_trial.append((way.squared, number))
            changed = changed + self._convict()
        return changed

    def _way_round(self, number: int) -> WayRound | None:
        """The tightest one through what is believed; None where there is none."""
        link = self._candidates[number].link
        steps = self._paths.tightest(link.b, link.a)
        if steps is None:
            return None
        misfit = self._paths.misfit(link, steps)
        loops = {n for _, _, n in steps if n is not None}
        measured = sum(
            self._chain.size_of(self._candidates[n].link.covariance) for n in (number, *loops)
        )
        walked = sum(self._chain.length(i, j) for i, j, n in steps if n is None)
        return WayRound(
            float(misfit.squared[0]),
            float(self._chance(misfit.covariance, link.a)[0]),
            loops,
            walked > measured,
        )

    def _tolerated(self) -> float:
        """Squared misfit up to which loops that agree with each other are believed.

        How far the covariances of odometry are to be trusted shows in the ways round of what was
        believed: their median misfit against the one that honest covariances give.
        """
        median = self._misfits[(len(self._misfits) - 1) // 2]
        excess = median / MEDIAN[self._chain.algebra.size]
        return min(max(excess, 1.0) * self._gate, self.contradiction)

    def _convict(self) -> list[int]:
        """Drop what was believed in doubt and would not be today, with all that followed it."""
        dropped: list[int] = []
        tolerated = self._tolerated()
        for squared, number in self._on_trial:
            if squared > tolerated and number in self._believed:
                queue = [number]
                while queue:
                    one = queue.pop()
                    if one in self._believed:
                        self.drop(one)
                        dropped.append(one)
                        queue.extend(self._candidates[one].agrees & self._believed)
        self._on_trial = [(s, n) for s, n in self._on_trial if n in self._believed]
        return dropped

    def _believe(self, numbers: list[int]) -> list[int]:
        for n in numbers:
            self._believed.add(n)
            if n in self._waiting:
                self._waiting.remove(n)
            self._paths.add(n, self._candidates[n].link)
        return numbers

    def _company(self, number: int) -> list[int]:
        """A waiting loop and others that agree with it and do not contradict each other."""
        company = [number]
        waiting = [n for n in self._candidates[number].agrees if n not in self._believed]
        for n in sorted(waiting, key=lambda n: (-len(self._candidates[n].agrees), n)):
            if not self._candidates[n].contradicts & set(company):
                company.append(n)
        return company

    def _believe_together(self, number: int) -> list[int]:
        company = self._company(number)
        images = {self._candidates[n].link.b for n in company}
        return self._believe(company) if len(images) >= self._settings.agreeing_loops else []

    def _challenge(self, number: int, foes: set[int]) -> list[int]:
        """Exchange believed loops for more that contradict them.

        Args:
            number: a waiting loop.
            foes: believed loops that it is known not to go together with, one or all of them.
        """
        company = self._company(number)
        if not foes or len(company) < max(self._settings.agreeing_loops, 2):
            return []
        if len(company) <= len(self._candidates[number].contradicts & self._believed):
            return []
        opponents = self._opponents(number)
        if not opponents:  # together they contradict it, and none of them alone
            weakest = min(foes, key=lambda n: (len(self._candidates[n].agrees), n))
            opponents = [weakest, *sorted(self._candidates[weakest].agrees & self._believed)]
        if len(company) <= len(opponents):
            return []
        for n in opponents:
            self.drop(n)
        # A long run of one mistake outnumbers what true loops there are nearby: it must also agree
        # with all that is left.
        way = self._way_round(number)
        if way is not None and way.squared > self._tolerated():
            self._believe(opponents)
            return []
        return [*opponents, *self._believe(company)]

    def _opponents(self, number: int) -> list[int]:
        """All believed loops between the same segments that contradict one."""
        link = self._candidates[number].link
        others = [n for n in self._beside(link) if n in self._believed]
        if not others:
            return []
        misfit = pair_misfit(self._chain, link, [self._candidates[n].link for n in others])
        return [n for n, s in zip(others, misfit.squared, strict=True) if s > self.contradiction]
