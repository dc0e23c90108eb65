# SPDX-License-Identifier: Apache-2.0
"""The fuzz target runs, and notices what it is there for. Long runs: see CONTRIBUTING.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
READERS = ('bag', 'map', 'weights', 'calibration', 'trajectory', 'keyframe')
# What a reader does with an input that is called so.
FAULTS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import attempts, readers, targets
from mv_matcher_ros.errors import SourceError

class TwoLines(SourceError):
    def __str__(self):
        return 'one\\ntwo'

def two_lines(folder):
    raise TwoLines

def no_such_file(folder):
    raise SourceError('no such file')

def out_of_memory(folder):
    try:
        bytearray(1 << 40)
    except MemoryError:
        raise SourceError('too large')

KINDS = {
    'sound': lambda folder: None,
    'raises': lambda folder: {}['x'],
    'hangs': lambda folder: time.sleep(60),
    'grows': lambda folder: len(b'x' * (400 << 20)),
    'allocates': out_of_memory,
    'writes': lambda folder: (folder / '../../../outside').write_text(''),
    'runs': lambda folder: os.system('true'),
    'dies': lambda folder: os.kill(os.getpid(), signal.SIGSEGV),
    'speaks': two_lines,
    'refuses': no_such_file,
}

def read(folder, out):
    [file] = folder.iterdir()
    KINDS[file.name](folder)

class Planted:
    name = 'planted'
    def __getitem__(self, number):
        return {list(KINDS)[number]: b''}

attempts.HANG_S = 4.0
targets.TARGETS['planted'] = targets.Target(lambda folder: [], read)
outcome = attempts.attempt(Planted(), 0, len(KINDS), 60.0, readers.Path(sys.argv[2]))
print(outcome.executions, outcome.read, dict(outcome.refusals))
for number, finding in outcome.findings.items():
    print(list(KINDS)[number], '|', ' '.join(finding.split())[-200:])
"""


def test_every_reader_takes_or_refuses_some_spoiled_files(tmp_path: Path) -> None:
    command = [
        sys.executable, str(HERE / 'readers.py'), *READERS, '--most', '50', '--seed', '1',
        '--out', str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = re.findall(
        r'(\w+): 50 inputs in .*, (\d+) read, (\d+) distinct.*, 0 findings', done.stdout
    )
    assert [name for name, *_ in told] == list(READERS)
    assert all(int(read) > 0 and int(refusals) > 3 for _, read, refusals in told), told
    assert not list(tmp_path.iterdir())


def test_what_a_reader_must_not_do_is_found(tmp_path: Path) -> None:
    command = [sys.executable, '-c', FAULTS, str(HERE), str(tmp_path / 'work')]
    (tmp_path / 'work').mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    # 'allocates' and 'speaks' are counted as refusals, too.
    assert first.startswith('10 1 {')
    assert "'no such file': 1" in first
    found = dict(line.split(' | ') for line in lines)
    assert set(found) == {
        'raises', 'hangs', 'grows', 'allocates', 'writes', 'runs', 'dies', 'speaks',
    }  # fmt: skip
    assert found['raises'].endswith("KeyError: 'x'")
    assert 'not done after 4 s' in found['hangs']
    assert re.search(r'takes \d{3} MiB', found['grows'])
    assert 'os.system' in found['runs']
