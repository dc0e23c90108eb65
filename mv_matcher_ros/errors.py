# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as a small family of exceptions.

Library code raises these and nothing else for faults of the input; the command line turns each
into one line and exit code 2. `assert` is kept for invariants of our own.
"""


class MvMatcherError(Exception):
    """Root of every error raised on purpose. The message says what, where, what to do."""


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
