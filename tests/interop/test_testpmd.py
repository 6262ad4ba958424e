# SPDX-License-Identifier: Apache-2.0
"""DPDK guests: two testpmd over virtio-user exchange frames through the switch, over every kind of ring they know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop import testpmd
from tests.interop.process import wait_until
from tests.interop.switchd import Metrics, Switchd, vhost_port
from tests.interop.testpmd import PortCount, Testpmd, VirtioUser

pytestmark = pytest.mark.interop

MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
# Behind other ports, so other addresses: where a silent station was last seen is where the switch looks for it.
SERVER_MACS = "02:00:00:00:00:0c", "02:00:00:00:00:0d"
ENOUGH = 2000  # frames per direction, several times around the rings

RINGS: dict[str, dict[str, Any]] = {
    "split": {"mergeable": False, "in_order": False},
    "split-mergeable": {"in_order": False},
    "split-in-order": {"mergeable": False},
    "split-in-order-mergeable": {},
    "split-vectorised": {"mergeable": False, "in_order": False, "vectorized": True},
    "packed": {"packed": True, "mergeable": False, "in_order": False},
    "packed-mergeable": {"packed": True, "in_order": False},
    "packed-in-order": {"packed": True, "mergeable": False},
    "packed-in-order-mergeable": {"packed": True},
    "packed-vectorised": {"packed": True, "mergeable": False, "vectorized": True},
    "split-2-queues": {"queues": 2},
    "packed-4-queues": {"packed": True, "queues": 4},
    "split-1024-entries": {"queue_size": 1024},
    "server": {"server": True},
    "server-packed-2-queues": {"server": True, "packed": True, "queues": 2},
}


@pytest.fixture(scope="module")
def switch(module_folder: Path) -> Iterator[Switchd]:
    """One daemon for all cases, so that each finds the ports as the one before left them."""
    ports = [vhost_port(name, module_folder / f"{name}.sock", queues=4) for name in ("a", "b")]
    ports += [vhost_port(f"p{name}", module_folder / f"p{name}.sock", server=True, queues=4) for name in ("a", "b")]
    with Switchd(module_folder, ports) as daemon:
        yield daemon


def macs_of(options: dict[str, Any]) -> tuple[str, str]:
    return SERVER_MACS if options.get("server") else (MAC_A, MAC_B)


def guests(switch: Switchd, folder: Path, cpu: int, **options: Any) -> tuple[Testpmd, Testpmd, tuple[str, str]]:
    names = ("pa", "pb") if options.get("server") else ("a", "b")
    macs = macs_of(options)
    paths = [switch.folder / f"{name}.sock" for name in names]
    first = testpmd.guest(VirtioUser(paths[0], macs[0], **options), folder, cpu, macs[1])
    try:
        second = testpmd.guest(VirtioUser(paths[1], macs[1], **options), folder, cpu, macs[0])
    except BaseException:
        first.close()
        raise
    return first, second, names


def exchange(first: Testpmd, second: Testpmd, frames: int = ENOUGH) -> tuple[PortCount, PortCount]:
    """Let a burst go round between the two until each received so many more frames; what they counted."""
    start = first.stats().received, second.stats().received
    second.start()
    first.start(first=True)

    def flowed() -> bool:
        return first.stats().received - start[0] > frames and second.stats().received - start[1] > frames

    wait_until("frames flow both ways", flowed, 30.0)
    first.stop()
    second.stop()
    return first.stats(), second.stats()


def difference(before: Metrics, after: Metrics, port: str) -> tuple[int, int]:
    received = after.received(port) - before.received(port)
    return received, after.transmitted(port) - before.transmitted(port)


@pytest.mark.parametrize("options", RINGS.values(), ids=RINGS)
def test_two_guests_exchange_frames(
    switch: Switchd, folder: Path, cpus: tuple[int, int], options: dict[str, Any]
) -> None:
    first, second, names = guests(switch, folder, cpus[1], **options)
    with first, second:
        switch.wait_up(*names)
        before = switch.settle()
        counts = exchange(first, second)
        after = switch.settle()

        found = switch.fdb_macs()
        assert tuple(found.get(mac) for mac in macs_of(options)) == names

        in_rings = options.get("queue_size", 256) * options.get("queues", 1)
        for name, count in zip(names, counts, strict=True):
            received, transmitted = difference(before, after, name)
            assert received == count.transmitted, f"{name}: what the guest sent and what the switch took"
            assert 0 <= transmitted - count.received <= in_rings, f"{name}: more in flight than its rings hold"
            assert after.drops(name) == before.drops(name), f"{name}: frames were lost"
        after.check_conservation()


def test_every_queue_of_a_multiqueue_guest_carries_frames(switch: Switchd, folder: Path, cpus: tuple[int, int]) -> None:
    first, second, names = guests(switch, folder, cpus[1], queues=4)
    with first, second:
        switch.wait_up(*names)
        before = switch.metrics().by("switch_port_receive_frames_total", "queue", port="a")
        exchange(first, second)
        after = switch.settle().by("switch_port_receive_frames_total", "queue", port="a")
        assert {queue for queue in after if after[queue] > before.get(queue, 0)} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("server", [False, True], ids=["switch-owns-the-socket", "guest-owns-the-socket"])
def test_traffic_returns_after_a_guest_is_killed(
    switch: Switchd, folder: Path, cpus: tuple[int, int], server: bool
) -> None:
    first, second, names = guests(switch, folder, cpus[1], server=server)
    with second:
        with first:
            switch.wait_up(*names)
            exchange(first, second)
            second.start()
            first.start(first=True)
            first.process.kill()
        wait_until("the switch sees that the guest is gone", lambda: not switch.metrics().up(names[0]), 10.0)
        assert switch.metrics().up(names[1])
        second.stop()
        path = switch.folder / f"{names[0]}.sock"
        if server and path.exists():
            path.unlink()  # a killed owner leaves it behind; testpmd does not clear it
        macs = macs_of({"server": server})
        with testpmd.guest(VirtioUser(path, macs[0], server=server), folder, cpus[1], macs[1]) as again:
            switch.wait_up(*names)
            exchange(again, second)


def test_traffic_returns_after_the_switch_is_killed(folder: Path, cpus: tuple[int, int]) -> None:
    """The guests own their sockets, as libvirt's mode='server' does: they outlive the switch."""
    names = ("a", "b")
    ports = [vhost_port(name, folder / f"{name}.sock", server=True) for name in names]
    with Switchd(folder, ports) as switch:
        options = [VirtioUser(folder / "a.sock", MAC_A, server=True), VirtioUser(folder / "b.sock", MAC_B, server=True)]
        with (
            testpmd.guest(options[0], folder, cpus[1], MAC_B) as first,
            testpmd.guest(options[1], folder, cpus[1], MAC_A) as second,
        ):
            switch.wait_up(*names)
            exchange(first, second)
            assert switch.process is not None
            switch.process.kill()
            switch.start()
            switch.wait_up(*names)
            exchange(first, second)
