# SPDX-License-Identifier: Apache-2.0
"""A message is one line of text, whatever it quotes."""

from __future__ import annotations

from mv_matcher_ros.errors import CalibrationError, MissingDependencyError


def test_what_a_terminal_obeys_is_written_out() -> None:
    error = CalibrationError('cal.yaml: unknown key "a\n\tb\x1b[2J\x00"; known: left, né')
    assert str(error) == 'cal.yaml: unknown key "a b\\x1b[2J\\x00"; known: left, né'


def test_a_long_quotation_is_cut_in_its_middle() -> None:
    message = str(CalibrationError(f'cal.yaml: unknown key "{100_000 * "x"}"; known: left'))
    assert len(message) < 1100
    assert message.startswith('cal.yaml: unknown key')
    assert message.endswith('known: left')


def test_other_messages_are_as_they_are() -> None:
    error = MissingDependencyError('rosbags', 'bags', 'reading  bags')
    assert str(error).startswith('reading  bags needs the Python package "rosbags"')
