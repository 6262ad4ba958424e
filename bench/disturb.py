# SPDX-License-Identifier: Apache-2.0
"""Two guests talk at a fixed rate while the switch is asked for its numbers and while ports come and go beside them.

The daemon's control threads are where its own rules put them: off the worker's CPU. Here that is the CPU of the load,
so the load's pauses are part of these latencies. What it owes afterwards it sends within a window that the rings can
hold, so a frame that is lost was lost by the switch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.cases import Case
from bench.generator import Generator, interval
from bench.latency import percentiles
from bench.measure import FIRST_WARM_UP, on_switches
from bench.process import run
from bench.switches import Ours

MPPS = 2.0
WINDOW = 64  # frames of a guest under way: a quarter of a ring
DRAIN = 0.05


@dataclass
class Disturbed:
    times: dict[str, float]  # percentiles, microseconds
    sent: int
    lost: int
    done: int  # how often the switch was disturbed
    each_ms: float

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: round(value, 2) for name, value in self.times.items()},
            "sent": self.sent, "lost": self.lost, "done": self.done, "each_ms": round(self.each_ms, 2),
        }  # fmt: skip


def measure_disturbed(case: Case, switch: Ours, seconds: float) -> dict[str, Disturbed]:
    numbers = itertools.count()

    def swctl(*words: str) -> None:
        run([switch.python, "-P", "-m", "switch.cli", "--control", str(switch.folder / "control.sock"), *words])

    def add_and_delete() -> None:
        name = f"extra{next(numbers)}"
        socket = str(switch.folder / f"{name}.sock")
        switch.request("POST", "/v1/ports", {"name": name, "type": "vhostuser", "socket": socket})
        switch.request("DELETE", f"/v1/ports/{name}")

    disturbances: dict[str, Callable[[], object]] = {
        "nothing": lambda: time.sleep(0.1),
        "scrape": lambda: switch.request("GET", "/metrics"),
        "swctl stats": lambda: swctl("stats"),
        "add-port and del-port": add_and_delete,
    }
    results = {}
    with on_switches(case, [switch], latency=True) as generators:
        generator = generators[switch.label]
        switch.resume()
        generator.set_rate(round(MPPS * 1e6 / case.ports))
        generator.set_window(WINDOW)
        for name, disturb in disturbances.items():
            results[name] = _one(generator, disturb, seconds)
    return results


def _one(generator: Generator, disturb: Callable[[], object], seconds: float) -> Disturbed:
    generator.run()
    time.sleep(FIRST_WARM_UP)
    generator.drain(DRAIN)
    before = generator.snapshot()
    generator.run()
    began = time.monotonic()
    done = 0
    while time.monotonic() < began + seconds:
        disturb()
        done += 1
        time.sleep(0.02)
    each = (time.monotonic() - began) / done - 0.02
    generator.drain(DRAIN)
    load = interval(before, generator.snapshot())
    return Disturbed(percentiles(load), load.sent, load.sent - load.received, done, each * 1e3)
