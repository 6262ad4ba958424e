# SPDX-License-Identifier: Apache-2.0
"""A Linux guest meets the host: an address on a TAP of the switch, and one behind a veth cable in another namespace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.guest_image import Image
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until
from tests.interop.qemu import Guest, Nic
from tests.interop.switchd import Switchd, vhost_port

pytestmark = [pytest.mark.interop, pytest.mark.netns, pytest.mark.timeout(180)]

GUEST, TAP, FAR = "10.8.0.1", "10.8.0.2", "10.8.0.3"


@dataclass
class Lab:
    switch: Switchd
    guest: Guest
    home: Netns  # where the switch runs, with the TAP and its end of the cable
    far: Netns  # where the cable goes


@pytest.fixture(scope="module")
def lab(module_folder: Path, image: Image, cpus: tuple[int, int]) -> Iterator[Lab]:
    with Netns() as home, Netns() as far:
        home.veth("up0", far, "far0")
        far.address("far0", FAR)
        ports = [
            vhost_port("vm1", module_folder / "vm1.sock"),
            {"name": "host", "type": "tap", "device": "tap0"},
            {"name": "uplink", "type": "afpacket", "device": "up0"},
        ]
        with (
            Switchd(module_folder, ports, prefix=home.prefix()) as switch,
            Guest(image, Nic(module_folder / "vm1.sock", "52:54:00:00:08:01"), module_folder, "vm1", cpus[1]) as guest,
        ):
            home.address("tap0", TAP)
            guest.wait_booted()
            guest.address(GUEST)
            switch.wait_up("vm1", "host", "uplink")
            yield Lab(switch, guest, home, far)


@pytest.mark.parametrize("address", [TAP, FAR], ids=["tap", "afpacket"])
def test_a_guest_pings_the_host(lab: Lab, address: str) -> None:
    lab.guest.wait_ping(address)
    lab.guest.run(f"ping -c 10 -i 0.1 {address}")
    lab.switch.settle().check_conservation()


def test_two_kernel_ports_reach_each_other(lab: Lab) -> None:
    lab.home.wait_ping(FAR)
    lab.far.wait_ping(TAP)


@pytest.mark.parametrize("reverse", [False, True], ids=["to", "from"])
@pytest.mark.parametrize("where", ["tap", "afpacket"])
def test_tcp_flows_between_guest_and_host(lab: Lab, folder: Path, where: str, reverse: bool) -> None:
    """Checksums and large segments that one side leaves open are finished for the other."""
    namespace, address = (lab.home, TAP) if where == "tap" else (lab.far, FAR)
    lab.guest.wait_ping(address)
    server = Process([*namespace.prefix(), needs.program("iperf3", "iperf3"), "-s", "-1"], folder / "iperf3.log")
    try:
        wait_until("iperf3 listens", lambda: ":5201" in namespace.run("ss", "-ltn"), 10.0)
        lab.guest.run(f"iperf3 -c {address} -n 4M {'-R' if reverse else ''}", 60.0)
    finally:
        server.stop()


def test_a_device_that_goes_away_comes_back(lab: Lab) -> None:
    lab.guest.wait_ping(FAR)
    lab.home.ip("link", "set", "up0", "down")
    wait_until("the port is down", lambda: not lab.switch.metrics().up("uplink"), 10.0)
    assert lab.guest.pings(TAP), "the others are not disturbed"
    lab.home.ip("link", "set", "up0", "up")
    lab.guest.wait_ping(FAR)
