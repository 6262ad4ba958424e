# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine makes an example slow; that says nothing about the code.
settings.register_profile("switch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("switch")

LOGS = Path(__file__).resolve().parents[1] / "build/test-logs"


def short_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets (108 bytes); its logs are kept when a test failed."""
    failures = request.session.testsfailed
    path = Path(tempfile.mkdtemp(prefix="sw-"))
    yield path
    if request.session.testsfailed > failures:
        kept = LOGS / re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name)
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
