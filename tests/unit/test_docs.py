# SPDX-License-Identifier: Apache-2.0
"""The documentation points at what exists: pages, sections and files that it links, verbs and options that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from switch.cli.entry import cli as swctl

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "grafana/README.md"]

# A command line of a code block or between backquotes, up to what is no part of it any more.
SHOWN = re.compile(r"\bswctl (?P<words>(?:[a-z][\w-]*|--[a-z][\w-]*)[^`#|&\n]*)")


def anchors(page: Path) -> set[str]:
    """Sections of a page, as links name them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, section = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (section and section not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert not [
        page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index + "(README.md)"
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_are_shown_exist(page: Path) -> None:
    context = click.Context(swctl)
    wrong = []
    for shown in SHOWN.finditer(page.read_text(encoding="utf-8")):
        words = shown["words"].split()
        command: click.Command = swctl
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            inner = command.get_command(context, words[0])
            if inner is None:
                break
            command = inner
            del words[0]
        if command is swctl and words and not words[0].startswith("-"):
            if page_shows_code(page, shown.start()):
                wrong.append(f"swctl {words[0]}")
            continue
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            option = word.partition("=")[0].strip(".,:;)")
            if option.startswith("--") and option not in known | {"--help"}:
                wrong.append(f"swctl {command.name} {option}")
    assert not wrong


def page_shows_code(page: Path, position: int) -> bool:
    """Whether the text there is code: an indented line, or between backquotes."""
    text = page.read_text(encoding="utf-8")
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line.startswith("    ") or line.count("`") % 2 == 1
