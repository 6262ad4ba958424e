# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the machine. Missing: a skip that names the package, or a failure where CI=true."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNPACKED = ROOT / "build/unpacked"  # tools/setup.sh unpacks some packages here instead of installing them
SEARCH = ":".join([os.environ.get("PATH", ""), f"{UNPACKED}/usr/bin", f"{UNPACKED}/bin", "/usr/sbin", "/sbin"])


def lacking(what: str, remedy: str) -> NoReturn:
    message = f"{what}: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def program(name: str, package: str) -> str:
    """The path of a program of the distribution."""
    found = shutil.which(name, path=SEARCH)
    if not found:
        lacking(f"{name} is missing", f"apt-get install {package}")
    return found


def root(why: str) -> None:
    if os.geteuid() != 0:
        lacking("not root", f"{why}; run the tests as root")


def two_cpus() -> tuple[int, int]:
    """CPUs for the switch and for its load; the same one twice on a machine with one.

    Tests that run beside these (pytest -n 2) take them the other way round: their switches are then on the other CPU.
    """
    cpus = sorted(os.sched_getaffinity(0), reverse=os.environ.get("PYTEST_XDIST_WORKER") == "gw1")
    return cpus[0], cpus[-1]
