# SPDX-License-Identifier: Apache-2.0
"""A Linux guest meets the host: an address on a TAP of the switch, and one behind a veth cable in another namespace.

A kind of port that reaches the kernel joins with a line in WAYS.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
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

pytestmark = [pytest.mark.interop, pytest.mark.emulated, pytest.mark.netns, pytest.mark.timeout(180)]

OURS = "10.8.{net}.1"  # the guest's address, one for each way
NO_OFFLOADS = ("tx", "off", "tso", "off", "gso", "off")


@dataclass(frozen=True)
class Way:
    """How the guest reaches the kernel."""

    kind: str
    net: int  # 10.8.net.0/24
    wire: bool = False  # nobody behind the port takes an open checksum or a large segment, or leaves one
    port: dict[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> tuple[str, ...]:
        """Whose frames must be whole when they pass the far end: by their source address."""
        if self.wire:
            return (OURS.format(net=self.net), self.address)
        # AF_XDP carries whole frames only; what the host sends is for its veth to finish, and for the port after it.
        return (OURS.format(net=self.net),) if self.kind == "afxdp" else ()

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
    "afxdp": Way("afxdp", 6),
    "afxdp-wire": Way("afxdp", 7, wire=True, port={"checksum": "trust"}),
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


@contextlib.contextmanager
def captured(lab: Lab, way: Way, folder: Path) -> Iterator[Path]:
    """What passes the far end meanwhile."""
    capture = folder / "wire.pcapng"
    command = [needs.program("tshark", "tshark"), "-i", way.device, "-f", "ip", "-w", str(capture)]
    sniffer = Process([*lab.netns(way).prefix(), *command], folder / "tshark.log")
    try:
        wait_until("tshark captures", lambda: "Capturing on" in sniffer.text(), 20.0)
        yield capture
    finally:
        sniffer.stop()


def judge(capture: Path, sources: Iterable[str]) -> Counter[tuple[str, str]]:
    """How many right checksums tshark finds, by source and layer; a wrong one from one of `sources` is an error."""
    layers = ("ip", "tcp", "udp")
    options = [word for layer in layers for word in ("-o", f"{layer}.check_checksum:TRUE")]
    wanted = ("ip.src", "frame.len", *(f"{layer}.checksum.status" for layer in layers))
    fields = [word for name in wanted for word in ("-e", name)]
    command = [needs.program("tshark", "tshark"), "-n", "-r", str(capture), *options, "-T", "fields", *fields]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    good: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(seen.splitlines()):
        source, size, *status = line.split("\t")
        if source not in sources:
            continue
        assert int(size) <= 1514, f"frame {number} from {source} has {size} bytes: a large segment on a wire"
        for layer, judged in zip(layers, status, strict=True):
            assert judged in ("", "1"), f"frame {number} from {source}: wrong {layer} checksum"
            good[source, layer] += judged == "1"
    return good


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_guest_and_host_exchange_ping_tcp_and_udp(lab: Lab, folder: Path, way: Way) -> None:
    """What one side leaves open passes, or is finished for the other. On a wire every checksum is right."""
    lab.guest.wait_ping(way.address)
    lab.guest.run(f"ping -c 5 -i 0.1 {way.address}")
    with captured(lab, way, folder) if way.judged else contextlib.nullcontext() as capture:
        # UDP first: what passed last may be missing in the capture, and of TCP there is enough.
        for back in ("", "-R"):
            # Slow enough for an emulated guest, and no more than its socket holds if it does not come to read: what is
            # lost is then the switch's doing.
            said = iperf(lab, way, folder, f"-u -b 4M -l 1400 -n 200K -w 200K {back}")["sum"]
            assert said["packets"] > 125
            assert said["lost_packets"] == 0
            assert iperf(lab, way, folder, f"-n 1M {back}")["sum_received"]["bytes"] > 0
    lab.switch.settle().check_conservation()
    if capture:
        good = judge(capture, way.judged)
        for source in way.judged:
            assert good[source, "tcp"] > 100, good
            assert good[source, "udp"] > 125, good


def test_two_kernel_ports_reach_each_other(lab: Lab) -> None:
    tap, cable = WAYS["tap"], WAYS["afpacket"]
    lab.far.ip("route", "replace", f"{tap.address}/32", "dev", cable.device)
    lab.home.ip("route", "replace", f"{cable.address}/32", "dev", tap.device)
    lab.home.wait_ping(cable.address)
    lab.far.wait_ping(tap.address)


@pytest.mark.parametrize("loss", ["link-down", "deleted"])
@pytest.mark.parametrize("kind", ["tap", "afpacket", "afxdp"])
def test_a_device_that_goes_away_takes_its_port_down_only_and_comes_back(lab: Lab, kind: str, loss: str) -> None:
    way, other = WAYS[kind], WAYS["tap" if kind != "tap" else "afpacket"]
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
