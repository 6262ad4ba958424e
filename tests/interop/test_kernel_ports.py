# SPDX-License-Identifier: Apache-2.0
"""A Linux guest meets the host: an address on a TAP of the switch, and one behind a veth cable in another namespace.

A kind of port that reaches the kernel joins with a line in WAYS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interop import needs
from tests.interop.guest_image import Image
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until
from tests.interop.qemu import Guest, Nic
from tests.interop.switchd import Switchd, vhost_port

pytestmark = [pytest.mark.interop, pytest.mark.netns, pytest.mark.timeout(180)]

OURS = "10.8.{net}.1"  # the guest's address, one for each way
NO_OFFLOADS = ("tx", "off", "tso", "off", "gso", "off")


@dataclass(frozen=True)
class Way:
    """How the guest reaches the kernel. A wire: nobody behind the port takes an open checksum or a large segment."""

    kind: str
    net: int  # 10.8.net.0/24
    wire: bool = False
    port: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}{self.net}"

    @property
    def address(self) -> str:
        return f"10.8.{self.net}.2"

    @property
    def near(self) -> str:
        """The interface in the switch's namespace."""
        return f"near{self.net}"

    @property
    def device(self) -> str:
        """The interface that has the address."""
        return self.near if self.kind == "tap" else f"far{self.net}"


WAYS = {
    "tap": Way("tap", 1),
    "afpacket": Way("afpacket", 2),
    "tap-wire": Way("tap", 3, wire=True, port={"offloads": False}),
    "afpacket-wire": Way("afpacket", 4, wire=True),
    "afpacket-plain-wire": Way("afpacket", 5, wire=True, port={"offloads": False}),
}


@dataclass
class Lab:
    switch: Switchd
    guest: Guest
    home: Netns  # where the switch runs, with TAPs and its ends of the cables
    far: Netns  # where the cables go

    def netns(self, way: Way) -> Netns:
        return self.home if way.kind == "tap" else self.far

    def lay(self, way: Way) -> None:
        """The cable of a way, both ends up."""
        self.home.veth(way.near, self.far, way.device)
        if way.wire:
            for netns, device in ((self.home, way.near), (self.far, way.device)):
                netns.run("ethtool", "-K", device, *NO_OFFLOADS)
        self.far.address(way.device, way.address)


@pytest.fixture(scope="module")
def lab(module_folder: Path, image: Image, cpus: tuple[int, int]) -> Iterator[Lab]:
    ports = [vhost_port("vm1", module_folder / "vm1.sock")]
    ports += [{"name": way.name, "type": way.kind, "device": way.near, **way.port} for way in WAYS.values()]
    with Netns() as home, Netns() as far:
        switch = Switchd(module_folder, ports, prefix=home.prefix())
        guest = Guest(image, Nic(module_folder / "vm1.sock", "52:54:00:00:08:01"), module_folder, "vm1", cpus[1])
        made = Lab(switch, guest, home, far)
        for way in WAYS.values():
            if way.kind != "tap":
                made.lay(way)
        with guest, switch:
            for way in WAYS.values():
                if way.kind == "tap":
                    home.address(way.device, way.address)
            guest.wait_booted()
            guest.address(OURS.format(net=1))
            for way in WAYS.values():
                guest.succeeds(f"ip addr add {OURS.format(net=way.net)}/24 dev eth0")
            for netns in (home, far):  # many interfaces of one namespace hear every ARP request: only its owner answers
                netns.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore")
            switch.wait_up("vm1", *(way.name for way in WAYS.values()))
            yield made


def iperf(lab: Lab, way: Way, folder: Path, options: str) -> dict[str, Any]:
    """One run from the guest to an iperf3 server at the end of the way; what it says."""
    netns = lab.netns(way)
    lab.guest.wait_ping(way.address)
    program = needs.program("iperf3", "iperf3")
    server = Process([*netns.prefix(), program, "-s", "-1", "-B", way.address], folder / "iperf3.log")
    try:
        wait_until("iperf3 listens", lambda: f"{way.address}:5201" in netns.run("ss", "-ltn"), 10.0)
        said: dict[str, Any] = json.loads(lab.guest.run(f"iperf3 -J -c {way.address} {options}", 60.0))["end"]
        return said
    finally:
        server.stop()


def tcp(lab: Lab, way: Way, folder: Path, reverse: bool, size: str = "4M") -> None:
    said = iperf(lab, way, folder, f"-n {size} {'-R' if reverse else ''}")
    assert said["sum_received"]["bytes"] > 0


def udp(lab: Lab, way: Way, folder: Path, reverse: bool) -> None:
    """Slow enough for an emulated guest: what is lost is then the switch's doing."""
    said = iperf(lab, way, folder, f"-u -b 4M -l 1400 -n 400K {'-R' if reverse else ''}")["sum"]
    assert said["packets"] > 250
    assert said["lost_packets"] == 0


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_guest_pings_the_host(lab: Lab, way: Way) -> None:
    lab.guest.wait_ping(way.address)
    lab.guest.run(f"ping -c 10 -i 0.1 {way.address}")
    lab.switch.settle().check_conservation()


def test_two_kernel_ports_reach_each_other(lab: Lab) -> None:
    tap, cable = WAYS["tap"], WAYS["afpacket"]
    lab.far.ip("route", "replace", f"{tap.address}/32", "dev", cable.device)
    lab.home.ip("route", "replace", f"{cable.address}/32", "dev", tap.device)
    lab.home.wait_ping(cable.address)
    lab.far.wait_ping(tap.address)


@pytest.mark.parametrize("reverse", [False, True], ids=["to", "from"])
@pytest.mark.parametrize("way", [way for way in WAYS.values() if not way.wire], ids=lambda way: way.kind)
def test_tcp_and_udp_flow_between_guest_and_host(lab: Lab, folder: Path, way: Way, reverse: bool) -> None:
    """Checksums and large segments that one side leaves open pass, or are finished for the other."""
    tcp(lab, way, folder, reverse)
    udp(lab, way, folder, reverse)


@pytest.mark.parametrize("way", [way for way in WAYS.values() if way.wire], ids=lambda way: way.name)
def test_no_wrong_checksum_is_on_a_wire(lab: Lab, folder: Path, way: Way) -> None:
    """TCP and UDP in both directions, captured and judged by tshark."""
    tshark = needs.program("tshark", "tshark")
    capture = folder / "wire.pcapng"
    sniffer = Process(
        [*lab.netns(way).prefix(), tshark, "-i", way.device, "-f", "ip", "-w", capture], folder / "tshark.log"
    )
    try:
        wait_until("tshark captures", lambda: "Capturing on" in sniffer.text(), 20.0)
        for reverse in (False, True):
            tcp(lab, way, folder, reverse, size="1M")
            udp(lab, way, folder, reverse)
    finally:
        sniffer.stop()
    options = [word for layer in ("ip", "tcp", "udp") for word in ("-o", f"{layer}.check_checksum:TRUE")]
    wanted = ("ip.src", "frame.len", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status")
    fields = [word for name in wanted for word in ("-e", name)]
    seen = lab.home.run(tshark, "-n", "-r", str(capture), *options, "-T", "fields", *fields, seconds=60.0)
    good: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(seen.splitlines()):
        source, size, *status = line.split("\t")
        assert int(size) <= 1514, f"frame {number} from {source} has {size} bytes: a large segment on a wire"
        for layer, judged in zip(("ip", "tcp", "udp"), status, strict=True):
            assert judged in ("", "1"), f"frame {number} from {source}: wrong {layer} checksum"
            good[source, layer] += judged == "1"
    for source in (OURS.format(net=way.net), way.address):
        assert good[source, "tcp"] > 100, good
    assert good[OURS.format(net=way.net), "udp"] > 250, good
    assert good[way.address, "udp"] > 250, good


@pytest.mark.parametrize("loss", ["link-down", "deleted"])
@pytest.mark.parametrize("kind", ["tap", "afpacket"])
def test_a_device_that_goes_away_takes_its_port_down_only_and_comes_back(lab: Lab, kind: str, loss: str) -> None:
    way, other = WAYS[kind], WAYS["afpacket" if kind == "tap" else "tap"]
    lab.guest.wait_ping(way.address)
    lab.guest.wait_ping(other.address)
    if loss == "link-down":
        lab.home.ip("link", "set", way.near, "down")
        wait_until("the port is down", lambda: not lab.switch.metrics().up(way.name), 10.0)
        assert lab.guest.pings(other.address), "the others are not disturbed"
        lab.home.ip("link", "set", way.near, "up")
        if kind == "tap":
            lab.home.ip("address", "replace", f"{way.address}/24", "dev", way.device)
    else:
        lab.home.ip("link", "delete", way.near)
        if kind == "tap":  # the switch makes it again
            wait_until("the TAP is made again", lambda: way.near in lab.home.run("cat", "/proc/net/dev"), 10.0)
            lab.home.address(way.device, way.address)
        else:
            wait_until("the port is down", lambda: not lab.switch.metrics().up(way.name), 10.0)
            assert lab.guest.pings(other.address), "the others are not disturbed"
            lab.lay(way)
        lab.guest.run("ip neigh flush all || true")  # the new interface has a new address
    lab.switch.wait_up(way.name)
    lab.guest.wait_ping(way.address)
    assert lab.guest.pings(other.address)
    lab.switch.settle().check_conservation()
