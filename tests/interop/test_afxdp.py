# SPDX-License-Identifier: Apache-2.0
"""AF_XDP ports on veth cables: what they say of themselves, and two hosts that meet through them.

A guest meets a host through such a port in test_kernel_ports.py, where tshark looks at what is on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop import needs
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until
from tests.interop.switchd import Switchd
from tests.interop.tunnel import INNER, checksum_errors, vxlan

pytestmark = [pytest.mark.interop, pytest.mark.netns, pytest.mark.timeout(180)]

LEFT, RIGHT = "10.7.0.1", "10.7.0.2"
INNER_RIGHT = INNER[1]


@dataclass
class Lab:
    switch: Switchd
    home: Netns  # where the switch runs, with up0 and up1
    left: Netns  # the other end of up0
    right: Netns  # the other end of up1
    folder: Path

    def iperf(self, source: Netns, sink: Netns, address: str, *options: str) -> dict[str, Any]:
        """One run from `source` to `sink`; what the client says at the end."""
        server = self.server(sink)
        try:
            said = source.run(needs.program("iperf3", "iperf3"), "-J", "-c", address, *options, seconds=60.0)
        finally:
            server.stop()
        end: dict[str, Any] = json.loads(said)["end"]
        return end

    def server(self, sink: Netns) -> Process:
        process = Process([*sink.prefix(), needs.program("iperf3", "iperf3"), "-s", "-1"], self.folder / "iperf3.log")
        wait_until("iperf3 listens", lambda: ":5201" in sink.run("ss", "-ltn"), 10.0)
        return process


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with Netns() as home, Netns() as left, Netns() as right:
        home.veth("up0", left, "far0")
        home.veth("up1", right, "far1")
        left.address("far0", LEFT)
        right.address("far1", RIGHT)
        ports = [
            {"name": "left", "type": "afxdp", "device": "up0"},
            {"name": "right", "type": "afxdp", "device": "up1"},
        ]
        with Switchd(module_folder, ports, prefix=home.prefix()) as switch:
            switch.wait_up("left", "right")
            yield Lab(switch, home, left, right, module_folder)


def test_the_port_says_what_it_got(lab: Lab) -> None:
    port = lab.switch.ctl("port", "left")
    said = json.dumps(port)
    assert "in the driver" in said
    assert "the driver has no zero-copy" in said  # veth has none
    assert "rxvlan off" in said
    assert "unfinished ones of local senders are finished" in said


def test_two_hosts_exchange_tcp_and_udp(lab: Lab) -> None:
    lab.left.wait_ping(RIGHT)
    lab.right.wait_ping(LEFT)
    for direction in ([], ["-R"]):
        sent = lab.iperf(lab.left, lab.right, RIGHT, "-n", "16M", *direction)
        assert sent["sum_sent"]["bytes"] >= 16 << 20
        assert sent["sum_received"]["bytes"] > 1 << 20, "what had arrived when the sender was done"
    sent = lab.iperf(lab.left, lab.right, RIGHT, "-u", "-b", "20M", "-n", "1M")
    assert sent["sum"]["packets"] > 0
    assert sent["sum"]["lost_packets"] < sent["sum"]["packets"] / 2
    lab.switch.settle().check_conservation()


@pytest.mark.parametrize("outer", ["noudpcsum", "udpcsum"])
def test_tcp_and_udp_inside_a_tunnel_of_the_hosts(lab: Lab, outer: str) -> None:
    lab.left.wait_ping(RIGHT)
    before = [checksum_errors(host) for host in (lab.left, lab.right)]
    with vxlan((lab.left, lab.right), (LEFT, RIGHT), outer):
        lab.left.wait_ping(INNER_RIGHT)
        for direction in ([], ["-R"]):
            sent = lab.iperf(lab.left, lab.right, INNER_RIGHT, "-n", "8M", *direction)
            assert sent["sum_sent"]["bytes"] >= 8 << 20
        sent = lab.iperf(lab.left, lab.right, INNER_RIGHT, "-u", "-b", "20M", "-n", "1M")
        assert sent["sum"]["lost_packets"] < sent["sum"]["packets"] / 2
    assert [checksum_errors(host) for host in (lab.left, lab.right)] == before
    lab.switch.settle().check_conservation()


@pytest.mark.parametrize("outer", ["noudpcsum", "udpcsum"])
def test_generic_xdp_hands_over_uncut_packets_of_a_tunnel_and_they_are_cut(lab: Lab, outer: str) -> None:
    """A bridge has no XDP of its own: its frames come before anybody cut them."""
    lab.home.ip("link", "add", "between", "type", "bridge")
    lab.home.ip("link", "set", "between", "up")
    lab.home.veth("up2", lab.left, "far2")
    lab.home.ip("link", "set", "up2", "master", "between")
    lab.left.address("far2", "10.9.0.1")
    lab.right.ip("address", "add", "10.9.0.2/24", "dev", "far1")
    lab.switch.ctl("add-port", "afxdp", "generic", "--device", "between")
    try:
        lab.switch.wait_up("generic")
        lab.left.wait_ping("10.9.0.2")
        errors = [checksum_errors(host) for host in (lab.left, lab.right)]
        with vxlan((lab.left, lab.right), ("10.9.0.1", "10.9.0.2"), outer):
            lab.left.wait_ping(INNER_RIGHT)
            cut = lab.switch.metrics().segmented("right")
            sent = lab.iperf(lab.left, lab.right, INNER_RIGHT, "-n", "8M")
            assert sent["sum_sent"]["bytes"] >= 8 << 20
            assert lab.switch.metrics().segmented("right") > cut
            assert lab.switch.ctl("port", "generic")["drops"]["rx"].get("frame_too_long", 0) == 0
        assert [checksum_errors(host) for host in (lab.left, lab.right)] == errors
    finally:
        lab.switch.ctl("del-port", "generic")
        lab.right.ip("address", "del", "10.9.0.2/24", "dev", "far1")
        lab.home.ip("link", "del", "up2")
        lab.home.ip("link", "del", "between")


def test_without_the_repair_tcp_fails(lab: Lab) -> None:
    """So that the tests before this one mean something."""
    lab.left.wait_ping(RIGHT)
    lab.switch.ctl("set-port", "left", "--checksum", "trust")
    try:
        lab.switch.wait_up("left")
        lab.left.wait_ping(RIGHT)
        server = lab.server(lab.right)
        try:
            with pytest.raises(AssertionError):
                lab.left.run(needs.program("iperf3", "iperf3"), "-c", RIGHT, "-n", "1K", "--connect-timeout", "1500")
        finally:
            server.stop()
    finally:
        lab.switch.ctl("set-port", "left", "--checksum", "auto")
    lab.switch.wait_up("left")


def test_a_killed_switch_leaves_no_program_and_starts_again(lab: Lab) -> None:
    lab.left.wait_ping(RIGHT)
    assert lab.switch.process is not None
    assert "prog/xdp" in lab.home.ip("-d", "link", "show", "up0")
    lab.switch.process.kill()
    assert "prog/xdp" not in lab.home.ip("-d", "link", "show", "up0")
    lab.switch.start()
    lab.switch.wait_up("left", "right")
    lab.left.wait_ping(RIGHT)
