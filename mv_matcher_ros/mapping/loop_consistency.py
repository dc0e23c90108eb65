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
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
        self._count = 0
        # Squared misfits of what was believed by its way round; at first a guess.
        guess = settings.overconfidence**2 * MEDIAN[chain.algebra.size]
        self._misfits = [guess]
        # Loops believed although they did not clearly agree, and their squared misfit.
        self._on_trial: list[tuple[float, int]] = []

    def believed(self) -> list[int]:
        """Numbers of the loops that take part, in the order in which they were found."""
        return sorted(self._believed)

    def is_believed(self, number: int) -> bool:
        """Whether a loop takes part."""
        return number in self._believed

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
        """Look again at the newest loops that wait: what is believed has changed since."""
        self._settle(list(self._waiting)[-most:])

    def _forget(self, number: int) -> None:
        gone = self._candidates.pop(number)
        self._waiting.remove(number)
        for other in gone.agrees | gone.contradicts:
            self._candidates[other].agrees.discard(number)
            self._candidates[other].contradicts.discard(number)

    def _compare(self, number: int) -> None:
        """Agreement and contradiction with the nearest loops of the same two segments."""
        link = self._candidates[number].link
        near = self._nearest(number, self._candidates)
        if not near:
            return
        misfit = pair_misfit(self._chain, link, [self._candidates[n].link for n in near])
        chance = self._chance(misfit.covariance, link.a)
        for other, squared, luck in zip(near, misfit.squared, chance, strict=True):
            if squared > self.contradiction:
                self._note(number, other, 'contradicts')
            # Two loops of one new image share its mistake.
            elif (
                squared <= self._gate
                and luck <= self._settings.alone_chance
                and self._candidates[other].link.b != link.b
            ):
                self._note(number, other, 'agrees')

    def _note(self, one: int, other: int, what: str) -> None:
        getattr(self._candidates[one], what).add(other)
        getattr(self._candidates[other], what).add(one)

    def _nearest(self, number: int, among: Iterable[int]) -> list[int]:
        """Loops of the same two segments with the least odometry in between."""
        segment, along = self._chain.segment, self._chain.lengths()
        link = self._candidates[number].link
        others = [
            n
            for n in among
            if n != number
            and segment[self._candidates[n].link.a] == segment[link.a]
            and segment[self._candidates[n].link.b] == segment[link.b]
        ]
        if len(others) <= self._settings.compared_loops:
            return others
        a = np.array([self._candidates[n].link.a for n in others])
        b = np.array([self._candidates[n].link.b for n in others])
        apart = np.abs(along[a] - along[link.a]) + np.abs(along[b] - along[link.b])
        nearest = np.argpartition(apart, self._settings.compared_loops)
        return [others[i] for i in nearest[: self._settings.compared_loops]]

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
                # What agrees with one that is believed now, or contradicted one that is not.
                touched = candidate.agrees if changed in self._believed else candidate.contradicts
                fresh = touched - seen - self._believed
                seen |= fresh
                queue.extend(sorted(fresh))

    def _decide(self, number: int) -> list[int]:
        """Believe a waiting loop if there is reason to; returns what changed sides."""
        candidate, link = self._candidates[number], self._candidates[number].link
        foes = candidate.contradicts & self._believed
        if foes:
            return self._challenge(number, foes)
        if candidate.agrees & self._believed:
            return self._believe([number])
        steps = self._paths.tightest(link.b, link.a)
        if steps is None:
            return self._believe_together(number)
        misfit = self._paths.misfit(link, steps)
        squared = float(misfit.squared[0])
        if squared > self.contradiction:
            return self._challenge(number, {n for _, _, n in steps if n is not None})
        changed: list[int] = []
        if squared <= self._gate:
            chance = float(self._chance(misfit.covariance, link.a)[0])
            if chance <= self._settings.alone_chance:
                changed = self._believe([number])
        if not changed and squared <= self._tolerated():
            changed = self._believe_together(number)
        if changed:
            insort(self._misfits, squared)
            if squared > self._gate:
                self._on_trial.append((squared, number))
            changed = changed + self._convict()
        return changed

    def _tolerated(self) -> float:
        """Squared misfit up to which loops that agree with each other are believed.

        How far the covariances are to be trusted shows in what was believed: the median misfit
        against the one that honest covariances give.
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
        if self._contradicted(number):
            self._believe(opponents)
            return []
        return [*opponents, *self._believe(company)]

    def _opponents(self, number: int) -> list[int]:
        """All believed loops between the same segments that contradict one."""
        link = self._candidates[number].link
        segment = self._chain.segment
        others = [
            n
            for n in self.believed()
            if segment[self._candidates[n].link.a] == segment[link.a]
            and segment[self._candidates[n].link.b] == segment[link.b]
        ]
        if not others:
            return []
        misfit = pair_misfit(self._chain, link, [self._candidates[n].link for n in others])
        return [n for n, s in zip(others, misfit.squared, strict=True) if s > self.contradiction]

    def _contradicted(self, number: int) -> bool:
        link = self._candidates[number].link
        steps = self._paths.tightest(link.b, link.a)
        if steps is None:
            return False
        return float(self._paths.misfit(link, steps).squared[0]) > self.contradiction
