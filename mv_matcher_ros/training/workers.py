# SPDX-License-Identifier: Apache-2.0
"""Files that several processes make: what is there already is kept."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import torch

from mv_matcher_ros.errors import SourceError


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


def remember(content: dict[str, Any], path: Path, what: str) -> None:
    """Write down how the files of a folder are made, or see that it is as before.

    Args:
        content: plain values, as JSON gives them back.
        path: the file that holds them, in the folder.
        what: the files, for the message.

    Raises:
        SourceError: they were made in another way; names what differs.
    """
    try:
        before = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None
        if before is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1), encoding='utf-8')
    except (OSError, ValueError) as error:
        raise SourceError(f'{path}: {error}') from None
    if before not in (None, content):
        differs = [key for key in content if before.get(key) != content[key]]
        raise SourceError(
            f'{path.parent}: holds {what} {", ".join(differs)}; take another folder, or the same '
            f'sources and options'
        )


def single_thread() -> None:
    """A process among several takes one core."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def before_forking() -> None:
    """End OpenCV's threads: a forked process has none of them and would wait for them forever."""
    cv2.setNumThreads(1)
