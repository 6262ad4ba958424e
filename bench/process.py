# SPDX-License-Identifier: Apache-2.0
"""Processes of the switches under test: started on one CPU, paused while others are measured, ended in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class BenchError(Exception):
    """Why something could not be measured, fit to be shown."""


class Child:
    """A process in a session of its own, on `cpus`; its output goes to `log`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        cpus: set[int],
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        self.log = log
        self.name = Path(command[0]).name
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)  # inherited by the child
        try:
            with log.open("wb") as sink:
                self.process = subprocess.Popen(
                    [str(part) for part in command], stdin=stdin, stdout=sink if stdout is None else stdout,
                    stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **(environment or {})},
                )  # fmt: skip
        except OSError as error:
            raise BenchError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.sched_setaffinity(0, mine)

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        if self.process.poll() is not None:
            said = self.log.read_text(errors="replace").strip()[-1500:]
            raise BenchError(f"{self.name} ended with status {self.process.returncode}:\n{said}")

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            if self.process.poll() is None:
                self.process.send_signal(number)
                self.process.send_signal(signal.SIGCONT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)
        if self.process.stdin:
            self.process.stdin.close()


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    run_ns: int
    wait_ns: int  # ready to run, but somebody else had the CPU


def thread_times(pid: int) -> dict[int, ThreadTimes]:
    """Of every thread that a process has at this moment."""
    times = {}
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            ran, waited, _slices = task.read_text().split()
            times[int(task.parent.name)] = ThreadTimes(int(ran), int(waited))
    return times


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, seconds: float = 20.0) -> str:
    """A short command's output; an error if it fails."""
    text = [str(part) for part in command]
    try:
        done = subprocess.run(
            text, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{' '.join(text)}: {error}") from error
    if done.returncode:
        raise BenchError(f"{' '.join(text)}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def wait_until(what: str, condition: Callable[[], bool], seconds: float, *children: Child) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)
