# SPDX-License-Identifier: Apache-2.0
"""Two host interfaces, a TAP and a veth cable, meet through the switch.

What the host's own stack leaves open (checksums, large segments, VLAN tags) arrives as the other side can take it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.interop.netns import Netns
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd
from tests.support.wire import Wire

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

NEAR, FAR = "10.9.0.1", "10.9.0.2"
TRANSFER = 8 << 20  # bytes of one TCP transfer

SERVER = """
import hashlib, socket, sys
s = socket.create_server((sys.argv[1], 5001)); s.settimeout(60)
print("ready", flush=True)
c, _ = s.accept(); c.settimeout(60); digest = hashlib.sha256(); n = 0
while chunk := c.recv(1 << 16):
    digest.update(chunk); n += len(chunk)
print(n, digest.hexdigest())
"""
CLIENT = """
import random, socket, sys
c = socket.create_connection((sys.argv[1], 5001), timeout=60)
c.sendall(random.Random(int(sys.argv[2])).randbytes(int(sys.argv[3])))
c.shutdown(socket.SHUT_WR); c.recv(1)
"""

UDP_SENDER = """
import itertools, socket, sys, time
s = socket.socket(socket.AF_INET if sys.argv[1] == "4" else socket.AF_INET6, socket.SOCK_DGRAM)
for i in itertools.count():
    s.sendto(b"odd" * (i % 50 + 1), (sys.argv[2], 9)); time.sleep(0.02)
"""


@dataclass
class Lab:
    switch: Switchd
    near: Netns  # where the switch runs, with tap0
    far: Netns  # the other end of the cable, far0

    def transfer(self, to_far: bool, seed: int) -> None:
        """Random bytes over TCP from one host to the other; they must arrive as they were sent."""
        source, sink, address = (self.near, self.far, FAR) if to_far else (self.far, self.near, NEAR)
        command = [*sink.prefix(), sys.executable, "-c", SERVER, address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                source.run(sys.executable, "-c", CLIENT, address, str(seed), str(TRANSFER), seconds=60.0)
                size, digest = server.stdout.readline().split()
            finally:
                server.kill()
        assert int(size) == TRANSFER
        assert digest == hashlib.sha256(random.Random(seed).randbytes(TRANSFER)).hexdigest()


@contextlib.contextmanager
def make_lab(folder: Path, tap: dict[str, Any] | None = None, uplink: dict[str, Any] | None = None) -> Iterator[Lab]:
    with Netns() as near, Netns() as far:
        near.veth("up0", far, "far0")
        far.address("far0", FAR)
        ports = [
            {"name": "host", "type": "tap", "device": "tap0", **(tap or {})},
            {"name": "uplink", "type": "afpacket", "device": "up0", **(uplink or {})},
        ]
        with Switchd(folder, ports, prefix=near.prefix()) as switch:
            near.address("tap0", NEAR)
            switch.wait_up("host", "uplink")
            yield Lab(switch, near, far)


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with make_lab(module_folder) as made:
        yield made


@pytest.fixture
def plain_lab(folder: Path) -> Iterator[Lab]:
    """Neither port takes offloads: what enters with open ends must leave finished."""
    with make_lab(folder, {"offloads": False}, {"offloads": False}) as made:
        yield made


@pytest.mark.parametrize("to_far", [True, False], ids=["tap-to-cable", "cable-to-tap"])
def test_tcp_arrives_unchanged_and_in_large_frames(lab: Lab, to_far: bool) -> None:
    lab.near.wait_ping(FAR)
    source = "host" if to_far else "uplink"
    sink = "uplink" if to_far else "host"
    before = lab.switch.settle()
    lab.transfer(to_far, seed=1)
    after = lab.switch.settle()
    after.check_conservation()
    count = after.received(source) - before.received(source)
    name = "switch_port_receive_bytes_total"
    size = (after.sum(name, port=source) - before.sum(name, port=source)) / count
    assert size > 1514, f"frames of {size:.0f} bytes: segmentation was not left to the last hop"
    assert after.sum("switch_port_segmented_frames_total", port=sink) == 0


def test_what_a_peer_does_not_take_is_finished_for_it(plain_lab: Lab) -> None:
    """The veth's sender leaves checksums and segmentation open; the TAP of this lab wants whole frames."""
    lab = plain_lab
    lab.near.wait_ping(FAR)
    with Wire(lab.near, "tap0") as wire:
        thread = threading.Thread(target=lab.transfer, args=(False, 2))
        thread.start()
        seen = 0
        deadline = time.monotonic() + 30
        while seen < 200 and time.monotonic() < deadline:
            frame = wire.receive()
            if frame is None or TCP not in frame or frame[IP].src != FAR:
                continue
            seen += 1
            assert len(frame) <= 1514
            check_checksums(frame)
        thread.join()
        assert seen == 200
    after = lab.switch.settle()
    after.check_conservation()
    assert after.sum("switch_port_segmented_frames_total", port="host") > 1000
    assert "offload_unsupported" not in after.drops("host")
    lab.transfer(True, seed=3)


def check_checksums(frame: Packet) -> None:
    """scapy computes the checksums anew; they must be the ones that came."""
    copy = Ether(bytes(frame))
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (UDP, "chksum")):
        if layer in copy:
            delattr(copy[layer], field)
    again = Ether(bytes(copy))
    for layer in (IP, TCP, UDP):
        if layer in frame:
            assert again[layer].chksum == frame[layer].chksum, frame.summary()


@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksums_are_finished(plain_lab: Lab, version: int) -> None:
    lab = plain_lab
    address = FAR if version == 4 else "fd09::2"
    if version == 6:
        for netns, device, own in ((lab.near, "tap0", "fd09::1"), (lab.far, "far0", "fd09::2")):
            netns.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6")
            netns.ip("address", "add", f"{own}/64", "dev", device, "nodad")
    source = NEAR if version == 4 else "fd09::1"
    layer = IP if version == 4 else IPv6

    def wanted(frame: Packet) -> bool:
        return UDP in frame and layer in frame and frame[layer].src == source and frame[UDP].dport == 9

    # For as long as it is looked at: what is sent before the neighbour is known, or while the machine is busy, is lost.
    command = [*lab.near.prefix(), sys.executable, "-c", UDP_SENDER, str(version), address]
    with Wire(lab.far, "far0") as wire, subprocess.Popen(command) as sender:
        try:
            sizes: set[int] = set()
            while len(sizes) < 8:
                frame = wire.wait_for(wanted, 30.0)
                check_checksums(frame)
                sizes.add(frame[UDP].len)
        finally:
            sender.kill()


def test_an_access_port_and_a_trunk_meet(folder: Path) -> None:
    with make_lab(folder, {"vlan": {"access": 10}}, {"vlan": {"trunk": [10, 20]}}) as lab:
        station, other = "52:54:00:00:09:01", "52:54:00:00:09:02"
        payload = Raw(b"x" * 60)
        with Wire(lab.near, "tap0") as near, Wire(lab.far, "far0") as far:
            tagged = Ether(src=other, dst="ff:ff:ff:ff:ff:ff", type=0x8100) / Dot1Q(vlan=10, prio=3, type=0x88B5)
            far.send(tagged / payload)
            got = near.wait_for(lambda frame: frame.src == other)
            assert got.type == 0x88B5
            assert bytes(got.payload) == bytes(payload)

            near.send(Ether(src=station, dst=other, type=0x88B5) / payload)
            got = far.wait_for(lambda frame: frame.src == station)
            assert got[Dot1Q].vlan == 10
            assert bytes(got[Dot1Q].payload) == bytes(payload)

            wrong = Ether(src=other, dst=station, type=0x8100) / Dot1Q(vlan=20, type=0x88B5) / payload
            far.send(wrong)
            untagged = Ether(src=other, dst=station, type=0x88B5) / payload
            far.send(untagged)
            far.send(Ether(src=other, dst=station, type=0x8100) / Dot1Q(vlan=10, type=0x88B6) / payload)
            assert near.wait_for(lambda frame: frame.src == other).type == 0x88B6
        lab.switch.settle().check_conservation()


def test_an_mtu_of_the_destination_is_kept(folder: Path) -> None:
    with make_lab(folder, uplink={"mtu": 1000}) as lab:
        lab.near.wait_ping(FAR)
        with Wire(lab.near, "tap0") as near, Wire(lab.far, "far0") as far:
            for size in (986, 987, 60):  # of payload behind 14 bytes of header and 14 of the test's own
                near.send(
                    Ether(src="52:54:00:00:09:03", dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / Raw(os.urandom(size + 14))
                )

            def own(frame: Packet) -> bool:
                return bool(frame.src == "52:54:00:00:09:03")

            assert len(far.wait_for(own)) == 1014
            assert len(far.wait_for(own)) == 88
        after = lab.switch.settle()
        assert after.drops("uplink", "tx") == {"mtu_exceeded": 1}
        after.check_conservation()


def test_a_deleted_tap_and_a_lost_cable_come_back(folder: Path) -> None:
    with make_lab(folder) as lab:
        lab.near.wait_ping(FAR)
        lab.near.ip("link", "delete", "tap0")
        wait_until("the TAP is made again", lambda: "tap0" in lab.near.run("cat", "/proc/net/dev"), 10.0)
        lab.near.address("tap0", NEAR)
        lab.near.wait_ping(FAR)
        lab.near.ip("link", "delete", "up0")
        wait_until("the port is down", lambda: not lab.switch.metrics().up("uplink"), 10.0)
        lab.near.veth("up0", lab.far, "far0")
        lab.far.address("far0", FAR)
        lab.switch.wait_up("host", "uplink")
        lab.near.ip("neighbour", "flush", "all")  # the new interface has a new address
        lab.near.wait_ping(FAR)
        lab.transfer(True, seed=4)
        lab.switch.settle().check_conservation()
