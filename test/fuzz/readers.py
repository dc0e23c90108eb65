# SPDX-License-Identifier: Apache-2.0
"""Reads spoiled files for some time: `python test/fuzz/readers.py map --seconds 600 --seed 1`.

A reader may take what it is given or refuse it in one clear line. Anything else is a finding: the
input and its traceback are kept, and the exit status is 1. The same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # a process with threads must not fork
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

import cv2
from attempts import Outcome, attempt, lie_down
from targets import TARGETS, Inputs


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 without findings, 1 with some."""
    options = _options().parse_args(words)
    warnings.simplefilter('ignore')
    sys.dont_write_bytecode = True  # a reader that writes a file is a finding
    cv2.setNumThreads(0)
    return max(_fuzz(name, options) for name in options.reader)


def _fuzz(name: str, options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix='fuzz-', dir=_memory_disk()) as folder:
        inputs = Inputs(name, options.seed)
        _check_seeds(inputs, Path(folder))
        work = Path(folder) / 'work'
        work.mkdir()
        outcome = attempt(inputs, options.first, options.most, options.seconds, work)
    _tell(name, outcome)
    for number, finding in outcome.findings.items():
        kept = options.out / f'{name}-{options.seed}-{number}'
        lie_down({**inputs[number], 'finding.txt': finding.encode()}, kept)
        print(f'\n{kept}:\n{finding}')
    return int(bool(outcome.findings))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('reader', nargs='+', choices=sorted(TARGETS), help='one after another')
    parser.add_argument('--seconds', type=float, default=60.0, help='for how long, each')
    parser.add_argument('--seed', type=int, default=0, help='of all choices')
    parser.add_argument('--first', type=int, default=0, help='number of the first input')
    parser.add_argument(
        '--most', type=int, default=10**9, help='number of inputs of each, at most'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/fuzz'), help='folder for findings', metavar='FOLDER'
    )
    return parser


def _memory_disk() -> str | None:
    return '/dev/shm' if os.access('/dev/shm', os.W_OK) else None


def _check_seeds(inputs: Inputs, folder: Path) -> None:
    """What is not spoiled is read; imports are done before the children are."""
    for number, tree in enumerate(inputs.trees):
        here, out = folder / f'{number}', folder / f'{number}-out'
        lie_down(tree, here)
        TARGETS[inputs.name].read(here, out)


def _tell(name: str, outcome: Outcome) -> None:
    rate = outcome.executions / max(outcome.seconds, 1e-9)
    print(
        f'{name}: {outcome.executions} inputs in {outcome.seconds:.0f} s ({rate:.0f} a second), '
        f'{outcome.read} read, {len(outcome.refusals)} distinct refusals, '
        f'{len(outcome.findings)} findings'
    )
    for pattern, count in outcome.refusals.most_common():
        print(f'{count:8d}  {pattern}')


if __name__ == '__main__':
    sys.exit(main())
