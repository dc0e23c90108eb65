# SPDX-License-Identifier: Apache-2.0
"""Adaptation beside the node: frames are kept on disk, and `mv-matcher adapt` learns from them.

It runs as a process of its own, at low priority: nothing of training is imported here, and the
node goes on. What it writes is used from the next start on, by `matching.weights`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Frame, Rig
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.clip_store import ClipStore

LOG = 'adapt.log'
WEIGHTS = 'adapted.safetensors'
_NICE = '10'
_ENDS = {0: 'better: weights are written', 3: 'no better: nothing is written'}


class Adaptation:
    """Keeps frames, and starts the process; off unless `adaptation.folder` names a folder.

    Args:
        settings: of the node.
        logger: of the node.
    """

    def __init__(self, settings: Settings, logger: Any) -> None:
        self._settings, self._logger = settings, logger
        self._store: ClipStore | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ''
        self._told = False

    @property
    def folder(self) -> Path | None:
        """Of the frames; None: off."""
        named = self._settings.adaptation.folder
        return Path(named).expanduser() if named else None

    def begin(self, rig: Rig) -> None:
        """Keep frames of this rig from now on, if that is wanted."""
        folder, wanted = self.folder, self._settings.adaptation
        if folder is None:
            return
        try:
            self._store = ClipStore(
                folder, rig, self._settings.sensor, wanted.most_mb * 1_000_000, wanted.rate_hz
            )
        except SourceError as error:
            self._problem = str(error)
            self._logger.error(f'no frames are kept for adaptation: {error}')

    def offer(self, frame: Frame) -> None:
        """A frame that went through the engine."""
        if self._store is None:
            return
        self._store.offer(frame)
        if self._store.problem and not self._problem:
            self._problem = self._store.problem
            self._logger.error(f'no more frames are kept for adaptation: {self._problem}')

    def start(self) -> tuple[bool, str]:
        """Start learning from what is there; whether it runs, and a line on it."""
        folder = self.folder
        if folder is None:
            return False, 'no frames are kept: set adaptation.folder'
        if self._process is not None and self._process.poll() is None:
            return False, f'already runs; its log: {folder / LOG}'
        if self._store is None or not self._store.frames:
            return False, self._problem or f'no frames in {folder} yet'
        out = folder / WEIGHTS
        nice = shutil.which('nice')
        words = [
            *([nice, '-n', _NICE] if nice else []),
            sys.executable, '-m', 'mv_matcher_ros.cli', 'adapt', str(folder), '--out', str(out),
            '--sensor', 'stereo' if self._settings.sensor == 'stereo' else 'mono',
        ]  # fmt: skip
        try:
            with (folder / LOG).open('ab') as log:
                self._process = subprocess.Popen(
                    words,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # signals to the node are not for it
                )
        except OSError as error:  # the folder is gone, or full
            return False, f'cannot be started: {error}'
        self._told = False
        return True, f'learns from {self._store.frames} frames into {out}; log: {folder / LOG}'

    def close(self) -> None:
        """Write what waits; then, if that is wanted, start learning and leave it alone."""
        if self._store is None:
            return
        self._store.close()
        if self._settings.adaptation.at_shutdown:
            _, said = self.start()
            self._logger.info(f'adaptation: {said}')
        self._store = None

    def values(self) -> dict[str, str]:
        """For the diagnostics."""
        if self.folder is None:
            return {}
        found = {}
        if self._store is not None:
            megabytes = self._store.size_bytes * 1e-6
            found['adaptation frames'] = f'{self._store.frames} ({megabytes:.0f} MB)'
            found['adaptation left out'] = str(self._store.left_out)
        if self._problem:
            found['adaptation problem'] = self._problem
        if self._process is not None:
            code = self._process.poll()
            ended = 'runs' if code is None else _ENDS.get(code, f'failed (exit code {code})')
            found['adaptation'] = f'{ended}; log: {self.folder / LOG}'
            if code is not None and not self._told:
                self._told = True
                self._logger.info(f'adaptation: {found["adaptation"]}')
        return found
