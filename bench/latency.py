# SPDX-License-Identifier: Apache-2.0
"""Latency, from before a frame is written into the sender's ring until the receiver finds it in its own.

Sender and receiver are on one thread and read one clock. Percentiles are of single rounds; the median round counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.cases import Case
from bench.generator import Generator, Interval, core
from bench.measure import FIRST_WARM_UP, TRIES, WARM_UP, measure_window, on_switches
from bench.numbers import median, percentile
from bench.switches import Switch

FIXED_MPPS = (1.0, 8.0)
OWN_SHARES = (0.1, 0.5, 0.9)
ONE_FRAME = "one frame"
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


@dataclass
class Point:
    """Of one switch at one load; one entry a round. Times in microseconds."""

    mpps: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PERCENTILES})
    still_noisy: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "mpps": round(median(self.mpps), 3),
            "loss": round(median(self.loss), 6),
            **{name: round(median(values), 2) for name, values in self.times.items()},
            "still_noisy_rounds": self.still_noisy,
        }


def percentiles(load: Interval) -> dict[str, float]:
    ticks_per_us = core().tsc_hz() / 1e6
    bounds = core().latency_bounds()
    return {name: percentile(load.latency, bounds, share) / ticks_per_us for name, share in PERCENTILES.items()}


def _add(point: Point, load: Interval) -> None:
    point.mpps.append(load.received / load.seconds / 1e6)
    point.loss.append(max(0.0, 1 - load.received / load.sent) if load.sent else 0.0)
    for name, value in percentiles(load).items():
        point.times[name].append(value)


def _loads(own_mpps: float) -> dict[str, tuple[float, int]]:
    """Name -> frames a second altogether, frames under way per guest; 0: no limit."""
    loads = {ONE_FRAME: (0.0, 1)}
    loads |= {f"{mpps:g} Mpps": (mpps * 1e6, 0) for mpps in FIXED_MPPS}
    loads |= {f"{share:.0%} of own": (share * own_mpps * 1e6, 0) for share in OWN_SHARES}
    return loads


def measure_latency(case: Case, switches: Sequence[Switch], rounds: int, seconds: float) -> dict[str, dict[str, Point]]:
    """Switch -> load -> Point."""
    results: dict[str, dict[str, Point]] = {switch.label: {} for switch in switches}
    with on_switches(case, switches, latency=True) as generators:
        own: dict[str, float] = {}
        for switch in switches:
            generator = generators[switch.label]
            _turn(switch, generator, 0.0, 0)
            time.sleep(FIRST_WARM_UP)
            own[switch.label] = _quiet_rate(switch, generator, seconds)
            _rest(switch, generator)
        for name in _loads(1.0):
            for number in range(rounds):
                for switch in switches if number % 2 == 0 else reversed(switches):
                    generator = generators[switch.label]
                    rate, window = _loads(own[switch.label])[name]
                    point = results[switch.label].setdefault(name, Point())
                    _turn(switch, generator, rate / case.ports, window)
                    time.sleep(WARM_UP)
                    for _ in range(TRIES):
                        measured = measure_window(switch, generator, seconds)
                        if not measured.noise.too_much:
                            break
                    else:
                        point.still_noisy += 1
                    _rest(switch, generator)
                    _add(point, measured.load)
    return results


def _quiet_rate(switch: Switch, generator: Generator, seconds: float) -> float:
    for _ in range(TRIES):
        window = measure_window(switch, generator, seconds)
        if not window.noise.too_much:
            break
    return window.load.received / window.load.seconds / 1e6


def _turn(switch: Switch, generator: Generator, rate: float, window: int) -> None:
    switch.resume()
    generator.set_rate(round(rate))
    generator.set_window(window)
    generator.run()


def _rest(switch: Switch, generator: Generator) -> None:
    generator.rest()
    switch.pause()
