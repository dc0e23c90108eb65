# SPDX-License-Identifier: Apache-2.0
"""Inputs read in a child process, so that whatever they do to it is survived and noticed."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from targets import REFUSED, TARGETS, Inputs

HANG_S = 20.0  # of a busy machine: inputs are small, and take milliseconds
GROWTH_BYTES = 256 << 20  # of memory in use, while one input is read
ADDRESSES_BYTES = 1 << 30  # beyond those of the process before: an allocation that fails is seen
LONGEST = 1500  # characters of a refusal
INPUTS_A_CHILD = 5000
_RUNS = {
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.fork',
    'subprocess.Popen',
    'pickle.find_class',
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Outcome:
    """What came of a number of inputs.

    Attributes:
        executions, seconds: how many were read, in what time.
        read: how many were taken for sound.
        refusals: patterns of the messages of the others, and how often.
        findings: what should not have happened, by number of the input.
    """

    executions: int = 0
    seconds: float = 0.0
    read: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    findings: dict[int, str] = field(default_factory=dict)


def attempt(inputs: Inputs, first: int, most: int, seconds: float, work: Path) -> Outcome:
    """Read inputs from number `first` on, so many or for so long.

    Args:
        work: an empty folder.
    """
    outcome = Outcome()
    began, number = time.monotonic(), first
    while number < first + most and time.monotonic() - began < seconds:
        last = min(first + most, number + INPUTS_A_CHILD)
        number = _one_child(inputs, number, last, began + seconds, work, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _one_child(
    inputs: Inputs, number: int, last: int, until: float, work: Path, outcome: Outcome
) -> int:
    """Read inputs `number` to before `last` in a child of their own; returns the next one."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        _read_all(inputs, number, last, work, there)
    os.close(there)
    buffer, ended = b'', False
    while number < last and time.monotonic() < until:
        if not select.select([here], [], [], HANG_S)[0]:
            outcome.findings[number] = f'hangs: not done after {HANG_S:g} s'
            break
        piece = os.read(here, 1 << 16)
        if ended := not piece:
            break
        *lines, buffer = (buffer + piece).split(b'\n')
        for line in lines:
            _count(outcome, number, json.loads(line))
            number += 1
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(here)
    if ended and number < last:
        outcome.findings[number] = f'dies: status {status} of the process'
    if number in outcome.findings and number < last:
        outcome.executions += 1
        number += 1
    return number


def _count(outcome: Outcome, number: int, said: dict[str, str]) -> None:
    outcome.executions += 1
    if 'finding' in said:
        outcome.findings[number] = said['finding']
    elif 'refusal' in said:
        outcome.refusals[said['refusal']] += 1
    else:
        outcome.read += 1


# ---------------------------------------------------------------- in the child


def _read_all(inputs: Inputs, number: int, last: int, work: Path, report: int) -> NoReturn:
    try:
        folder = work / 'in' / 'the' / 'middle'
        _tidy(work)
        tempfile.tempdir = str(work / 'tmp')
        acts: list[str] = []
        sys.addaudithook(lambda event, args: _watch(acts, work, event, args))
        soft = _memory('VmSize') + ADDRESSES_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        while number < last:
            tree = inputs[number]
            lie_down(tree, folder)
            acts.clear()
            said = _read(inputs.name, folder, work, acts)
            _tidy(work)
            os.write(report, json.dumps(said).encode() + b'\n')
            number += 1
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(99)


def _tidy(work: Path) -> None:
    """Nothing is left of the input before."""
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ('cwd', 'tmp', 'in/the/middle'):
        (work / name).mkdir(parents=True)
    os.chdir(work / 'cwd')


def lie_down(tree: dict[str, bytes], folder: Path) -> None:
    """Write an input into a folder."""
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _read(name: str, folder: Path, work: Path, acts: list[str]) -> dict[str, str]:
    """What comes of one input."""
    target = TARGETS[name]
    _forget_peak()
    before = _memory('VmRSS')
    said: dict[str, str] = {}
    try:
        target.read(folder, work / 'tmp')
    except REFUSED as error:
        said['refusal'] = _pattern(str(error), work)
        if not target.allocates and _out_of_memory(error):
            said['finding'] = 'allocates what a file says: ' + traceback.format_exc()
        elif fault := _fault_of(str(error)):
            said['finding'] = f'{fault}: {str(error)[:300]!r}'
    except BaseException:
        said['finding'] = traceback.format_exc()
    grown = _memory('VmHWM') - before
    if grown > GROWTH_BYTES:
        said['finding'] = f'takes {grown >> 20} MiB of memory'
    if acts:
        said['finding'] = f'does more than read: {acts[:5]}'
    found = [work / 'cwd', work, work / 'in', work / 'in' / 'the']
    if [len(list(place.iterdir())) for place in found] != [0, 3, 1, 1]:
        said['finding'] = f'leaves files: {sorted(map(str, work.glob("*")))}'
    return said


def _watch(acts: list[str], work: Path, event: str, args: tuple[Any, ...]) -> None:
    """Notes what runs something, and what opens a file elsewhere for writing."""
    if event in _RUNS:
        acts.append(f'{event} {args!r}'[:200])
    elif event == 'open' and isinstance(args[0], str | bytes) and args[2] & _WRITES:
        path = os.fsdecode(args[0])
        if not os.path.abspath(path).startswith((f'{work}{os.sep}', '/proc/self/', '/dev/null')):
            acts.append(f'open {path} for writing')


def _fault_of(message: str) -> str:
    """What a refusal is not, of one clear line."""
    if not message.isprintable():
        return 'is no line of text'
    return '' if len(message) <= LONGEST else f'is a refusal of {len(message)} characters'


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed; a parser of Python that gives up says MemoryError, too."""
    while error is not None:
        if isinstance(error, MemoryError):
            frames = traceback.extract_tb(error.__traceback__)
            return not (frames and frames[-1].filename.endswith('ast.py'))
        error = error.__context__
    return False


def _pattern(message: str, work: Path) -> str:
    """A message without what differs from input to input."""
    message = re.sub(rf'{re.escape(str(work))}\S*?(?=: |\s|$)', 'PATH', message)
    message = re.sub(r'["\'(\[{].*', '…', message)
    message = re.sub(r'\b\w+\.npy|(?<=damaged: )\w+(?= (?:is|has|holds))', 'ARRAY', message)
    return ' '.join(re.sub(r'[^\s:;,.]*\d[^\s:;,]*', '#', message).split())[:160]


def _memory(name: str) -> int:
    """Bytes, as /proc/self/status says them."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f'{name}:'))


def _forget_peak() -> None:
    """Begin the peak of memory in use anew; where that is forbidden it is that of all inputs."""
    try:
        with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
            file.write('5')
    except OSError:
        pass
