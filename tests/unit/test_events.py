# SPDX-License-Identifier: Apache-2.0
"""The memory of events and its followers."""

from __future__ import annotations

import asyncio

from switch.datapath import Event
from switch.events import EventLog


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
