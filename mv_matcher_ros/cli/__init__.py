# SPDX-License-Identifier: Apache-2.0
"""`mv-matcher`: the command line. Faults of the input are one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError

EXIT_INPUT = 2  # the input is at fault; the line on stderr says how
EXIT_INTERRUPTED = 130  # as shells report SIGINT


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave the process with its exit code.

    Args:
        arguments: words after the program's name; the process's own without them.
    """
    sys.exit(exit_code(sys.argv[1:] if arguments is None else arguments))


def exit_code(arguments: Sequence[str]) -> int:
    """Exit code of one command.

    0 done, 1 a check failed, 2 faulty input, 3 nothing gained (adapt), 130 interrupted.
    """
    try:
        from mv_matcher_ros.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {'typer', 'rich'}:
            raise
        return _fail(MissingDependencyError(str(error.name), 'cli', 'the command line'))
    try:
        return int(app(list(arguments), prog_name='mv-matcher', standalone_mode=True) or 0)
    except MvMatcherError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print('mv-matcher: interrupted', file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of `mv-matcher … | head` left: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # typer's own: usage errors (2), --help (0), typer.Exit
        return stop.code if isinstance(stop.code, int) else 1


def _fail(error: MvMatcherError) -> int:
    print(f'mv-matcher: error: {" ".join(str(error).split())}', file=sys.stderr)
    return EXIT_INPUT
