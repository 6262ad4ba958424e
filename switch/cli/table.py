# SPDX-License-Identifier: Apache-2.0
"""Plain aligned text: tables, numbers a person can compare, a little colour where there is a terminal for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def coloured() -> bool:
    """Colour only on a terminal, and never against NO_COLOR."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Cell(str):
    """Text with a colour; its width is that of the text."""

    colour: str

    def __new__(cls, text: object, colour: str = "") -> Cell:
        cell = super().__new__(cls, text)
        cell.colour = colour
        return cell


def paint(text: str, colour: str) -> str:
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if colour and coloured() else text


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned: numbers (heads that end in '>') to the right, the rest to the left. No rows: only the head."""
    right = [name.endswith(">") for name in head]
    lines: list[list[str]] = [[Cell(name.rstrip(">"), "bold") for name in head]]
    lines += [[cell if isinstance(cell, str) else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    out = []
    for line in lines:
        parts = []
        for column, cell in enumerate(line):
            last = column == len(head) - 1
            pad = "" if last and not right[column] else " " * (widths[column] - len(cell))
            text = paint(str(cell), getattr(cell, "colour", ""))
            parts.append(pad + text if right[column] else text + pad)
        out.append("  ".join(parts).rstrip())
    return "\n".join(out)


def pairs(rows: Iterable[tuple[str, object]], indent: str = "  ") -> str:
    """Names and values, one pair a line; empty values are left out."""
    shown = [(name, str(value)) for name, value in rows if value not in (None, "", [])]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in shown)


def rate(value: float) -> str:
    """1234567 -> 1.23M. Three digits that matter; 0 is a dot of attention less: "0"."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            scaled = value / limit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


def percent(share: float) -> str:
    return f"{share * 100:.0f}%"


def duration(seconds: float) -> str:
    """93784 -> 1d 2h; two units are enough."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
