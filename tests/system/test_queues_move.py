# SPDX-License-Identifier: Apache-2.0
"""A receive queue goes from one worker to the other and back while guests talk: what an administrator sees of it, and
that no frame is lost or overtaken."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop import needs
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port

pytestmark = pytest.mark.timeout(120)

FIRST, SECOND = 0x0200_0000_0001, 0x0200_0100_0001
WINDOW = 32  # frames of a guest under way: no ring can be full, whoever is kept waiting on a loaded machine
MOVES = 4


@dataclass
class Lab:
    switch: Switchd
    traffic: Any
    cpus: tuple[int, int]

    def pollers(self) -> dict[str, int]:
        """Port -> CPU of the worker that polls its receive queue, as `swctl queues` says."""
        rows = self.switch.ctl("queues")["queues"]
        return {row["port"]: row["cpu"] for row in rows if row["direction"] == "rx"}

    def polled(self) -> dict[int, int]:
        """CPU -> frames that its worker has taken from queues, as `swctl workers` says."""
        return {row["cpu"]: row["frames"] for row in self.switch.ctl("workers")["workers"]}

    def received(self) -> int:
        return sum(guest["rx_frames"] for guest in self.traffic.stats())

    def move(self, port: str, cpu: int) -> None:
        self.switch.ctl("set-port", port, "--rx-affinity", f"0:{cpu}")
        wait_until(f"swctl queues names CPU {cpu} for {port}", lambda: self.pollers()[port] == cpu, 10.0)

    def wait_received(self, frames: int) -> None:
        before = self.received()
        wait_until(f"{frames} frames arrive", lambda: self.received() > before + frames, 10.0)


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    cpus = needs.two_cpus()
    if cpus[0] == cpus[1]:
        needs.lacking("one CPU", "two workers need two CPUs")
    ports = [vhost_port(name, folder / f"{name}.sock") for name in ("vm1", "vm2")]
    switch = Switchd(folder, ports)
    switch.config["switch"]["workers"] = [{"cpu": cpu} for cpu in cpus]
    with switch:
        both = ((FIRST, SECOND), (SECOND, FIRST))
        guests = [
            {"socket": str(folder / f"vm{number}.sock"), "mac": mac, "peer": peer}
            for number, (mac, peer) in enumerate(both, 1)
        ]
        traffic = importlib.import_module("switch._core").TrafficRunner(guests, -1, False)
        traffic.set_window(WINDOW)
        traffic.set_sending(False)
        traffic.start()
        try:
            assert traffic.wait_ready(10.0)
            switch.wait_up("vm1", "vm2")
            traffic.set_sending(True)
            yield Lab(switch, traffic, cpus)
        finally:
            traffic.stop()


def test_queues_move_under_traffic_without_loss_or_reordering(lab: Lab) -> None:
    for number in range(MOVES):
        cpu = lab.cpus[number % 2]
        lab.move("vm1", cpu)
        taken = lab.polled()[cpu]
        lab.wait_received(500)
        assert lab.polled()[cpu] > taken
    lab.traffic.set_sending(False)
    metrics = lab.switch.settle()
    metrics.check_conservation()
    guests = lab.traffic.stats()
    assert sum(guest["reordered"] for guest in guests) == 0
    assert [metrics.drops(port) for port in ("vm1", "vm2")] == [{}, {}]
    assert lab.received() == sum(guest["tx_frames"] for guest in guests)


def test_both_queues_on_one_worker_leave_the_other_asleep(lab: Lab) -> None:
    home, other = lab.cpus
    for port in ("vm1", "vm2"):
        lab.move(port, home)
    before = lab.polled()
    lab.wait_received(2000)
    after = lab.polled()
    assert after[other] == before[other]
    assert after[home] > before[home] + 1000
