# SPDX-License-Identifier: Apache-2.0
"""Rates from snapshots: frames and bits per second of ports, load of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from switch.datapath import PortStats, Stats, WorkerStats


@dataclass(frozen=True, slots=True)
class PortRate:
    """Per second, over the last few seconds."""

    rx_frames: float = 0.0
    rx_bits: float = 0.0
    tx_frames: float = 0.0
    tx_bits: float = 0.0
    rx_drops: float = 0.0
    tx_drops: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """A port's counters added up over queues and reasons."""

    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int
    rx_drops: int
    tx_drops: int


def totals(port: PortStats) -> Totals:
    return Totals(
        sum(queue.frames for queue in port.rx),
        sum(queue.bytes for queue in port.rx),
        sum(queue.frames for queue in port.tx),
        sum(queue.bytes for queue in port.tx),
        sum(port.rx_drops.values()),
        sum(port.tx_drops.values()),
    )


def port_rate(old: PortStats, new: PortStats, seconds: float) -> PortRate:
    """Counters that fell belong to a port that was replaced: their rate is 0 until the next sample."""
    before, after = totals(old), totals(new)

    def per_second(name: str, factor: int = 1) -> float:
        grown: int = getattr(after, name) - getattr(before, name)
        return max(0, grown) * factor / seconds

    return PortRate(
        per_second("rx_frames"),
        per_second("rx_bytes", 8),
        per_second("tx_frames"),
        per_second("tx_bytes", 8),
        per_second("rx_drops"),
        per_second("tx_drops"),
    )


def worker_load(old: WorkerStats | None, new: WorkerStats) -> float:
    """The share of time in passes that moved frames, 0 to 1; since the start without an older snapshot."""
    busy, idle = new.busy_seconds, new.idle_seconds
    if old is not None:
        busy, idle = busy - old.busy_seconds, idle - old.idle_seconds
    return min(1.0, max(0.0, busy / (busy + idle))) if busy + idle > 0 else 0.0


def _queue_frames(stats: Stats) -> Iterator[tuple[tuple[str, str, int], int]]:
    for port in stats.ports:
        for direction, queues in (("rx", port.rx), ("tx", port.tx)):
            for queue in queues:
                yield (port.name, direction, queue.queue), queue.frames


class Rates:
    """Keeps a few snapshots and compares the present with one that is at least `least` seconds old."""

    def __init__(self, keep: int = 4, least: float = 0.9) -> None:
        self._samples: deque[Stats] = deque(maxlen=keep)
        self._least = least

    def add(self, stats: Stats) -> None:
        self._samples.append(stats)

    def since(self, now: Stats) -> Stats | None:
        """The youngest snapshot that is old enough to divide by."""
        return next((sample for sample in reversed(self._samples) if now.time - sample.time >= self._least), None)

    def ports(self, now: Stats) -> dict[str, PortRate]:
        old = self.since(now)
        if old is None:
            return {}
        before = {port.name: port for port in old.ports}
        return {
            port.name: port_rate(before[port.name], port, now.time - old.time)
            for port in now.ports
            if port.name in before
        }

    def drops(self, now: Stats) -> dict[tuple[str, str, str], float]:
        """Frames lost per second by port, direction and reason; what is not lost now is left out."""
        old = self.since(now)
        before = {port.name: port for port in old.ports} if old else {}
        return {
            (port.name, direction, reason): (count - earlier.get(reason, 0)) / (now.time - old.time)
            for port in now.ports
            if old and port.name in before
            for direction, drops, earlier in (
                ("rx", port.rx_drops, before[port.name].rx_drops),
                ("tx", port.tx_drops, before[port.name].tx_drops),
            )
            for reason, count in drops.items()
            if count > earlier.get(reason, 0)
        }

    def queues(self, now: Stats) -> dict[tuple[str, str, int], float]:
        """Frames per second by port, direction and queue."""
        old = self.since(now)
        if old is None:
            return {}
        before = dict(_queue_frames(old))
        return {
            key: max(0, count - before[key]) / (now.time - old.time)
            for key, count in _queue_frames(now)
            if key in before
        }

    def loads(self, now: Stats) -> dict[int, float]:
        old = self.since(now)
        before = {worker.worker: worker for worker in old.workers} if old else {}
        return {worker.worker: worker_load(before.get(worker.worker), worker) for worker in now.workers}
