# SPDX-License-Identifier: Apache-2.0
"""How long this machine takes to run a process that sleeps on an eventfd: most of what a first frame after idle waits.

Run as a program it is the sleeper: it prints, in microseconds, how long the times written to the eventfd took to come.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

from bench.numbers import median
from bench.switches import LOAD_CPU, SWITCH_CPU

PAUSE = 0.05  # seconds, as between the first frames of bench.idle
STOP = 1  # instead of a time


def wake_us(count: int) -> float:
    """Median of `count` wakings of a process on the switch's CPU by the generator's."""
    event = os.eventfd(0, os.EFD_CLOEXEC)
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SWITCH_CPU})
    sleeper = subprocess.Popen(
        [sys.executable, "-m", "bench.wake", str(event)], pass_fds=[event], stdout=subprocess.PIPE, text=True
    )
    try:
        os.sched_setaffinity(0, {LOAD_CPU})
        time.sleep(1.0)  # it imports
        for _ in range(count):
            soon = time.monotonic() + PAUSE
            while time.monotonic() < soon:
                pass  # as the generator does: its own CPU must not have to wake
            os.eventfd_write(event, time.monotonic_ns())
        time.sleep(PAUSE)
        os.eventfd_write(event, STOP)
        said, _ = sleeper.communicate(timeout=10)
    finally:
        os.sched_setaffinity(0, mine)
        sleeper.kill()
        sleeper.wait()
        os.close(event)
    return median([float(line) for line in said.split()])


def sleep_and_tell(event: int) -> None:
    poll = select.epoll()
    poll.register(event, select.EPOLLIN)
    waits = []
    while True:
        poll.poll()
        now = time.monotonic_ns()
        sent = os.eventfd_read(event)
        if sent == STOP:
            break
        waits.append((now - sent) / 1000)
    print("\n".join(map(str, waits)))


if __name__ == "__main__":
    sleep_and_tell(int(sys.argv[1]))
