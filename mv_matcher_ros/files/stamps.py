# SPDX-License-Identifier: Apache-2.0
"""Stamps as text, to the nanosecond, and the pairing of stamps that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

# Seconds since 1970 have 10 digits; a whole number of 16 digits or more can only be nanoseconds.
NANOSECOND_DIGITS = 16
_LATEST_S = (1 << 63) // 10**9 + 1


def stamp_from_text(text: str) -> int:
    """Nanoseconds from seconds (decimal, also with an exponent) or a long whole number of them.

    A double holds a stamp of today to 200 ns only, so the digits are read as they stand.

    Raises:
        ValueError: `text` is not a number, or none that 64 bits hold in nanoseconds.
    """
    digits = text.lstrip('+-')
    try:
        if digits.isdigit() and NANOSECOND_DIGITS <= len(digits) < 20:
            stamp_ns = int(text)
        else:
            seconds = Decimal(text)
            # Compared first: a short exponent makes a number of a million digits.
            if not -_LATEST_S < seconds < _LATEST_S:
                raise ValueError
            stamp_ns = int(seconds.scaleb(9).to_integral_value())
    except (ArithmeticError, ValueError):  # of Decimal and of int
        raise ValueError(f'"{text}" is not a time stamp') from None
    if abs(stamp_ns) >= 1 << 63:
        raise ValueError(f'"{text}" is not a time stamp')
    return stamp_ns


def text_from_stamp(stamp_ns: int) -> str:
    """Seconds with nine decimals, exactly."""
    sign = '-' if stamp_ns < 0 else ''
    seconds, rest = divmod(abs(int(stamp_ns)), 1_000_000_000)
    return f'{sign}{seconds}.{rest:09d}'


def pair_stamps(
    left_ns: Sequence[int] | NDArray[np.int64],
    right_ns: Sequence[int] | NDArray[np.int64],
    slop_ns: int,
) -> list[tuple[int, int]]:
    """Pairs of stamps that are each other's nearest and at most `slop_ns` apart.

    Args:
        left_ns, right_ns: increasing stamps in nanoseconds.
        slop_ns: largest difference of a pair.

    Returns:
        (left index, right index), increasing; each index at most once. On a tie the earlier stamp
        wins.
    """
    left, right = np.asarray(left_ns, dtype=np.int64), np.asarray(right_ns, dtype=np.int64)
    if not len(left) or not len(right):
        return []
    right_of_left, left_of_right = _nearest(left, right), _nearest(right, left)
    return [
        (i, int(j))
        for i, j in enumerate(right_of_left)
        if left_of_right[j] == i and abs(int(left[i]) - int(right[j])) <= slop_ns
    ]


def _nearest(stamps: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the element of increasing `among` nearest to each stamp, the earlier on a tie."""
    after = np.clip(np.searchsorted(among, stamps), 1, max(len(among) - 1, 1))
    if len(among) == 1:
        return np.zeros(len(stamps), dtype=np.int64)
    before = after - 1
    nearest: NDArray[np.int64] = np.where(
        np.abs(stamps - among[before]) <= np.abs(among[after] - stamps), before, after
    )
    return nearest
