# SPDX-License-Identifier: Apache-2.0
"""The memory of events and its followers."""

from __future__ import annotations

import asyncio

import pytest

from switch.datapath import Event
from switch.events import EventLog, Refusals


def learned(number: int) -> Event:
    return Event(float(number), "fdb_learned", "br0", "vm1", vlan=10, mac=number)


def test_a_flood_of_learning_does_not_wash_away_port_events() -> None:
    log = EventLog(capacity=10)
    log.append([Event(1.0, "port_ring_broken", port="vm1", detail="avail index jumped")])
    log.append(learned(number) for number in range(1000))
    kept = log.recent()
    assert len(kept) == 11
    assert kept[0].event.kind == "port_ring_broken"
    assert [record.sequence for record in kept] == sorted(record.sequence for record in kept)


def refused(when: float, mac: int = 1, port: str = "vm1", kind: str = "owner") -> Event:
    return Event(when, f"fdb_refused_{kind}", "br0", port, vlan=10, mac=mac)


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        ([refused(100.0), refused(100.1), refused(109.9)], [0]),
        ([refused(100.0), refused(110.1)], [0, 1]),
        ([refused(100.0), refused(50.0), refused(50.1)], [0, 1]),  # the clock was set back
        ([refused(100.0), refused(99.9), refused(100.0)], [0]),  # two bridges are read one after the other
        ([refused(100.0), refused(100.0, port="vm2"), refused(100.0, kind="port_limit")], [0, 1, 2]),
        ([refused(100.0, mac) for mac in range(70)] + [refused(100.0, port="vm2")], [*range(64), 70]),
        ([learned(1), learned(1), Event(1.0, "fdb_moved", "br0"), Event(1.0, "fdb_moved", "br0")], [0, 1, 2, 3]),
    ],
    ids=["again", "later", "clock set back", "out of order", "others", "made-up addresses", "no refusals"],
)
def test_refusals_are_thinned(events: list[Event], kept: list[int]) -> None:
    assert Refusals().thin(events) == [events[number] for number in kept]


def test_recent_filters_by_kind_port_and_sequence() -> None:
    log = EventLog()
    log.append([learned(1), Event(2.0, "port_connected", port="vm2"), learned(3)])
    assert [record.sequence for record in log.recent(kind="fdb")] == [1, 3]
    assert [record.sequence for record in log.recent(kind="port_connected")] == [2]
    assert [record.sequence for record in log.recent(port="vm2")] == [2]
    assert [record.sequence for record in log.recent(since=2)] == [3]
    assert [record.sequence for record in log.recent(limit=1)] == [3]


def test_a_record_has_a_stable_shape() -> None:
    log = EventLog()
    log.append([Event(2.0, "fdb_moved", "br0", "vm2", "vm1", 10, 0x525400000001), Event(3.0, "port_up", port="vm1")])
    assert [record.as_dict() for record in log.recent()] == [
        {
            "sequence": 1,
            "time": 2.0,
            "kind": "fdb_moved",
            "bridge": "br0",
            "port": "vm2",
            "old_port": "vm1",
            "vlan": 10,
            "mac": "52:54:00:00:00:01",
        },
        {"sequence": 2, "time": 3.0, "kind": "port_up", "port": "vm1"},
    ]


def test_a_slow_follower_loses_the_oldest_and_is_told_how_many() -> None:
    async def scenario() -> list[tuple[str, str]]:
        log = EventLog()
        with log.follow(capacity=3) as follower:
            log.append(learned(number) for number in range(10))
            return [(record.event.kind, record.event.detail) for record in [await anext(follower) for _ in range(4)]]

    gap, *rest = asyncio.run(scenario())
    assert gap == ("gap", "7 events lost: the reader was too slow")
    assert len(rest) == 3


def test_followers_wake_and_end_with_the_log() -> None:
    async def scenario() -> list[int]:
        log = EventLog()
        seen: list[int] = []

        async def read() -> None:
            async for record in log.follow():
                seen.append(record.sequence)

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        log.append([learned(1)])
        log.append([learned(2)])
        log.close()
        await asyncio.wait_for(reader, 5)
        return seen

    assert asyncio.run(scenario()) == [1, 2]
