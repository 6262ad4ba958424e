# SPDX-License-Identifier: Apache-2.0
"""The load: software guests of the core's TrafficRunner (core_cpp/vhost_user/traffic.h), all polled by one thread."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import Any

from bench.cases import Case
from bench.numbers import difference
from bench.process import BenchError
from bench.switches import LOAD_CPU, Switch

DRAIN_SECONDS = 0.005


def core() -> Any:
    return importlib.import_module("switch._core")


@dataclass(frozen=True, slots=True)
class Snapshot:
    when: float  # monotonic seconds
    sent: int
    received: int
    received_bytes: int
    foreign: int
    reordered: int
    busy: int
    idle: int
    pauses: int
    paused: int
    latency: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two snapshots."""

    seconds: float
    sent: int
    received: int
    received_bytes: int
    foreign: int
    reordered: int
    busy_share: float  # of the generator's time, in rounds that moved frames
    pauses: int
    paused_share: float
    latency: list[int]


def interval(before: Snapshot, after: Snapshot) -> Interval:
    busy, idle = after.busy - before.busy, after.idle - before.idle
    return Interval(
        seconds=after.when - before.when,
        sent=after.sent - before.sent,
        received=after.received - before.received,
        received_bytes=after.received_bytes - before.received_bytes,
        foreign=after.foreign - before.foreign,
        reordered=after.reordered - before.reordered,
        busy_share=busy / (busy + idle) if busy + idle else 0.0,
        pauses=after.pauses - before.pauses,
        paused_share=(after.paused - before.paused) / (busy + idle) if busy + idle else 0.0,
        latency=difference(after.latency, before.latency),
    )


class Generator:
    """The guests of one case on one switch. Inactive until told otherwise."""

    def __init__(self, case: Case, switch: Switch, latency: bool = False, one_way: bool = False) -> None:
        self._switch = switch
        guests = [self._guest(case, switch, number, latency) for number in range(case.all_ports)]
        if one_way:
            for guest in guests[1::2]:
                guest["send"] = False
        self._runner = core().TrafficRunner(guests, LOAD_CPU, True)
        self._runner.set_sending(False)
        self._runner.set_window(case.window)

    @staticmethod
    def _guest(case: Case, switch: Switch, number: int, latency: bool) -> dict[str, Any]:
        # Byte 2 of the address tells guests apart: the addresses of a guest differ in the three bytes before the last.
        def address(of: int) -> int:
            return 0x0200_0000_0000 | of << 32

        return {
            "socket": str(switch.path(number)),
            "listen": switch.guest_listens,
            "packed": case.packed,
            "in_order": case.in_order,
            "mergeable": case.mergeable,
            "ring_size": case.ring,
            "mac": address(number),
            "peer": address(number ^ 1),
            "pairs": case.pairs,
            "frame_bytes": case.size,
            "gso_bytes": case.gso,
            "burst": case.burst,
            "send": number < case.ports,
            "idle": number >= case.ports,
            "latency": latency,
            "touch": case.touch,
        }

    def connect(self, seconds: float = 20.0) -> None:
        """Both sides must run: the switch is not paused."""
        self._runner.start()
        deadline = time.monotonic() + seconds
        while not self._runner.wait_ready(0.2):
            self._switch.check()
            if time.monotonic() > deadline:
                waiting = [stats["detail"] for stats in self._runner.stats() if not stats["ready"]]
                raise BenchError(f"{self._switch.label}: {len(waiting)} guests are not connected: {waiting[0]}")
        self._runner.set_active(False)

    def run(self) -> None:
        self._runner.set_sending(True)
        self._runner.set_active(True)

    def rest(self) -> None:
        """Stop sending, take what is under way, let go of the CPU."""
        self._runner.set_sending(False)
        time.sleep(DRAIN_SECONDS)
        self._runner.set_active(False)

    def drain(self, seconds: float) -> None:
        self._runner.set_sending(False)
        time.sleep(seconds)

    def set_rate(self, frames_a_second: int) -> None:
        """Of every guest; 0: as fast as it can."""
        self._runner.set_rate(frames_a_second)

    def set_window(self, frames: int) -> None:
        self._runner.set_window(frames)

    def snapshot(self) -> Snapshot:
        load = self._runner.load()
        latency = tuple(self._runner.latency())
        when = time.monotonic()
        guests = self._runner.stats()
        for guest in guests:
            if not guest["ready"] or guest["times_ready"] != 1 or guest["detail"]:
                raise BenchError(f"{self._switch.label}: a guest lost its connection: {guest['detail']}")
        return Snapshot(
            when=when,
            sent=sum(guest["tx_frames"] for guest in guests),
            received=sum(guest["rx_frames"] for guest in guests),
            received_bytes=sum(guest["rx_bytes"] for guest in guests),
            foreign=sum(guest["foreign"] for guest in guests),
            reordered=sum(guest["reordered"] for guest in guests),
            busy=load["busy"],
            idle=load["idle"],
            pauses=load["pauses"],
            paused=load["paused"],
            latency=latency,
        )

    def close(self) -> None:
        self._runner.stop()
