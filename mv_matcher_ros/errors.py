# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as a small family of exceptions.

Library code raises these and nothing else for faults of the input; the command line turns each
into one line and exit code 2. `assert` is kept for invariants of our own.
"""

# Characters of a message: what it quotes of a file may be long.
_LONGEST = 1000


class MvMatcherError(Exception):
    """Root of every error raised on purpose. The message says what, where, what to do.

    It is one line of text whatever it quotes: names and values out of files may hold line ends and
    sequences that a terminal obeys.
    """

    def __str__(self) -> str:
        message = super().__str__()
        if not message.isprintable():
            shown = (c if c.isprintable() else repr(c)[1:-1] for c in ' '.join(message.split()))
            message = ''.join(shown)
        if len(message) > _LONGEST:
            message = f'{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}'
        return message


class SettingsError(MvMatcherError):
    """A setting is unknown, out of range or contradicts another."""


class CalibrationError(MvMatcherError):
    """A camera's calibration is missing, incomplete or contradicts the images."""


class SourceError(MvMatcherError):
    """A recording, folder, file or topic cannot be read."""


class GeometryError(MvMatcherError):
    """A geometric function was called with shapes or values it is not defined for."""


class ModelError(MvMatcherError):
    """A network's weights or its input do not fit the network."""


class EvaluationError(MvMatcherError):
    """Two trajectories cannot be compared (no common time, too few poses, …)."""


class MissingDependencyError(MvMatcherError):
    """An optional package is needed for this and not installed.

    Args:
        package: the import name that failed, e.g. `'rosbags'`.
        extra: the pip extra of this package that brings it, e.g. `'bags'`.
        purpose: what it is needed for, e.g. `'reading rosbags'`.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs the Python package "{package}", which is not installed: '
            f'pip install "mv_matcher_ros[{extra}]"'
        )
        self.package = package
        self.extra = extra
