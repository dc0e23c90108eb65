# SPDX-License-Identifier: Apache-2.0
"""The Fast DDS profile that lets images pass: found, and set before rclpy starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_FILE = 'fastdds_profile.xml'
# Any of these means that the user chose a profile.
_CHOSEN = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'SKIP_DEFAULT_XML',
)


def find_profile() -> Path | None:
    """The profile beside the source, in the prefix of pip, or in the ament share folder."""
    places = [Path(__file__).resolve().parents[2] / 'config']
    prefixes = [sys.prefix, *os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)]
    places += [Path(p) / 'share' / 'mv_matcher_ros' / 'config' for p in prefixes if p]
    return next((place / _FILE for place in places if (place / _FILE).is_file()), None)


def apply_profile() -> Path | None:
    """Set the profile for this process; must come before `rclpy.init`.

    By default Fast DDS has 512 KiB of shared memory, and 60 to 90 % of VGA images sent as sensor
    data are lost in it. Other middleware ignores the setting.

    Returns:
        The profile that was set; None where the user has one, or it was not found, which is said.
    """
    if any(name in os.environ for name in _CHOSEN):
        return None
    profile = find_profile()
    if profile is None:
        print(
            f'config/{_FILE} is neither beside the package nor in share/mv_matcher_ros: '
            f'Fast DDS may lose large images; set {_CHOSEN[0]} to such a file',
            file=sys.stderr,
        )
        return None
    os.environ[_CHOSEN[0]] = str(profile)
    return profile
