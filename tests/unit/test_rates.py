# SPDX-License-Identifier: Apache-2.0
"""Rates from two snapshots: what is lost now, and which queue is busy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from switch.datapath import PortStats, QueueStats, Stats
from switch.rates import Rates
from tests.support.memory_datapath import idle_port


def port(name: str = "vm1", *, full: int = 0, hairpin: int = 0, frames: tuple[int, ...] = (0,)) -> PortStats:
    idle = idle_port(name)
    return replace(
        idle,
        tx_drops={**idle.tx_drops, "ring_full": full},
        rx_drops={**idle.rx_drops, "hairpin": hairpin},
        rx=tuple(QueueStats(number, 0, count, 0, 0) for number, count in enumerate(frames)),
    )


def at(time: float, *ports: PortStats) -> Stats:
    return Stats(time, ports, (), (), 1)


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        (at(10, port(full=5)), at(12, port(full=25)), {("vm1", "tx", "ring_full"): 10.0}),
        (at(10, port(full=5, hairpin=1)), at(12, port(full=5, hairpin=2)), {("vm1", "rx", "hairpin"): 0.5}),
        (at(10, port(full=5)), at(12, port(full=5)), {}),  # lost long ago
        (at(10, port(full=5)), at(12, port(full=1)), {}),  # the port was replaced
        (at(10), at(12, port(full=5)), {}),  # the port is new
        (at(11.5, port(full=5)), at(12, port(full=9)), {}),  # too short to divide by
    ],
    ids=["now", "one of two", "long ago", "replaced", "new", "too short"],
)
def test_what_is_lost_now(before: Stats, now: Stats, lost: dict[tuple[str, str, str], float]) -> None:
    rates = Rates()
    rates.add(before)
    assert rates.drops(now) == lost


def test_which_queue_is_busy() -> None:
    rates = Rates()
    assert rates.queues(at(1, port())) == {}
    rates.add(at(10, port(frames=(100, 0))))
    now = rates.queues(at(12, port(frames=(300, 0, 7)), port("vm2", frames=(9,))))
    assert now == {("vm1", "rx", 0): 100.0, ("vm1", "rx", 1): 0.0, ("vm1", "tx", 0): 0.0}
