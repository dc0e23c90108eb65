# SPDX-License-Identifier: Apache-2.0
"""ROS packages that a ROS distribution has and pip has not: the real one where it works.

Each stand-in has the interface of the real package, as far as this package uses it, and nothing
more.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType


@functools.cache
def working_module(
    package: str, works: Callable[[ModuleType], object] | None = None
) -> ModuleType | None:
    """The installed package, or None where it cannot be imported or does not work.

    Args:
        package: import name.
        works: called with the module; any exception means that it is broken.
    """
    try:
        module = importlib.import_module(package)
        if works is not None:
            works(module)
    except Exception:  # apt packages built for another numpy die with AttributeError
        return None
    return module


def real_or_standin(
    package: str, works: Callable[[ModuleType], object] | None = None
) -> ModuleType:
    """The installed ROS package, or its stand-in where that cannot be imported or does not work.

    Args:
        package: `message_filters`, `tf2_ros` or `tf_transformations`.
        works: called with the module; any exception means that it is broken.

    Returns:
        A module with the interface of `package`.
    """
    real = working_module(package, works)
    return real if real is not None else importlib.import_module(f'{__name__}.{package}')
