# SPDX-License-Identifier: Apache-2.0
"""The stand-in libibverbs (tests/support/verbs): built here, preloaded into a daemon, driven by files and datagrams."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path

from tests.interop import needs

SOURCES = needs.ROOT / "tests/support/verbs"


def build() -> Path:
    """The library, compiled anew when a source is newer."""
    if not Path("/usr/include/infiniband/verbs.h").exists():
        needs.lacking("the header of libibverbs is missing", "apt-get install libibverbs-dev")
    compiler = shutil.which("cc") or needs.program("gcc", "gcc")
    library = needs.ROOT / "build/verbs/standin.so"
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(path.stat().st_mtime for path in [*sources, *SOURCES.glob("*.h")])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    fresh = library.with_suffix(f".{os.getpid()}")
    subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(fresh),
         *map(str, sources)],
        check=True,
    )  # fmt: skip
    fresh.rename(library)  # whole or not at all, for tests side by side
    return library


@cache
def why_not(python: str) -> str:
    """Why that Python cannot import pyverbs; empty: it can."""
    done = subprocess.run([python, "-c", "import pyverbs.device"], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def need_pyverbs(python: str) -> None:
    """That Python must have pyverbs."""
    if why := why_not(python):
        needs.lacking(f"pyverbs cannot be imported ({why})", "apt-get install python3-pyverbs, then make test")


class Standin:
    """Devices in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "verbs"
        self.folder.mkdir()
        self.library = build()

    def environment(self) -> list[str]:
        """Put before a command that shall see these devices."""
        return ["env", f"LD_PRELOAD={self.library}", f"VERBS_STANDIN={self.folder}"]

    def set(self, device: str, interface: str, **settings: int) -> None:
        """Make a device, or change it. settings: active, rss, csum, csum6, raw, ethernet, max_qp_wr, tso,
        no_tso_opcode."""
        words = [f"interface={interface}", *(f"{key}={value}" for key, value in settings.items())]
        fresh = self.folder / f"{device}.new"
        fresh.write_text(" ".join(words) + "\n")
        fresh.rename(self.folder / device)

    def remove(self, device: str) -> None:
        (self.folder / device).unlink()

    def event(self, device: str, word: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(word.encode(), str(self.folder / f"{device}.events"))
