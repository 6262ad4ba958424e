# SPDX-License-Identifier: Apache-2.0
"""DPDK as the device: our driver side (guest and virtiouser port) behind rte_vhost, over every kind of ring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.datapath import DatapathOptions, PortSpec, open_datapath
from switch.testing import Guest
from tests.interop import testpmd
from tests.interop.process import wait_until

pytestmark = pytest.mark.interop
pytest.importorskip("switch._core", reason="the compiled module is not built")

GUESTS: dict[str, dict[str, Any]] = {
    "split": {"mergeable": False},
    "split-mergeable": {},
    "split-event-idx": {"event_idx": True},
    "split-in-order": {"in_order": True},
    "packed": {"packed": True, "mergeable": False},
    "packed-mergeable": {"packed": True},
    "packed-event-idx-in-order": {"packed": True, "event_idx": True, "in_order": True},
    "legacy": {"legacy": True, "mergeable": False},
    "legacy-mergeable": {"legacy": True},
    "1024-entries": {"ring_size": 1024},
}


def frame(mark: int, size: int = 60) -> bytes:
    return bytes.fromhex("020000000002 020000000001 88b5") + mark.to_bytes(2, "big") + bytes(size - 16)


@pytest.fixture(scope="module")
def device(module_folder: Path, cpus: tuple[int, int]) -> Iterator[Path]:
    """testpmd between two sockets: what comes out of one goes into the other."""
    paths = [module_folder / "left", module_folder / "right"]
    with testpmd.stand_in_switch(paths, module_folder, cpus[0]) as peer:
        peer.start()
        yield module_folder


def crosses(sender: Guest, receiver: Guest, count: int) -> None:
    def first_crosses() -> bool:  # the device may discard what comes while it starts a queue
        sender.send(frame(0xFFFF))
        return receiver.recv(0.1) is not None

    wait_until("the first frame crosses", first_crosses)
    receiver.drain()
    for mark in range(count):
        wanted = frame(mark, 60 + mark % 1400)
        sender.send(wanted)
        receiver.expect(wanted, timeout=10.0)


@pytest.mark.parametrize("options", GUESTS.values(), ids=GUESTS.keys())
def test_guest_uses_a_dpdk_device(device: Path, options: dict[str, Any]) -> None:
    with Guest(str(device / "left"), **options) as left, Guest(str(device / "right")) as right:
        crosses(left, right, 600)
        crosses(right, left, 600)
        assert left.broken == right.broken == ""


@pytest.mark.parametrize("packed", [False, True])
def test_switch_plugs_into_a_dpdk_device(device: Path, packed: bool) -> None:
    """guest - our switch - virtiouser port - DPDK - guest."""
    datapath = open_datapath(DatapathOptions(workers=(0,), pin=False))
    datapath.start()
    try:
        datapath.add_bridge("br0", ageing=300, mac_limit=100)
        datapath.add_port(PortSpec("vm", "vhostuser", "br0", socket=str(device / "vm")))
        datapath.add_port(
            PortSpec("up", "virtiouser", "br0", socket=str(device / "left"), socket_owner="peer", packed=packed)
        )
        wait_until("the port runs", lambda: datapath.port("up").up, 20.0)
        with Guest(str(device / "vm")) as vm, Guest(str(device / "right")) as right:
            crosses(vm, right, 300)
            crosses(right, vm, 300)
    finally:
        datapath.stop()
