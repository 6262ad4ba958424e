# SPDX-License-Identifier: Apache-2.0
"""Notices a worker that goes round its queues no more.

Theory of operation. A worker counts its rounds, at least one a second also while it sleeps. A thread of ours looks at
the counters once a second, without the datapath's lock: a change that waits for the very worker would hold that lock,
and the event loop with it. Looks are counted, not time: a machine that was suspended, or a daemon that was stopped as a
whole, looks only once when it goes on, and by then its workers do, too.

What a stuck worker means: frames of its queues stay where they are, and no port can be changed any more, since every
change waits until all workers have seen it. Nothing but a restart helps, so the service manager is not told any more
that all is well (switch.daemon).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger("switch.watch")

INTERVAL = 1.0  # seconds between two looks
PATIENCE = 5  # looks without a round: the kernel's scheduler may keep a thread waiting for one or two


class WorkerWatch:
    """`read` gives the rounds of each worker, `tell` is told of each that is stuck or goes on, from the thread."""

    def __init__(self, read: Callable[[], Sequence[int]], tell: Callable[[str, str], object]) -> None:
        self._read = read
        self._tell = tell
        self._last: list[int] = []
        self._vain: list[int] = []  # looks since the last round
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sw-watch", daemon=True)
        self.stuck: Mapping[int, int] = {}
        """Worker -> seconds without a round, of those that are stuck. Replaced as a whole: read it from any thread."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Once in `INTERVAL`."""
        rounds = list(self._read())
        if len(rounds) != len(self._last):
            self._last, self._vain = rounds, [0] * len(rounds)
            return
        self._vain = [
            0 if now != before else vain + 1 for now, before, vain in zip(rounds, self._last, self._vain, strict=True)
        ]
        self._last = rounds
        before = self.stuck
        self.stuck = {worker: round(vain * INTERVAL) for worker, vain in enumerate(self._vain) if vain >= PATIENCE}
        for worker in self.stuck.keys() - before.keys():
            detail = stuck_text(worker, self.stuck[worker])
            log.error("%s", detail)
            self._tell("worker_stuck", detail)
        for worker in before.keys() - self.stuck.keys():
            detail = f"worker {worker} polls again, after {before[worker]} s or more"
            log.warning("%s", detail)
            self._tell("worker_recovered", detail)

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            try:
                self.look()
            except Exception:
                log.exception("looking after the workers failed")


def stuck_text(worker: int, seconds: int) -> str:
    return (
        f"worker {worker} has made no round for {seconds} s: frames of its queues wait, and ports cannot be changed; "
        "is its thread stopped, or its CPU taken by a real-time process? Otherwise restart switchd and report it"
    )
