# SPDX-License-Identifier: Apache-2.0
"""What a switch without traffic costs, and what the first frame after a pause waits. Only for ours: the peers poll."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from bench.cases import Case
from bench.generator import Generator, interval
from bench.latency import percentiles
from bench.measure import FIRST_WARM_UP, on_switches
from bench.numbers import median
from bench.process import thread_times
from bench.switches import Ours
from bench.wake import wake_us

FRAMES_A_SECOND = 20  # a worker sleeps for good after a millisecond without frames
SETTLE_SECONDS = 1.0
MOST_ROUNDS = 3


@dataclass
class Idle:
    cpu_share: list[float]  # of one CPU, the whole process
    first_frame: list[dict[str, float]]  # percentiles, microseconds
    frames: int
    wake_us: list[float]  # see bench.wake

    def as_dict(self) -> dict[str, Any]:
        return {
            "cpu_share": round(median(self.cpu_share), 5),
            "first_frame_us": {
                name: round(median([one[name] for one in self.first_frame]), 1) for name in ("p50", "p99")
            },
            "first_frames": self.frames,
            "wake_us": round(median(self.wake_us), 1),
        }


def measure_idle(case: Case, switch: Ours, rounds: int, seconds: float) -> Idle:
    result = Idle([], [], 0, [])
    with on_switches(case, [switch], latency=True, one_way=True) as generators:
        generator = generators[switch.label]
        switch.resume()
        generator.run()
        time.sleep(FIRST_WARM_UP)
        generator.drain(0.01)
        for _ in range(min(rounds, MOST_ROUNDS)):
            generator.rest()
            time.sleep(SETTLE_SECONDS)
            result.cpu_share.append(_cpu_share(switch, max(2.0, seconds)))
            result.first_frame.append(_first_frames(generator, max(2.0, seconds), result))
            generator.rest()
            result.wake_us.append(wake_us(FRAMES_A_SECOND * 2))
    return result


def _cpu_share(switch: Ours, seconds: float) -> float:
    child = switch.children[0]
    began, before = time.monotonic(), _run_seconds(child.pid)
    time.sleep(seconds)
    return (_run_seconds(child.pid) - before) / (time.monotonic() - began)


def _run_seconds(pid: int) -> float:
    return sum(times.run_ns for times in thread_times(pid).values()) / 1e9


def _first_frames(generator: Generator, seconds: float, result: Idle) -> dict[str, float]:
    generator.set_rate(FRAMES_A_SECOND)
    generator.run()
    time.sleep(0.2)
    before = generator.snapshot()
    time.sleep(seconds)
    load = interval(before, generator.snapshot())
    result.frames += load.received
    return percentiles(load)
