# SPDX-License-Identifier: Apache-2.0
"""What the switch is meant to reach, each as one number of a result file and a bound.

A path leads to a number: case, switch, keys. A Target takes one, such as the median ratio of a case's rounds, or
divides two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]  # the "cases" of a result file


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    bound: float
    at_least: bool  # else at most
    top: tuple[str, ...]
    bottom: tuple[str, ...] = ()  # empty: `top` alone
    unit: str = "x"

    def value(self, results: Results) -> float | None:
        """None: not measured."""
        top = _number(results, self.top)
        if top is None or not self.bottom:
            return top
        bottom = _number(results, self.bottom)
        return top / bottom if bottom else None

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _number(results: Results, path: tuple[str, ...]) -> float | None:
    found: Any = results
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return float(found) if isinstance(found, int | float) else None


def _rate(what: str, case: str, peer: str, bound: float) -> Target:
    return Target(f"{what}: rate, of {peer}'s", bound, True, (case, peer, "ratio"))


def _rates() -> Iterator[Target]:
    for case, what, ovs, testpmd in (
        ("64-split", "64 B, split", 2.5, 1.7), ("64-packed", "64 B, packed", 2.1, 1.3),
        ("512-split", "512 B, split", 2.6, 2.0), ("512-packed", "512 B, packed", 2.0, 1.5),
        ("1518-split", "1518 B, split", 3.0, 2.5), ("1518-packed", "1518 B, packed", 2.5, 2.0),
    ):  # fmt: skip
        yield _rate(what, case, "ovs", ovs)
        yield _rate(what, case, "testpmd", testpmd)
    for ring in ("split", "packed"):
        yield _rate(f"64 B, {ring}, 1 k address pairs", f"64-{ring}-1kpairs", "ovs", 3.3)
        yield _rate(f"64 B, {ring}, 4 k address pairs", f"64-{ring}-4kpairs", "ovs", 4.5)
    yield _rate("64 B, split, guests that never touch frames", "64-split-never", "ovs", 5.0)
    yield _rate("64 B, packed, guests that never touch frames", "64-packed-never", "ovs", 3.0)


def _latencies() -> Iterator[Target]:
    for ring in ("split", "packed"):
        case = f"64-{ring}-latency"
        for peer, p50, p99 in (("ovs", 0.4, 0.25), ("testpmd", 0.6, 0.5)):
            for name, bound in (("p50", p50), ("p99", p99)):
                what = f"64 B, {ring}, 8 Mpps: latency {name}, of {peer}'s"
                yield Target(what, bound, False, (case, "ours", "8 Mpps", name), (case, peer, "8 Mpps", name))
        one = f"64 B, {ring}, one frame under way: latency p50, of testpmd's"
        yield Target(one, 1.0, False, (case, "ours", "one frame", "p50"), (case, "testpmd", "one frame", "p50"))


def _costs() -> Iterator[Target]:
    base = ("64-split", "ours", "cycles")
    yield Target("64 B, split: own cost of a frame", 60, False, base, unit="cycles")
    for many, case, bound in (("64 k", "64-split-32kpairs", 1.3), ("1 M", "64-split-512kpairs", 2.0)):
        what = f"{many} addresses: cost of a frame, of that with 2"
        yield Target(what, bound, False, (case, "plain", "cycles_ratio"))
    for ring in ("split", "packed"):
        what = f"32 idle ports, {ring}: rate, of that without"
        yield Target(what, 0.95, True, (f"64-{ring}-32idle", "plain", "ratio"))
    idle = ("64-split-idle", "ours")
    yield Target("idle: CPU", 0.01, False, (*idle, "cpu_share"), unit="of a CPU")
    yield Target("idle: first frame, p50", 100, False, (*idle, "first_frame_us", "p50"), unit="us")
    for what in ("scrape", "swctl stats", "add-port and del-port"):
        yield Target(
            f"{what} under traffic: frames lost", 0, False, ("64-split-disturb", "ours", what, "lost"), unit=""
        )


TARGETS: tuple[Target, ...] = (*_rates(), *_latencies(), *_costs())
