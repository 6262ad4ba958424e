# SPDX-License-Identifier: Apache-2.0
"""AF_XDP ports on veth cables: two hosts and a Linux guest meet through them; tshark looks at what is on the wire.

SWITCH_CHURN=1000 makes the churn test long.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
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

LEFT, RIGHT, GUEST = "10.7.0.1", "10.7.0.2", "10.7.0.3"


@dataclass
class Lab:
    switch: Switchd
    home: Netns  # where the switch runs, with up0, up1 and up2
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

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """One request to the control socket; a thousand of them in the time of a few swctl."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(self.switch.control))
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
        finally:
            connection.close()


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with Netns() as home, Netns() as left, Netns() as right, Netns() as spare:
        home.veth("up0", left, "far0")
        home.veth("up1", right, "far1")
        home.veth("up2", spare, "far2")
        left.address("far0", LEFT)
        right.address("far1", RIGHT)
        ports = [
            {"name": "left", "type": "afxdp", "device": "up0", "bridge": "br0"},
            {"name": "right", "type": "afxdp", "device": "up1", "bridge": "br0"},
            vhost_port("vm1", module_folder / "vm1.sock", bridge="br0"),
        ]
        bridges = [{"name": "br0"}, {"name": "br1"}]
        with Switchd(module_folder, ports, prefix=home.prefix(), bridges=bridges) as switch:
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


def bad_and_good(file: Path) -> tuple[list[str], int]:
    """Frames of a capture with a wrong checksum, and how many had a right one."""
    command = [
        needs.program("tshark", "tshark"), "-r", str(file), "-n",
        "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
        "-T", "fields", "-e", "ip.src", "-e", "ip.dst", "-e", "ip.checksum.status",
        "-e", "tcp.checksum.status", "-e", "udp.checksum.status",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.strip()]
    bad = [" ".join(row) for row in rows if row[2] == "0" or "0" in row[3:5]]
    return bad, sum(1 for row in rows if "1" in row[3:5])


def test_every_checksum_on_the_wire_is_right(lab: Lab, folder: Path) -> None:
    """The sender leaves them open (its veth promises to finish them), and AF_XDP says nothing of it."""
    lab.left.wait_ping(RIGHT)
    assert "tx-checksum-ip-generic: on" in lab.left.run(needs.program("ethtool", "ethtool"), "-k", "far0")
    file = folder / "wire.pcapng"
    capture = [needs.program("tshark", "tshark"), "-i", "far1", "-q", "-w", str(file), "-f", f"src host {LEFT}"]
    watch = Process([*lab.right.prefix(), *capture], folder / "tshark.log")
    try:
        wait_until("tshark captures", lambda: "Capturing on" in watch.text() and file.exists(), 20.0)
        lab.iperf(lab.left, lab.right, RIGHT, "-n", "2M")
        lab.iperf(lab.left, lab.right, RIGHT, "-u", "-b", "20M", "-n", "200K")
    finally:
        watch.signal(signal.SIGINT)
        watch.wait(20.0)
    bad, good = bad_and_good(file)
    assert not bad, bad[:10]
    assert good > 1000


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


def test_a_cable_that_is_pulled_comes_back(lab: Lab) -> None:
    lab.left.wait_ping(RIGHT)
    lab.home.ip("link", "delete", "up1")
    wait_until("the port is down", lambda: not lab.switch.metrics().up("right"), 10.0)
    lab.home.veth("up1", lab.right, "far1")
    lab.right.address("far1", RIGHT)
    lab.switch.wait_up("left", "right")
    lab.left.ip("neighbour", "flush", "all")
    lab.left.wait_ping(RIGHT)


def kept(process: Process) -> dict[str, int]:
    """What a leak would add to."""
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    links = [str(entry.readlink()) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
    return {
        "memory": maps.count("afxdp-frames"),
        "rings": maps.count("[xsk]") + maps.count("socket:["),
        "bpf": sum(1 for link in links if "bpf" in link),
        "descriptors": len(links),
    }


@pytest.mark.timeout(900)
def test_ports_come_and_go_under_traffic_and_leave_nothing(lab: Lab) -> None:
    rounds = int(os.environ.get("SWITCH_CHURN", "40"))
    assert lab.switch.process is not None
    lab.left.wait_ping(RIGHT)
    busybox = needs.program("busybox", "busybox-static")
    before = kept(lab.switch.process)
    lost = Process([*lab.left.prefix(), busybox, "ping", "-i", "0.02", RIGHT], lab.folder / "ping.log")
    try:
        for _ in range(rounds):
            lab.api("POST", "/v1/ports", {"name": "extra", "type": "afxdp", "device": "up2", "bridge": "br1"})
            lab.api("DELETE", "/v1/ports/extra")
    finally:
        lost.signal(signal.SIGINT)
        lost.wait(10.0)
    found = re.search(r"(\d+) packets transmitted, (\d+) packets received", lost.text())
    assert found, lost.text()[-500:]
    assert int(found[1]) - int(found[2]) <= 1, "one may be on its way at the end"
    assert kept(lab.switch.process) == before
    assert "prog/xdp" not in lab.home.ip("-d", "link", "show", "up2")


def test_a_killed_switch_leaves_no_program_and_starts_again(lab: Lab) -> None:
    lab.left.wait_ping(RIGHT)
    assert lab.switch.process is not None
    assert "prog/xdp" in lab.home.ip("-d", "link", "show", "up0")
    lab.switch.process.kill()
    assert "prog/xdp" not in lab.home.ip("-d", "link", "show", "up0")
    lab.switch.start()
    lab.switch.wait_up("left", "right")
    lab.left.wait_ping(RIGHT)


def test_a_guest_exchanges_tcp_with_a_host(lab: Lab, image: Image, cpus: tuple[int, int]) -> None:
    nic = Nic(lab.folder / "vm1.sock", "52:54:00:00:07:01")
    with Guest(image, nic, lab.folder, "vm1", cpus[1]) as guest:
        guest.wait_booted()
        guest.address(GUEST)
        guest.wait_ping(RIGHT)
        for direction in ("", "-R"):
            server = lab.server(lab.right)
            try:
                guest.run(f"iperf3 -c {RIGHT} -n 4M {direction}", 60.0)
            finally:
                server.stop()
    lab.switch.settle().check_conservation()
