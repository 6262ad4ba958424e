# SPDX-License-Identifier: Apache-2.0
"""switch.testing is what it says to its users: guests and traffic on the real datapath."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from switch.datapath import Datapath, DatapathOptions, PortSpec, open_datapath
from switch.testing import Guest, GuestError, Vnet

pytest.importorskip("switch._core", reason="the compiled module is not built")

MAC1, MAC2 = "525400000001", "525400000002"


def frame(destination: str, source: str, mark: int = 0, size: int = 60) -> bytes:
    return bytes.fromhex(destination + source + "88b5") + bytes([mark]) * (size - 14)


@pytest.fixture
def datapath(folder: Path) -> Iterator[Datapath]:
    made = open_datapath(DatapathOptions(workers=(0,), pin=False))
    made.start()
    made.add_bridge("br0", ageing=300, mac_limit=1000)
    for name in ("vm1", "vm2"):
        made.add_port(PortSpec(name=name, type="vhostuser", bridge="br0", socket=str(folder / name), queues=2))
    yield made
    made.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_guests_exchange_frames(datapath: Datapath, folder: Path, packed: bool) -> None:
    with Guest(str(folder / "vm1"), packed=packed, queues=2) as vm1, Guest(str(folder / "vm2")) as vm2:
        for mark in range(20):
            vm1.send(frame(MAC2, MAC1, mark), queue=mark % 2)
            vm2.expect(frame(MAC2, MAC1, mark))
            vm2.send(frame(MAC1, MAC2, mark, 1514))
            vm1.expect(frame(MAC1, MAC2, mark, 1514))
        vm1.expect_none()
        assert vm1.ready
        assert vm1.queues == 2
        assert ("ring_packed" in vm1.features) is packed
        assert vm1.counters["tx_frames"] == vm1.counters["rx_frames"] == 20
        assert vm1.broken == vm2.broken == ""


def test_expect_says_what_came_instead(datapath: Datapath, folder: Path) -> None:
    with Guest(str(folder / "vm1")) as vm1, Guest(str(folder / "vm2")) as vm2:
        vm1.send(frame(MAC2, MAC1, 7))
        with pytest.raises(AssertionError, match="did not receive"):
            vm2.expect(frame(MAC2, MAC1, 8), timeout=0.5)
        vm1.send(frame(MAC2, MAC1, 9))
        with pytest.raises(AssertionError, match="should not have"):
            vm2.expect_none(timeout=5.0)
        assert vm2.drain() == []


def test_scapy_packets_are_frames(datapath: Datapath, folder: Path) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    packet = Ether(dst="52:54:00:00:00:02", src="52:54:00:00:00:01") / IP(dst="10.0.0.2") / UDP() / bytes(100)
    with Guest(str(folder / "vm1")) as vm1, Guest(str(folder / "vm2")) as vm2:
        vm1.send(packet)
        vm2.expect(packet)


def test_a_header_travels_with_its_frame(datapath: Datapath, folder: Path) -> None:
    with Guest(str(folder / "vm1"), offloads=True) as vm1, Guest(str(folder / "vm2"), offloads=True) as vm2:
        header = Vnet(flags=Vnet.NEEDS_CSUM, csum_start=34, csum_offset=16)
        vm1.send(frame(MAC2, MAC1, 1, 200), vnet=header)
        got = vm2.expect(frame(MAC2, MAC1, 1, 200))
        assert got.vnet.flags & Vnet.NEEDS_CSUM
        assert (got.vnet.csum_start, got.vnet.csum_offset) == (34, 16)


def test_feature_names_choose_exactly(datapath: Datapath, folder: Path) -> None:
    with Guest(str(folder / "vm1"), features=["version_1", "event_idx"]) as vm1:
        assert vm1.features == {"version_1", "event_idx"}
    with pytest.raises(GuestError, match="no_such_feature"):
        Guest(str(folder / "vm1"), features=["no_such_feature"])


def test_a_guest_that_cannot_connect_says_why(folder: Path) -> None:
    with pytest.raises(GuestError, match="waiting_for_peer"), Guest(str(folder / "nobody"), ready_timeout=0.2):
        pass
    guest = Guest(str(folder / "nobody")).start()
    with pytest.raises(GuestError, match="not connected"):
        guest.send(frame(MAC2, MAC1))
    guest.stop()


def test_the_guest_can_own_the_socket(datapath: Datapath, folder: Path) -> None:
    path = str(folder / "owned")
    with Guest(str(folder / "vm2")) as vm2:
        owner = Guest(path, owner="guest").start()
        datapath.add_port(PortSpec(name="vm3", type="vhostuser", bridge="br0", socket=path, socket_owner="peer"))
        owner.wait_ready()
        owner.send(frame(MAC2, MAC1, 3))
        vm2.expect(frame(MAC2, MAC1, 3))
        owner.stop()


def traffic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "switch.testing.traffic", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_traffic_flows_both_ways_and_is_summed_up(datapath: Datapath, folder: Path) -> None:
    done = traffic(
        *("--socket", str(folder / "vm1"), "--mac", "52:54:00:00:00:01", "--peer-mac", "52:54:00:00:00:02"),
        *("--socket", str(folder / "vm2"), "--mac", "52:54:00:00:00:02", "--peer-mac", "52:54:00:00:00:01"),
        *("--rate", "2000", "--duration", "1", "--queues", "2", "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [guest["ready"] for guest in result["guests"]] == [True, True]
    for guest in result["guests"]:
        assert guest["tx_frames"] > 0
        assert guest["rx_frames"] > 0
        assert guest["reordered"] == 0


def test_traffic_without_a_switch_fails_with_a_reason(folder: Path) -> None:
    done = traffic(
        *("--socket", str(folder / "nobody"), "--mac", "52:54:00:00:00:01", "--peer-mac", "52:54:00:00:00:02"),
        *("--wait", "0.3"),
    )
    assert done.returncode == 1
    assert "nobody" in done.stderr
