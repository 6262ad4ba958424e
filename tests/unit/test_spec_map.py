# SPDX-License-Identifier: Apache-2.0
"""docs/spec-map.md tells the truth: what it names exists, and no test of a specification's rule is left out of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "docs/spec-map.md").read_text(encoding="utf-8")

# The cells of a rule: rule | where | code | tests; a code or test cell has one entry a line (<br>).
ROW = re.compile(r"^\| (?P<rule>.+) \| (?P<where>.+) \| (?P<code>`.+`) \| (?P<tests>`tests/.+\") \|$")
CODE = re.compile(r"`([^`]+)` `([^`]+)`")
TEST = re.compile(r"`(tests/[^`]+)` \"([^\"]+)\"")
CASE = re.compile(r"\bTEST_CASE(?:_TEMPLATE)?\(\s*((?:\"(?:[^\"\\]|\\.)*\"\s*)+)")


def entries(cell: str, shape: re.Pattern[str]) -> list[tuple[str, str]]:
    found = []
    for line in cell.split("<br>"):
        entry = shape.fullmatch(line)
        assert entry, f"docs/spec-map.md: {line!r} is not written as the others"
        found.append((entry[1], entry[2]))
    return found


def rows() -> list[tuple[str, str]]:
    """Code cell and test cell of every rule; every line of a table but its head is one."""
    cells = []
    for line in MAP.splitlines():
        if not line.startswith("|") or line.startswith(("| Rule |", "|---")):
            continue
        row = ROW.match(line)
        assert row, f"docs/spec-map.md: not a rule with code and tests: {line}"
        cells.append((row["code"], row["tests"]))
    return cells


ROWS = rows()
NAMED_CODE = sorted({entry for code, _ in ROWS for entry in entries(code, CODE)})
NAMED_TESTS = sorted({entry for _, tests in ROWS for entry in entries(tests, TEST)})


@cache
def cases_of(file: Path) -> frozenset[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return frozenset(re.findall(r"^(?:async )?def (test_\w+)\(", text, re.MULTILINE))
    return frozenset("".join(re.findall(r"\"((?:[^\"\\]|\\.)*)\"", case)) for case in CASE.findall(text))


def test_the_map_has_rules() -> None:
    assert len(ROWS) > 50


@pytest.mark.parametrize(("file", "function"), NAMED_CODE)
def test_code_that_is_named_exists(file: str, function: str) -> None:
    path = ROOT / "core_cpp" / file
    assert path.is_file()
    assert re.search(rf"\b{re.escape(function.rpartition('::')[2])}\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "name"), NAMED_TESTS)
def test_tests_that_are_named_exist(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert name in cases_of(ROOT / file)


@pytest.mark.parametrize("file", sorted((ROOT / "tests/spec").rglob("*_test.cc")), ids=lambda path: path.stem)
def test_every_test_of_a_rule_is_on_the_map(file: Path) -> None:
    name = file.relative_to(ROOT).as_posix()
    assert cases_of(file), f"{name} has no test"
    assert not {case for case in cases_of(file) if (name, case) not in NAMED_TESTS}
