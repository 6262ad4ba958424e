# SPDX-License-Identifier: Apache-2.0
"""Text for people: tables, numbers, durations."""

from __future__ import annotations

import pytest

from switch.cli.table import Cell, duration, rate, table


def test_tables_align_and_colours_have_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(("A", "N>"), [("x", 5), (Cell("long", "red"), 10)]) == "A      N\nx      5\nlong  10"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert table(("A",), [(Cell("up", "green"),)]).splitlines()[1] == "\x1b[32mup\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert table(("A",), [(Cell("up", "green"),)]) == "A\nup"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (999_999, "1.00M"),
        (14.88e6, "14.9M"),
        (4e11, "400G"),
    ],
)
def test_rates_have_three_digits(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0s"), (61, "1m 1s"), (3600, "1h"), (93784, "1d 2h")])
def test_durations_have_two_units(value: float, text: str) -> None:
    assert duration(value) == text
