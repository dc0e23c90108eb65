# SPDX-License-Identifier: Apache-2.0
"""A map in use: it grows with the keyframes of the odometry, or they are only found on it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Rig, Status
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.mapping.localizer import Localizer, Located
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_folder import INDEX, load_map, save_map
from mv_matcher_ros.mapping.mapper import Mapper, check_fits
from mv_matcher_ros.models.choice import Models, place_describer
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord


@dataclass(frozen=True)
class Taken:
    """What a keyframe brought.

    Attributes:
        stamp_ns: of the keyframe.
        status: TRACKING; localising also LOST, and RELOCALISED when it is found after that, and
            INITIALISING until it is found for the first time.
        message: one line on why it is not TRACKING, or what changed.
        map_from_odom: (4, 4) rigid, None where nobody knows.
        counts: keyframes, loops, …
    """

    stamp_ns: int
    status: Status
    message: str
    map_from_odom: Array | None
    counts: dict[str, int] = field(default_factory=dict)


class MapSession:
    """Takes keyframes, one at a time, in one thread.

    Args:
        settings: `mapping.grow` says which of the two it does, `mapping.folder` with which map.
        rig: calibrated cameras.
        models: those of the odometry.

    Attributes:
        unsaved: why the last save that nobody asked for failed; empty where it did not.
        keeps: the folder holds the map from before a reset: it is written over only when asked.

    Raises:
        MvMatcherError: the map cannot be read, was made with another detector or camera, or there
            is none to be found on.
    """

    def __init__(self, settings: Settings, rig: Rig, models: Models) -> None:
        self._settings, self._rig, self._models = settings, rig, models
        self._describer = place_describer(settings, models)
        self._mapper: Mapper | None = None
        self._localizer: Localizer | None = None
        self._saved_s = time.monotonic()
        self.unsaved, self.keeps = '', False
        self._begin(self._stored())

    def change(self, settings: Settings) -> None:
        """Take other values of `mapping.save_every_s` and `mapping.lost_after`."""
        self._settings = settings.model_copy(update={'sensor': self._settings.sensor})

    @property
    def world(self) -> Map:
        """The map."""
        return self._world

    @property
    def folder(self) -> Path | None:
        """Where the map is kept; None: nowhere."""
        name = self._settings.mapping.folder
        return Path(name).expanduser() if name else None

    def _stored(self) -> Map | None:
        folder = self.folder
        there = folder is not None and (folder / INDEX).exists()
        if folder is None or (self._settings.mapping.grow and not there):
            return None
        return load_map(folder)

    def _begin(self, world: Map | None) -> None:
        self.map_from_odom: Array | None = None
        self._missed, self._ever = 0, False
        self._part: tuple[str, int] | None = None
        self._guess: Array | None = None
        if self._settings.mapping.grow:
            self._mapper = Mapper(self._settings, self._rig, self._models, self._describer, world)
            self._world = self._mapper.world
            return
        assert world is not None
        check_fits(world, self._settings, self._rig, self._models)
        self._world = world
        self._localizer = Localizer(
            self._settings, self._rig, self._models, self._describer, world
        )

    def take(self, record: KeyframeRecord, run: str = '', hurry: bool = False) -> Taken | None:
        """A keyframe; None for one that the map has already.

        Args:
            record: of the odometry.
            run: of the odometry, see `Mapper.add`.
            hurry: others wait.
        """
        growing = self._mapper is not None
        taken = self._grown(record, run, hurry) if growing else self._found(record, run)
        every = self._settings.mapping.save_every_s
        if growing and every and time.monotonic() - self._saved_s > every:
            with contextlib.suppress(MvMatcherError):  # tried again after as long
                self.save_unasked()
        return taken

    def _grown(self, record: KeyframeRecord, run: str, hurry: bool) -> Taken | None:
        assert self._mapper is not None
        update = self._mapper.add(record, run, hurry)
        if update is None:
            return None
        self.map_from_odom = update.map_from_odom
        message = f'{update.taken} loops closed' if update.taken else ''
        if update.dropped:
            message = f'{update.dropped} loops given up'
        counts = {
            'keyframes': len(self.world),
            'loops': sum(edge.loop for edge in self.world.edges),
            'refused': len(update.refused),
        }
        return Taken(
            record.stamp_ns, Status.TRACKING, message, self.map_from_odom, counts
        )  # fmt: skip

    def _found(self, record: KeyframeRecord, run: str) -> Taken:
        assert self._localizer is not None
        part = run, record.segment
        if self._part not in (None, part):
            # The odometry was lost: nobody knows where it is in what it was before.
            self.map_from_odom = None
            self._missed = max(self._missed, self._settings.mapping.lost_after)
        self._part = part
        odom_from_body = record.odom_from_body.numpy()
        guess = self._guess
        if guess is None and self.map_from_odom is not None:
            guess = self.map_from_odom @ odom_from_body
        found = self._localizer.locate(record.observation, guess)
        counts = {'keyframes': len(self.world)}
        if isinstance(found, Located):
            lost = self._missed >= self._settings.mapping.lost_after
            self.map_from_odom = found.map_from_body @ np.linalg.inv(odom_from_body)
            status = Status.RELOCALISED if lost and self._ever else Status.TRACKING
            self._missed, self._ever, self._guess = 0, True, None
            counts['inliers'] = found.inliers
            return Taken(record.stamp_ns, status, '', self.map_from_odom, counts)
        self._missed += 1
        status = Status.DEGRADED
        if self._missed >= self._settings.mapping.lost_after:
            status = Status.LOST if self._ever else Status.INITIALISING
        return Taken(record.stamp_ns, status, found.reason, self.map_from_odom, counts)

    def expect(self, map_from_body: Array) -> None:
        """Somebody says where the body is: the next keyframe is looked for there first."""
        self._guess = map_from_body

    def save(self) -> str:
        """Write the map to its folder; returns what to tell.

        Raises:
            MvMatcherError: it has no folder, or that cannot be written.
        """
        self._saved_s = time.monotonic()
        if self.folder is None:
            return 'mapping.folder is empty: the map is kept nowhere'
        if self._mapper is None:
            return f'{self.folder}: the map does not grow, nothing to save'
        self._mapper.settle()
        save_map(self.world, self.folder)
        self.unsaved, self.keeps = '', False
        return f'{self.folder}: {len(self.world)} keyframes saved'

    def save_unasked(self) -> str:
        """`save`, but for a map from before a reset: that stays. Returns what to tell.

        Raises:
            MvMatcherError: the folder cannot be written; `unsaved` says it, too.
        """
        if self.keeps:
            self._saved_s = time.monotonic()
            return f'{self.folder}: holds the map from before the reset, nothing is saved'
        try:
            return self.save()
        except MvMatcherError as error:
            self.unsaved = str(error)
            raise

    def load(self) -> str:
        """Begin again with the map of the folder; returns what to tell.

        Raises:
            MvMatcherError: there is none, or it does not fit.
        """
        if self.folder is None:
            return 'mapping.folder is empty: there is no map to load'
        self._begin(load_map(self.folder))
        self.unsaved, self.keeps = '', False
        return f'{self.folder}: {len(self.world)} keyframes loaded'

    def reset(self) -> str:
        """Forget the map, if it grows, and where the body is; what is saved stays until `save`."""
        self._begin(None if self._mapper is not None else self.world)
        if self._mapper is None:
            return 'where the body is is unknown'
        self.keeps = self.folder is not None and (self.folder / INDEX).exists()
        stays = f'; {self.folder} stays as it is until ~/save_map' if self.keeps else ''
        return f'the map is empty{stays}'
