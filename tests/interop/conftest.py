# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with peers we did not write. Logs of a failed test are kept where pytest keeps its tmp_path."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import guest_image, needs
from tests.interop.guest_image import Image


@pytest.fixture(scope="session")
def image() -> Image:
    """The QEMU guest's kernel and initramfs."""
    return guest_image.build(needs.ROOT / "build/guest")


def short_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets (108 bytes); its logs are kept when a test failed."""
    failures = request.session.testsfailed
    path = Path(tempfile.mkdtemp(prefix="sw-"))
    yield path
    if request.session.testsfailed > failures:
        kept = needs.ROOT / "build/interop-logs" / re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name)
        kept.mkdir(parents=True, exist_ok=True)
        for file in path.iterdir():
            if file.is_file():
                shutil.copy(file, kept)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    yield from short_folder(request)


@pytest.fixture(scope="module")
def module_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """As `folder`, for what a module's tests share."""
    yield from short_folder(request)


@pytest.fixture(scope="session")
def cpus() -> tuple[int, int]:
    """CPU of the switch, CPU of the guests."""
    return needs.two_cpus()
