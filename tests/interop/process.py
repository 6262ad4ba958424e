# SPDX-License-Identifier: Apache-2.0
"""A peer's process: a log of its own, deadlines instead of sleeps, and no survivor."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_until(what: str, probe: Callable[[], T], seconds: float = 20.0, every: float = 0.05) -> T:
    """The first true value of probe(); AssertionError naming `what` when none came in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what} (last answer: {value!r})")
        time.sleep(every)


class Process:
    """Starts `command` in a session of its own, output to `log`; `stop` ends it and all its children."""

    def __init__(self, command: Sequence[str | Path], log: Path, stdin: int | None = None, stdout: int | None = None,
                 environment: dict[str, str] | None = None) -> None:  # fmt: skip
        self.command = [str(part) for part in command]
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=sink if stdout is None else stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        if self.status is not None:
            raise AssertionError(f"{self.command[0]} ended with {self.status}:\n{self.text()[-3000:]}")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        if self.status is None:
            os.killpg(self.pid, number)

    def wait(self, seconds: float = 20.0) -> int:
        return self._process.wait(seconds)

    def kill(self) -> None:
        """As a crash would: nothing is told to anybody."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, seconds: float = 5.0) -> None:
        self.signal(signal.SIGTERM)
        try:
            self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
