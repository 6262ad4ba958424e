# SPDX-License-Identifier: Apache-2.0
"""From every kind of port to every kind of port: a checksum or a segmentation that a sender left open passes through
where all can do it, and is finished in software where somebody cannot. What arrives is compared byte by byte.

A new kind of port joins with a line in STATIONS. Behind a `verbs` port is the stand-in of tests/support/verbs. Taps
through vhost-net join where the kernel has it: tests/interop/test_vhost_net.py runs their pairs on such a machine, with
the stations that SWITCH_MATRIX names, for that machine is slow.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData

from switch.testing import Guest
from switch.testing.guest import Vnet
from tests.interop.netns import Netns
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port
from tests.support import verbs_standin
from tests.support.offload_frames import ALL_CASES, Case, addressed, completed, finished, unfinished
from tests.support.verbs_standin import Standin
from tests.support.wire import Wire

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

NOTHING: frozenset[str] = frozenset()
CHECKSUM = frozenset({"csum"})
ALL = frozenset({"csum", "tso4", "tso6", "ecn", "uso"})
# Linux knows UDP segmentation in the virtio-net header since 6.2.
HOST = ALL if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 2) else ALL - {"uso"}
MIN_FRAME = 60  # of Ethernet, without the checksum at its end
WHOLE = "tx off tso off gso off"  # the kernel finishes every frame before it is on the cable


class Peer(Protocol):
    """The other side of a port."""

    def send(self, frame: bytes, vnet: Vnet) -> None: ...
    def receive(self, timeout: float) -> tuple[bytes, Vnet] | None: ...


@dataclass(frozen=True)
class Station:
    """A port with what is behind it, as a row of the table."""

    kind: str
    sends: frozenset[str]  # what its peer may leave open
    enters: frozenset[str]  # what of that is still open when it enters the switch; the kernel finishes the rest
    leaves: frozenset[str]  # what its peer takes unfinished
    port: dict[str, Any] = field(default_factory=dict)  # keys of the configuration
    guest: dict[str, Any] = field(default_factory=dict)  # vhostuser: arguments of the guest
    features: str = ""  # behind a cable: arguments of ethtool -K for the interface and for its other end
    mtu: int = 1500  # behind a cable: of the interface
    cuts: bool = False  # large segments enter in pieces, each with an open checksum


STATIONS: dict[str, Station] = {
    "guest": Station("vhostuser", ALL, ALL, ALL, guest={"offloads": True}),
    "guest-packed": Station("vhostuser", ALL, ALL, ALL, guest={"offloads": True, "packed": True}),
    "guest-big-buffers": Station("vhostuser", ALL, ALL, ALL, guest={"offloads": True, "mergeable": False}),
    "guest-checksum": Station(
        "vhostuser", CHECKSUM, CHECKSUM, CHECKSUM, guest={"features": ["version_1", "mrg_rxbuf", "csum", "guest_csum"]}
    ),
    "guest-plain": Station("vhostuser", NOTHING, NOTHING, NOTHING),
    "tap": Station("tap", HOST, HOST, HOST),
    "tap-plain": Station("tap", HOST, NOTHING, NOTHING, {"offloads": False}),
    "afpacket": Station("afpacket", HOST, HOST, HOST),
    "afpacket-plain": Station("afpacket", HOST, HOST, NOTHING, {"offloads": False}),
    "afpacket-simple-nic": Station("afpacket", HOST, NOTHING, NOTHING, features=WHOLE),
    "afpacket-jumbo": Station("afpacket", HOST, HOST, HOST, mtu=9000),
    "afxdp": Station("afxdp", HOST, CHECKSUM, NOTHING, cuts=True),
    "afxdp-trust": Station("afxdp", HOST, NOTHING, NOTHING, {"checksum": "trust"}, features=WHOLE),
    "afxdp-jumbo": Station("afxdp", HOST, NOTHING, NOTHING, {"checksum": "fix"}, features=WHOLE, mtu=9000),
    "verbs": Station("verbs", HOST, NOTHING, NOTHING, features=WHOLE),
    "verbs-plain": Station("verbs", HOST, NOTHING, NOTHING, {"offloads": False}, features=WHOLE),
    "verbs-jumbo": Station("verbs", HOST, NOTHING, NOTHING, {"mtu": 9000}, features=WHOLE, mtu=9000),
}
VHOST_NET = Path("/dev/vhost-net")
if VHOST_NET.exists():
    STATIONS |= {
        "tap-vhost": Station("tap", HOST, HOST, HOST, {"vhost": True}),
        "tap-vhost-plain": Station("tap", HOST, NOTHING, NOTHING, {"vhost": True, "offloads": False}),
    }
if chosen := os.environ.get("SWITCH_MATRIX"):
    STATIONS = {name: STATIONS[name] for name in chosen.split(",")}
NUMBERS = {name: number for number, name in enumerate(STATIONS, 1)}


def mac(station: str) -> bytes:
    return bytes([0x52, 0x54, 0, 0, 0x0F, NUMBERS[station]])


class GuestPeer:
    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def send(self, frame: bytes, vnet: Vnet) -> None:
        self._guest.send(frame, vnet=vnet)

    def receive(self, timeout: float) -> tuple[bytes, Vnet] | None:
        got = self._guest.recv_with_header(timeout)
        return None if got is None else (got.frame, got.vnet)


class WirePeer:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def send(self, frame: bytes, vnet: Vnet) -> None:
        self._wire.send(frame, vnet)

    def receive(self, timeout: float) -> tuple[bytes, Vnet] | None:
        return self._wire.receive_raw(timeout)


@dataclass
class Lab:
    switch: Switchd
    peers: dict[str, Peer]

    def need(self, *stations: str) -> None:
        if any(STATIONS[name].kind == "verbs" for name in stations):
            verbs_standin.need_pyverbs(sys.executable)

    def send(self, source: str, sink: str, frame: bytes, vnet: Vnet) -> None:
        self.peers[source].send(addressed(frame, mac(sink), mac(source)), vnet)

    def receive(self, source: str, sink: str, timeout: float = 5.0) -> tuple[bytes, Vnet] | None:
        """The next frame from `source`; what the kernel says of its own accord is passed over."""
        while (got := self.peers[sink].receive(timeout)) is not None:
            if got[0][6:12] == mac(source):
                return got
        return None


def prepare(folder: Path, near: Netns, far: Netns, standin: Standin | None) -> list[dict[str, Any]]:
    """Interfaces of all stations; the ports of the configuration. Without a stand-in there are no `verbs` ports."""
    ports = []
    for name, station in STATIONS.items():
        if station.kind == "verbs" and not standin:
            continue
        number = NUMBERS[name]
        own = {"name": name, "type": station.kind, "macs": [mac(name).hex(":")], **station.port}
        if station.kind == "vhostuser":
            own = {**vhost_port(name, folder / f"{number}.sock"), **own}
        elif station.kind == "tap":
            own["device"] = f"tap{number}"
        else:
            own["device"] = f"up{number}"
            near.veth(f"up{number}", far, f"far{number}")
            if station.kind == "verbs":
                assert standin
                own["device"] = f"mlx5_{number}"
                standin.set(f"mlx5_{number}", f"up{number}")
            for netns, device in ((near, f"up{number}"), (far, f"far{number}")):
                netns.ip("link", "set", device, "mtu", str(station.mtu))
                if station.features:
                    netns.run("ethtool", "-K", device, *station.features.split())
        ports.append(own)
    return ports


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with Netns() as near, Netns() as far, ExitStack() as stack:
        standin = Standin(module_folder) if verbs_standin.why_not(sys.executable) == "" else None
        ports = prepare(module_folder, near, far, standin)
        names = [port["name"] for port in ports]
        # `macs` holds for untagged frames; nothing is flooded, so that a port gets what is for it alone.
        tagged = [{"mac": mac(name).hex(":"), "vlan": 10, "port": name} for name in names]
        prefix = [*near.prefix(), *(standin.environment() if standin else [])]
        switch = Switchd(module_folder, ports, prefix=prefix, bridges=[{"name": "br0", "static": tagged}])
        stack.enter_context(switch)
        peers: dict[str, Peer] = {}
        for name in names:
            number, station = NUMBERS[name], STATIONS[name]
            if station.kind == "vhostuser":
                guest = Guest(str(module_folder / f"{number}.sock"), **station.guest)
                peers[name] = GuestPeer(stack.enter_context(guest))
            else:
                netns, device = (near, f"tap{number}") if station.kind == "tap" else (far, f"far{number}")
                wire = Wire(netns, device, vnet=True)
                stack.callback(wire.close)
                peers[name] = WirePeer(wire)
        switch.wait_up(*names)
        yield Lab(switch, peers)


def arrives(lab: Lab, source: str, sink: str, case: Case) -> None:
    frame, vnet = unfinished(case)
    lab.send(source, sink, frame, vnet)
    if case.passes and case.needs <= STATIONS[source].enters & STATIONS[sink].leaves:
        got = lab.receive(source, sink)
        assert got is not None, "nothing arrived"
        assert got[0] == addressed(frame, mac(sink), mac(source))
        assert got[1].flags & Vnet.NEEDS_CSUM
        kept = (got[1].gso_type, got[1].gso_size, got[1].csum_start, got[1].csum_offset)
        assert kept == (vnet.gso_type, vnet.gso_size, vnet.csum_start, vnet.csum_offset)
        return
    still_open = STATIONS[source].cuts and "csum" in STATIONS[sink].leaves
    wanted = finished(case)
    for number, piece in enumerate(wanted):
        got = lab.receive(source, sink)
        assert got is not None, f"{number} of {len(wanted)} frames arrived"
        assert got[1].gso_type == Vnet.GSO_NONE, "it is large still"
        assert bool(got[1].flags & Vnet.NEEDS_CSUM) == still_open
        whole = completed(*got) if still_open else got[0]
        expected = addressed(piece, mac(sink), mac(source))
        if STATIONS[sink].kind == "verbs":  # what the kernel or its driver does elsewhere
            expected = expected.ljust(MIN_FRAME, b"\0")
        assert whole == expected, f"frame {number} of {len(wanted)}"


PAIRS = [f"{source}>{sink}" for source, sink in itertools.permutations(STATIONS, 2)]


@pytest.mark.parametrize("pair", PAIRS)
def test_what_was_left_open_arrives_open_or_finished(lab: Lab, pair: str) -> None:
    source, sink = pair.split(">")
    lab.need(source, sink)
    for case in ALL_CASES:
        if not case.needs <= STATIONS[source].sends:
            continue
        if not case.passes and STATIONS[source].kind != "vhostuser":
            continue  # a kernel that is given such a frame drops it; one that made it: tests/interop/test_tunnels.py
        try:
            arrives(lab, source, sink, case)
        except AssertionError as error:
            raise AssertionError(f"{case.name}{'-' + case.tags if case.tags else ''}: {error}") from error
    assert lab.receive(source, sink, timeout=0.02) is None, "more arrived than was sent"


SCTP_SINKS = [
    sink for sink in ("guest", "guest-plain", "tap", "afpacket-jumbo") if {sink, "afpacket"} <= STATIONS.keys()
]


@pytest.mark.parametrize("tag", ["", "q"])
@pytest.mark.parametrize("sink", SCTP_SINKS)
def test_a_checksum_of_sctp_that_a_kernel_left_open_is_a_crc_when_it_arrives(lab: Lab, sink: str, tag: str) -> None:
    """A kernel that sends SCTP on a veth leaves it open, in a header that cannot say what it is."""
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if tag:
        link /= Dot1Q(vlan=10)
    network = IP(src="192.0.2.1", dst="192.0.2.2", proto=132)
    chunk = SCTPChunkData(data=bytes(range(201)), tsn=1)
    whole = bytes(link / network / SCTP(sport=7, dport=9, tag=5) / chunk)
    start = 14 + (4 if tag else 0) + 20
    opened = whole[: start + 8] + bytes(4) + whole[start + 12 :]
    assert opened != whole
    lab.send("afpacket", sink, opened, Vnet(Vnet.NEEDS_CSUM, Vnet.GSO_NONE, 0, 0, start, 8))
    got = lab.receive("afpacket", sink)
    assert got is not None, "nothing arrived"
    assert got[0] == addressed(whole, mac(sink), mac("afpacket"))
    assert not got[1].flags & Vnet.NEEDS_CSUM


def plain(size: int, tag: int = 0) -> bytes:
    """A frame of `size` bytes of L3. `tag`: EtherType of a tag for VLAN 10."""
    return bytes(12) + (struct.pack("!HH", tag, 10) if tag else b"") + b"\x88\xb5" + bytes(size)


def large(gso: int) -> tuple[bytes, Vnet]:
    """A TCP frame of two segments of `gso` bytes of payload, 52 bytes of IP and TCP headers on each."""
    return unfinished(Case("mtu", 4, "tcp", 2 * gso, gso=gso))


Q, AD = 0x8100, 0x88A8
ALL_MTU_ROWS = [
    # from, to, frame, arrives
    ("guest", "guest-packed", (plain(9000), Vnet()), True),
    ("guest", "guest-big-buffers", (plain(60000), Vnet()), True),
    ("guest", "tap", (plain(9000), Vnet()), True),
    ("guest", "afpacket", (plain(1500), Vnet()), True),
    ("guest", "afpacket", (plain(1501), Vnet()), False),
    ("guest", "afpacket", large(1448), True),
    ("guest", "afpacket", large(1449), False),
    ("guest", "afpacket-plain", large(1448), True),
    ("guest", "afpacket-plain", large(1449), False),
    ("guest", "afpacket-jumbo", (plain(9000), Vnet()), True),
    ("guest", "afpacket-jumbo", (plain(9001), Vnet()), False),
    ("guest", "afpacket-jumbo", large(8948), True),
    ("guest", "afpacket-jumbo", large(8949), False),
    ("afpacket-jumbo", "guest-plain", (plain(9000), Vnet()), True),
    ("afpacket-jumbo", "afpacket", (plain(9000), Vnet()), False),
    ("afpacket-jumbo", "afpacket", large(8948), False),
    ("tap", "afpacket", large(1449), False),
    *(
        (source, sink, frame, passes)
        for kind in ("afxdp", "verbs")
        for source, sink, frame, passes in (
            ("guest", kind, (plain(1500), Vnet()), True),
            ("guest", kind, (plain(1501), Vnet()), False),
            ("guest", kind, (plain(1500, Q), Vnet()), True),
            ("guest", kind, (plain(1501, Q), Vnet()), False),
            ("guest", kind, (plain(1501, AD), Vnet()), False),
            ("guest", kind, large(1448), True),
            ("guest", kind, large(1449), False),
            ("guest", f"{kind}-jumbo", (plain(9000), Vnet()), True),
            ("guest", f"{kind}-jumbo", (plain(9001), Vnet()), False),
            ("guest", f"{kind}-jumbo", large(8948), True),
            ("guest", f"{kind}-jumbo", large(8949), False),
            (f"{kind}-jumbo", "guest-plain", (plain(9000), Vnet()), True),
            (f"{kind}-jumbo", "afpacket", (plain(9000), Vnet()), False),
            ("afpacket-jumbo", kind, (plain(9000), Vnet()), False),
            ("afpacket-jumbo", f"{kind}-jumbo", large(8948), True),
            (f"{kind}-jumbo", kind, (plain(1501), Vnet()), False),
        )
    ),
    ("tap-vhost", "verbs-jumbo", large(8948), True),
    ("tap-vhost", "verbs-jumbo", large(8949), False),
    ("tap-vhost", "afxdp", large(1449), False),
    ("verbs-jumbo", "tap-vhost", (plain(9000), Vnet()), True),
    ("guest", "afxdp", (plain(1500, AD), Vnet()), True),  # the stand-in's wire takes no such frame
    ("afxdp-jumbo", "verbs-jumbo", (plain(9000), Vnet()), True),
    ("verbs-jumbo", "afxdp-jumbo", (plain(9000), Vnet()), True),
]


MTU_ROWS = [row for row in ALL_MTU_ROWS if {row[0], row[1]} <= STATIONS.keys()]


@pytest.mark.parametrize("row", MTU_ROWS, ids=[f"{row[0]}>{row[1]}-{number}" for number, row in enumerate(MTU_ROWS)])
def test_the_mtu_of_an_interface_is_kept_and_what_exceeds_it_is_counted(
    lab: Lab, row: tuple[str, str, tuple[bytes, Vnet], bool]
) -> None:
    source, sink, (frame, vnet), passes = row
    lab.need(source, sink)
    before = lab.switch.metrics().drops(sink, "tx").get("mtu_exceeded", 0)
    lab.send(source, sink, frame, vnet)
    if passes:
        got = lab.receive(source, sink)
        assert got is not None, f"nothing arrived; drops: {lab.switch.metrics().drops(sink)}"
        assert vnet.gso_size or got[0] == addressed(frame, mac(sink), mac(source))
        while lab.receive(source, sink, timeout=0.02) is not None:
            pass
    else:
        wait_until(
            "the frame is counted as mtu_exceeded",
            lambda: sum([lab.switch.metrics().drops(sink, "tx").get("mtu_exceeded", 0)]) > before,
            5.0,
        )
        assert lab.receive(source, sink, timeout=0.02) is None


def test_every_frame_is_accounted_for(lab: Lab) -> None:
    metrics = lab.switch.settle()
    metrics.check_conservation()
    for name in metrics.ports():
        assert set(metrics.drops(name)) <= {"mtu_exceeded"}
