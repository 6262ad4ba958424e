# SPDX-License-Identifier: Apache-2.0
"""What happened: a bounded memory of events and their fan-out to followers.

Theory of operation. Two rings are kept: one for the churn of the MAC tables, one for everything else, so that a guest
which floods source addresses cannot wash away the line that says why another guest's port went down. Every event gets a
sequence number; a query merges the rings by it. A follower has a bounded queue of its own. Whoever writes never waits:
when a follower's queue is full its oldest events are dropped and the follower is told how many in a `gap` record.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any

from switch.config.values import format_mac
from switch.datapath import Event

actor: contextvars.ContextVar[str] = contextvars.ContextVar("actor", default="")
"""Who makes the request that is being served, where that is known: "ops from 10.0.0.9:40000"."""

CHURN = frozenset(
    {
        "fdb_learned",
        "fdb_moved",
        "fdb_aged",
        "fdb_evicted",
        "fdb_flushed",
        "fdb_refused_port_limit",
        "fdb_refused_bridge_limit",
        "fdb_refused_owner",
    }
)


@dataclass(frozen=True, slots=True)
class Record:
    """An event and its place in the order of all events; sequence 0 is a gap marker for one follower."""

    sequence: int
    event: Event

    def as_dict(self) -> dict[str, Any]:
        """The stable JSON shape; fields that say nothing are left out."""
        event = self.event
        result: dict[str, Any] = {"sequence": self.sequence, "time": event.time, "kind": event.kind}
        for key in ("bridge", "port", "old_port", "detail"):
            if value := getattr(event, key):
                result[key] = value
        if event.mac or event.kind.startswith("fdb_"):
            result["vlan"] = event.vlan
            result["mac"] = format_mac(event.mac)
        return result


class Refusals:
    """Lets a refusal through once in a while.

    An address that is held or over a limit is refused with every frame it sends: a million events a second that say the
    same would wash the history away. What was left out is in the counters of the MAC table.
    """

    def __init__(self, window: float = 10.0, most: int = 64) -> None:
        self._window = window
        self._most = most  # of one kind at one port within the window: a port that makes up addresses
        self._since = 0.0
        self._seen: set[tuple[str, str, str, int, int]] = set()
        self._counts: dict[tuple[str, str, str], int] = {}

    def thin(self, events: Iterable[Event]) -> list[Event]:
        return [event for event in events if not event.kind.startswith("fdb_refused") or self._news(event)]

    def _news(self, event: Event) -> bool:
        if not -1 < event.time - self._since < self._window:  # over, or the clock was set back
            self._since = event.time
            self._seen.clear()
            self._counts.clear()
        place = (event.kind, event.bridge, event.port)
        key = (*place, event.vlan, event.mac)
        count = self._counts.get(place, 0)
        if key in self._seen or count >= self._most:
            return False
        self._seen.add(key)
        self._counts[place] = count + 1
        return True


class Follower:
    """An asynchronous iterator over records as they come. Close it, or use it in `with`."""

    def __init__(self, log: EventLog, capacity: int) -> None:
        self._log = log
        self._capacity = capacity
        self._waiting: deque[Record] = deque()
        self._ready = asyncio.Event()
        self._lost = 0
        self._closed = False

    def offer(self, record: Record) -> None:
        if len(self._waiting) >= self._capacity:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(record)
        self._ready.set()

    def close(self) -> None:
        self._closed = True
        self._ready.set()
        self._log.forget(self)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Record:
        while not self._waiting and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Record(0, Event(time=0.0, kind="gap", detail=f"{lost} events lost: the reader was too slow"))
        if not self._waiting:
            raise StopAsyncIteration
        return self._waiting.popleft()


class EventLog:
    """The last events, and who wants to hear the next ones. Used from the event loop's thread only."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._churn: deque[Record] = deque(maxlen=capacity)
        self._rest: deque[Record] = deque(maxlen=capacity)
        self._followers: list[Follower] = []
        self._sequence = 0

    def append(self, events: Iterable[Event]) -> None:
        for event in events:
            self._sequence += 1
            record = Record(self._sequence, event)
            (self._churn if event.kind in CHURN else self._rest).append(record)
            for follower in self._followers:
                follower.offer(record)

    def recent(self, limit: int = 1000, since: int = 0, kind: str = "", port: str = "") -> list[Record]:
        """The newest `limit` records after sequence `since`, oldest first. `kind` is a name or a prefix ("fdb")."""

        def wanted(records: Iterable[Record]) -> Iterator[Record]:
            for record in records:
                event = record.event
                if record.sequence <= since:
                    return
                if kind and event.kind != kind and not event.kind.startswith(kind + "_"):
                    continue
                if port and port not in (event.port, event.old_port):
                    continue
                yield record

        newest_first = merge(
            wanted(reversed(self._churn)),
            wanted(reversed(self._rest)),
            key=lambda record: record.sequence,
            reverse=True,
        )
        return list(islice(newest_first, limit))[::-1]

    def follow(self, capacity: int = 1000) -> Follower:
        follower = Follower(self, capacity)
        self._followers.append(follower)
        return follower

    def forget(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)

    def close(self) -> None:
        """End every follower: the daemon stops."""
        for follower in list(self._followers):
            follower.close()
