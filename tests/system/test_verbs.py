# SPDX-License-Identifier: Apache-2.0
"""A NIC past the kernel, as far as a machine without one can show: the real daemon, the real pyverbs, real frames on a
cable. libibverbs is the stand-in of tests/support/verbs, which ends the daemon when a rule of hardware is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from switch.testing import Guest, Vnet
from tests.interop import needs
from tests.interop.netns import Netns
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd
from tests.support import verbs_standin
from tests.support.verbs_standin import Standin
from tests.support.wire import Wire
from tests.system.test_host_ports import CLIENT, SERVER, TRANSFER, check_checksums

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

NEAR, FAR = "10.9.1.1", "10.9.1.2"
STATION, GUEST = "02:00:00:00:0f:01", "02:00:00:00:0e:01"


@dataclass
class Lab:
    switch: Switchd
    near: Netns  # where the switch runs: tap0, and up0 under the device mlx5_0
    far: Netns  # the other end of the cable, far0
    standin: Standin

    def status(self, port: str = "up") -> dict[str, Any]:
        found: dict[str, Any] = self.switch.ctl("port", port)
        return found

    def wait_stage(self, stage: str) -> dict[str, Any]:
        wait_until(f"port up is {stage}", lambda: self.status()["stage"] == stage, 20.0)
        return self.status()

    def guest(self, **options: Any) -> Guest:
        return Guest(str(self.switch.folder / "vm.sock"), **options)


@contextlib.contextmanager
def make_lab(folder: Path, uplink: dict[str, Any] | None = None, **device: int) -> Iterator[Lab]:
    verbs_standin.need_pyverbs(sys.executable)
    standin = Standin(folder)
    with Netns() as near, Netns() as far:
        near.veth("up0", far, "far0")
        # What a cable carries is whole frames with their checksums.
        far.run(needs.program("ethtool", "ethtool"), "-K", "far0", "tx", "off", "tso", "off", "gso", "off")
        far.ip("link", "set", "far0", "address", STATION)
        far.address("far0", FAR)
        standin.set("mlx5_0", "up0", **device)
        ports = [
            {"name": "host", "type": "tap", "device": "tap0"},
            {"name": "vm", "type": "vhostuser", "socket": str(folder / "vm.sock")},
            {"name": "up", "type": "verbs", "device": "mlx5_0", **(uplink or {})},
        ]
        prefix = [*near.prefix(), *standin.environment()]
        with Switchd(folder, ports, prefix=prefix) as switch:
            near.address("tap0", NEAR)
            try:
                yield Lab(switch, near, far, standin)
            finally:
                log = switch.log.read_text()
        assert switch.process is not None
        said = switch.log.read_text()
        assert "verbs stand-in:" not in said, said[-2000:]
        assert "stopped" in said[len(log) - 200 :], said[-2000:]


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with make_lab(module_folder) as made:
        made.switch.wait_up("host", "up")
        yield made


def ethernet(payload: Packet, destination: str = STATION, source: str = GUEST) -> Packet:
    return Ether(dst=destination, src=source) / payload


def test_status_says_what_the_device_is(lab: Lab) -> None:
    status = lab.status()
    assert (status["stage"], status["detail"]) == ("running", "")
    facts = status["facts"]
    assert facts["device"] == "mlx5_0"
    assert facts["steering"] == "all"
    assert facts["checksum_offload"] == "both ways"
    assert facts["checksum_offload_ipv6"] == "transmit"
    assert facts["segmentation_offload"] == "TCP up to 262144 bytes"
    assert facts["receive_queues"] == "1 of 1"
    rings = {ring["name"]: ring["facts"] for ring in status["rings"]}
    assert rings["rx0"]["wakes_worker"] == "yes"
    assert rings["tx0"]["inline_bytes"] == "128"


@pytest.mark.parametrize("to_far", [True, False], ids=["to-cable", "from-cable"])
def test_tcp_arrives_unchanged_and_every_frame_is_accounted_for(lab: Lab, to_far: bool) -> None:
    lab.near.wait_ping(FAR)
    source, sink, address = (lab.near, lab.far, FAR) if to_far else (lab.far, lab.near, NEAR)
    command = [*sink.prefix(), sys.executable, "-c", SERVER, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            source.run(sys.executable, "-c", CLIENT, address, "1", str(TRANSFER), seconds=60.0)
            size, digest = server.stdout.readline().split()
        finally:
            server.kill()
    assert (int(size), digest) == (TRANSFER, hashlib.sha256(random.Random(1).randbytes(TRANSFER)).hexdigest())
    after = lab.switch.settle()
    after.check_conservation()
    assert "device_error" not in after.drops("up")


SIZES = [1, 18, 86, 87, 200, 1458]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tagged", [False, True], ids=["untagged", "tagged"])
def test_open_checksums_leave_finished(lab: Lab, version: int, tagged: bool) -> None:
    open_checksums_leave_finished(lab, version, tagged)


def test_open_checksums_over_ipv6_are_not_left_to_a_device_that_is_not_known_to_compute_them(folder: Path) -> None:
    """The stand-in ends the daemon that does."""
    with make_lab(folder, None, csum6=0) as lab:
        lab.switch.wait_up("up")
        assert lab.status()["facts"]["checksum_offload"] == "both ways"
        assert lab.status()["facts"]["checksum_offload_ipv6"] == "none"
        open_checksums_leave_finished(lab, 6, tagged=False)
        with lab.guest(offloads=True) as guest, Wire(lab.far, "far0") as wire:
            frame, vnet = large_segment(6, 5000, sport=1005)
            guest.send(frame, vnet=vnet)
            for at in range(0, 5000, vnet.gso_size):
                check_checksums(wire.wait_for(partial(is_piece, 1005, at)))
        assert lab.status()["counters"]["tso_frames"] == 0


def open_checksums_leave_finished(lab: Lab, version: int, tagged: bool) -> None:
    """By the device. Frames of every path: inline, padded, copied."""
    l3: Packet = IP(src=NEAR, dst=FAR) if version == 4 else IPv6(src="fd09::1", dst="fd09::2")
    with lab.guest(offloads=True) as guest, Wire(lab.far, "far0") as wire:
        for number, size in enumerate(SIZES):
            for layer, offset in ((UDP(sport=1000 + number, dport=9), 6), (TCP(sport=1000 + number, dport=9), 16)):
                tag = Dot1Q(vlan=7) / l3 if tagged else l3
                size = min(size, 1500 - (60 if version == 6 else 40))
                frame = bytes(ethernet(tag / layer / Raw((bytes(range(256)) * 6)[:size])))
                start = frame.index(struct.pack("!HH", 1000 + number, 9))
                l4 = Ether(frame)[type(layer)]
                pseudo = pseudo_sum(version, l3, 17 if isinstance(layer, UDP) else 6, len(bytes(l4)))
                opened = frame[: start + offset] + struct.pack("!H", pseudo) + frame[start + offset + 2 :]
                guest.send(opened, vnet=Vnet(flags=Vnet.NEEDS_CSUM, csum_start=start, csum_offset=offset))
                got = wire.wait_for(partial(is_from_guest, type(layer), 1000 + number))
                check_checksums(got)
                assert bytes(got)[: len(frame)] == frame
                assert len(got) == max(60, len(frame))


@pytest.mark.parametrize(
    ("device", "said", "by_device"),
    [
        ({"tso": 262144}, "TCP up to 262144 bytes", True),
        ({"tso": 0}, "none: the switch cuts", False),
        ({"csum": 0}, "none: the switch cuts", False),
        ({"no_tso_opcode": 1}, "the device's library refused it: the switch cuts", False),
    ],
    ids=["by-device", "no-segmentation", "no-checksums", "refused"],
)
def test_large_segments_are_cut(folder: Path, device: dict[str, int], said: str, by_device: bool) -> None:
    with make_lab(folder, None, **device) as lab:
        lab.switch.wait_up("up")
        with lab.guest(offloads=True) as guest, Wire(lab.far, "far0") as wire:
            if "no_tso_opcode" in device:  # the first one is lost to learn it
                frame, vnet = large_segment(4, 4000, sport=999)
                guest.send(frame, vnet=vnet)
                wait_until("it was refused", lambda: lab.status()["facts"]["segmentation_offload"] == said, 10.0)
            assert lab.status()["facts"]["segmentation_offload"] == said
            for version, payload in ((4, 10_000), (6, 20_000), (4, 60_000)):
                frame, vnet = large_segment(version, payload, sport=1000 + payload // 1000)
                guest.send(frame, vnet=vnet)
                got = b""
                for at in range(0, payload, vnet.gso_size):
                    piece = wire.wait_for(partial(is_piece, 1000 + payload // 1000, at))
                    check_checksums(piece)
                    assert len(bytes(piece[TCP].payload)) == min(vnet.gso_size, payload - at)
                    assert ("P" in piece[TCP].flags) == (at + vnet.gso_size >= payload)
                    if version == 4:
                        assert piece[IP].id == 7 + at // vnet.gso_size
                    got += bytes(piece[TCP].payload)
                assert got == frame[-payload:]
        assert lab.status()["counters"]["tso_frames"] == (3 if by_device else 0)
        after = lab.switch.settle()
        after.check_conservation()
        assert (after.sum("switch_port_segmented_frames_total", port="up") == 0) == by_device


def large_segment(version: int, payload: int, sport: int) -> tuple[bytes, Vnet]:
    l3: Packet = IP(src=NEAR, dst=FAR, id=7) if version == 4 else IPv6(src="fd09::1", dst="fd09::2")
    data = random.Random(payload).randbytes(payload)
    frame = bytearray(bytes(ethernet(l3 / TCP(sport=sport, dport=9, seq=5, flags="PA") / Raw(data))))
    start = len(frame) - payload - 20
    frame[start + 16 : start + 18] = struct.pack("!H", pseudo_sum(version, l3, 6, payload + 20))
    return bytes(frame), Vnet(
        flags=Vnet.NEEDS_CSUM, csum_start=start, csum_offset=16, gso_size=1400, hdr_len=start + 20,
        gso_type=Vnet.GSO_TCPV4 if version == 4 else Vnet.GSO_TCPV6,
    )  # fmt: skip


def is_piece(sport: int, at: int, frame: Packet) -> bool:
    return is_from_guest(TCP, sport, frame) and frame[TCP].seq == 5 + at


def is_from_guest(kind: type[Packet], sport: int, frame: Packet) -> bool:
    return kind in frame and frame[kind].sport == sport and frame.src == GUEST


def pseudo_sum(version: int, l3: Packet, protocol: int, length: int) -> int:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    data = socket.inet_pton(family, l3.src) + socket.inet_pton(family, l3.dst) + struct.pack("!II", length, protocol)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_device_vouches_for_right_checksums_only(lab: Lab) -> None:
    with lab.guest(offloads=True) as guest, Wire(lab.far, "far0") as wire:
        guest.send(bytes(ethernet(Raw(b"here is the guest"), destination="ff:ff:ff:ff:ff:ff")))
        wire.wait_for(lambda frame: frame.src == GUEST)
        for number, (checksum, expected) in enumerate([(None, Vnet.DATA_VALID), (0x1234, 0)]):
            payload = IP(src=FAR, dst=NEAR) / UDP(sport=4000 + number, dport=9, chksum=checksum) / Raw(b"x" * 300)
            frame = bytes(ethernet(payload, destination=GUEST, source=STATION))
            wire.send(Ether(frame))
            received = receive(guest, 4000 + number)
            assert received.vnet.flags == expected
            assert received.frame == frame


def receive(guest: Guest, sport: int) -> Any:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        received = guest.recv_with_header(timeout=0.5)
        if received is not None and UDP in (frame := Ether(received.frame)) and frame[UDP].sport == sport:
            return received
    raise AssertionError("the frame did not arrive")


def test_link_events_are_obeyed(lab: Lab) -> None:
    lab.near.wait_ping(FAR)
    lab.standin.set("mlx5_0", "up0", active=0)
    lab.standin.event("mlx5_0", "port_err")
    status = lab.wait_stage("link_down")
    assert "the port of mlx5_0 is not active" in status["detail"]
    before = lab.switch.metrics().drops("up", "tx").get("link_down", 0)
    assert not lab.near.pings(FAR)
    assert lab.switch.metrics().drops("up", "tx")["link_down"] > before
    lab.standin.event("mlx5_0", "gid_change")  # of no concern to us
    lab.standin.set("mlx5_0", "up0", active=1)
    lab.standin.event("mlx5_0", "port_active")
    lab.wait_stage("running")
    lab.near.wait_ping(FAR)


def test_a_lost_device_costs_its_port_only_and_comes_back(lab: Lab) -> None:
    lab.near.wait_ping(FAR)
    attached = lab.status()["counters"]["attached"]
    lab.standin.remove("mlx5_0")
    lab.standin.event("mlx5_0", "fatal")
    status = lab.wait_stage("waiting_for_device")
    wait_until("the reason is told", lambda: "there is no RDMA device mlx5_0" in lab.status()["detail"], 10.0)
    assert status["rings"] == []
    with lab.guest() as guest:  # the others go on
        guest.send(bytes(ethernet(Raw(b"to the host"), destination="ff:ff:ff:ff:ff:ff")))
        wait_until("the guest's frame is forwarded", lambda: GUEST in lab.switch.fdb_macs(), 10.0)
    lab.standin.set("mlx5_0", "up0")
    status = lab.wait_stage("running")
    assert status["counters"]["attached"] == attached + 1
    lab.near.wait_ping(FAR)


@pytest.mark.parametrize("event", ["qp_fatal", "cq_err", "fatal"])
def test_a_failed_queue_is_made_anew(lab: Lab, event: str) -> None:
    attached = lab.status()["counters"]["attached"]
    lab.standin.event("mlx5_0", event)
    wait_until("it was opened again", lambda: lab.status()["counters"]["attached"] == attached + 1, 20.0)
    lab.wait_stage("running")
    lab.near.wait_ping(FAR)


def test_a_frame_longer_than_the_buffers_is_counted_and_survived(lab: Lab) -> None:
    """Hardware stops the queue then. It is made anew."""
    attached = lab.status()["counters"]["attached"]
    for netns, device in ((lab.far, "far0"), (lab.near, "up0")):
        netns.ip("link", "set", device, "mtu", "4000")
    with Wire(lab.far, "far0") as wire:
        wire.send(ethernet(Raw(b"x" * 3000), destination="ff:ff:ff:ff:ff:ff", source=STATION))
        wait_until("it was opened again", lambda: lab.status()["counters"]["attached"] == attached + 1, 20.0)
    assert lab.switch.metrics().drops("up", "rx")["frame_too_long"] >= 1
    lab.near.wait_ping(FAR)


@pytest.mark.parametrize("rss", [1, 0], ids=["spread", "one-receives"])
def test_flows_are_spread_over_queues(folder: Path, rss: int) -> None:
    with make_lab(folder, {"queues": 3}, rss=rss) as lab:
        lab.switch.wait_up("up")
        assert lab.status()["facts"]["receive_queues"] == ("3 of 3" if rss else "1 of 3")
        with Wire(lab.far, "far0") as wire:
            for number in range(64):
                for l3 in (IP(src=FAR, dst=NEAR), IPv6(src="fd09::2", dst="fd09::1")):
                    for l4 in (UDP(sport=2000 + number, dport=9), TCP(sport=2000 + number, dport=9)):
                        wire.send(ethernet(l3 / l4, destination=GUEST, source=STATION))

        def arrived() -> bool:
            return lab.switch.metrics().received("up") >= 256

        wait_until("all frames arrived", arrived, 20.0)
        by_queue = lab.switch.metrics().by("switch_port_receive_frames_total", "queue", port="up")
        assert len(by_queue) == (3 if rss else 1)
        if rss:
            assert min(by_queue.values()) > 30
        lab.near.wait_ping(FAR)
        lab.switch.settle().check_conservation()


def test_steering_by_address_leaves_the_rest_to_the_kernel(folder: Path) -> None:
    with make_lab(folder, {"steering": [GUEST, "02:00:00:00:0e:02"]}) as lab:
        lab.switch.wait_up("up")
        lab.near.address("up0", "10.9.2.1")
        lab.far.ip("address", "add", "10.9.2.2/24", "dev", "far0")
        lab.far.wait_ping("10.9.2.1")  # the kernel's interface works as before
        with lab.guest() as guest, Wire(lab.far, "far0") as wire:
            guest.send(bytes(ethernet(Raw(b"here is the guest"), destination="ff:ff:ff:ff:ff:ff")))
            wire.wait_for(lambda frame: frame.src == GUEST)
            for number, destination in enumerate((STATION[:-1] + "9", GUEST)):
                payload = IP(src=FAR, dst=NEAR) / UDP(sport=5000 + number, dport=9) / Raw(b"steered")
                wire.send(ethernet(payload, destination=destination, source=STATION))
            first = guest.recv_with_header(timeout=10.0)
            while first is not None and UDP not in Ether(first.frame):
                first = guest.recv_with_header(timeout=10.0)
            assert first is not None
            assert Ether(first.frame)[UDP].sport == 5001, "a frame to another address came first"


def test_a_device_that_cannot_be_used_is_explained(lab: Lab) -> None:
    rows = [
        ("mlx5_9", "there is no RDMA device mlx5_9; there are: broken, mlx5_0"),
        ("broken", "open the device broken: Failed to open device broken. Errno: 19, No such device"),
    ]
    lab.standin.set("broken", "nothing9")
    for device, expected in rows:
        status, _, errors = lab.switch.ctl_status("add-port", "verbs", "second", "--device", device)
        assert status == 1
        assert expected in errors
        assert "second" not in {port["name"] for port in lab.switch.ctl("ports")["ports"]}
    lab.standin.remove("broken")


def test_without_any_rdma_device_the_port_says_so(folder: Path) -> None:
    verbs_standin.need_pyverbs(sys.executable)
    with Switchd(folder, []) as switch:
        status, _, errors = switch.ctl_status("add-port", "verbs", "up", "--device", "mlx5_0")
        assert status == 1
        assert "there is no RDMA device mlx5_0; this machine has none" in errors or "there are:" in errors
