# SPDX-License-Identifier: Apache-2.0
"""Files that several processes make: what is there already is kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import torch


class FileJob(Protocol):
    """One file to be made."""

    def path(self, out: Path) -> Path:
        """Where it is or will be."""
        ...


Job = TypeVar('Job', bound=FileJob)


def make_missing(
    make: Callable[[Job], Job], todo: Sequence[Job], out: Path, workers: int
) -> Iterator[Job]:
    """Make the files that `out` lacks; yields each job once its file is there, old ones first.

    Args:
        make: makes one file and returns its job; goes to other processes, so it can be pickled.
        todo: all jobs.
        out: folder of the files.
        workers: processes, one thread each; fewer than two: this one.
    """
    missing = []
    for job in todo:
        if job.path(out).is_file():
            yield job
        else:
            missing.append(job)
    if workers < 2 or len(missing) < 2:
        yield from map(make, missing)
        return
    context = multiprocessing.get_context('spawn')
    with context.Pool(min(workers, len(missing)), single_thread) as pool:
        yield from pool.imap_unordered(make, missing)


def single_thread() -> None:
    """A process among several takes one core."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def before_forking() -> None:
    """End OpenCV's threads: a forked process has none of them and would wait for them forever."""
    cv2.setNumThreads(1)
