# SPDX-License-Identifier: Apache-2.0
"""`swctl capture` at a running switch: what Wireshark's tools read of it, while frames pass and ports come and go."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from switch.testing import Guest
from tests.interop import needs
from tests.interop.process import Process, wait_until
from tests.interop.switchd import Api, Switchd, entry_point, vhost_port

A, B = "52:54:00:00:00:01", "52:54:00:00:00:02"


@pytest.fixture
def lab(folder: Path) -> Iterator[tuple[Switchd, Guest, Guest]]:
    """vm1 is an access port of VLAN 10, vm2 a trunk that carries it."""
    ports = [
        vhost_port("vm1", folder / "vm1.sock", vlan={"access": 10}),
        vhost_port("vm2", folder / "vm2.sock", vlan={"trunk": [10, 20]}),
    ]
    one, two = (Guest(port["socket"]) for port in ports)
    with Switchd(folder, ports) as switch, one, two:
        switch.wait_up("vm1", "vm2")
        yield switch, one, two


def frame(number: int) -> bytes:
    packet = Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=number, dport=9, chksum=0)
    return bytes(packet).ljust(60, b"\0")


def tagged(number: int, vlan: int = 10) -> bytes:
    packet = Ether(frame(number))
    return bytes(Ether(dst=B, src=A) / Dot1Q(vlan=vlan) / packet[IP])


def start(switch: Switchd, folder: Path, *arguments: str) -> Process:
    """swctl capture, which captures when this returns."""
    command = [entry_point("swctl"), "--control", str(switch.control), "capture", *arguments]
    before = plans(switch)
    process = Process(command, folder / f"capture{len(list(folder.glob('capture*')))}")
    wait_until("it captures", lambda: plans(switch) > before or process.status is not None)
    return process


def plans(switch: Switchd) -> int:
    """Every capture makes a new plan."""
    return int(Api(switch.control).ask("GET", "/v1/stats")["plan_generation"])


def test_both_ports_show_the_frame_as_it_is_there(lab: tuple[Switchd, Guest, Guest], folder: Path) -> None:
    switch, one, two = lab
    files = {name: folder / f"{name}.pcapng" for name in ("vm1", "vm2")}
    runs = [start(switch, folder, name, "-w", str(file), "-c", "3") for name, file in files.items()]
    for number in (1, 2, 3):
        one.send(frame(number))
        two.expect(tagged(number))
    for run in runs:
        assert run.wait(20.0) == 0, run.text()
        assert "3 frames captured, 0 missed" in run.text()
    fields = ["frame.interface_name", "frame.packet_flags_direction", "vlan.id", "udp.srcport"]
    options = ["-T", "fields", *(word for field in fields for word in ("-e", field))]
    said = {
        name: subprocess.run([needs.program("tshark", "tshark"), "-n", "-r", str(file), *options],
                             capture_output=True, text=True, check=True).stdout.splitlines()
        for name, file in files.items()
    }  # fmt: skip
    assert said["vm1"] == [f"vm1\t0x00000001\t\t{number}" for number in (1, 2, 3)]
    assert said["vm2"] == [f"vm2\t0x00000002\t10\t{number}" for number in (1, 2, 3)]


def test_dropped_frames_alone_are_told_with_the_reason(lab: tuple[Switchd, Guest, Guest], folder: Path) -> None:
    switch, one, two = lab
    run = start(switch, folder, "vm2", "--drops", "-c", "2")
    one.send(frame(1))
    two.expect(tagged(1))
    two.send(tagged(2, vlan=30))
    two.send(tagged(3, vlan=20))  # nobody else carries it
    assert run.wait(20.0) == 0, run.text()
    lines = run.text().splitlines()
    assert "vlan 30" in lines[0]
    assert lines[0].endswith("[dropped: vlan_not_allowed]")
    assert lines[1].endswith("[dropped: no_destination]")
    drops = {(row["port"], row["reason"]): row["frames"] for row in switch.ctl("drops")["drops"]}
    assert drops["vm2", "vlan_not_allowed"] == drops["vm2", "no_destination"] == 1


def test_a_capture_ends_when_told_with_its_port_and_with_the_switch(
    lab: tuple[Switchd, Guest, Guest], folder: Path
) -> None:
    switch, one, two = lab
    ended, deleted, stopped = (start(switch, folder, name) for name in ("vm1", "vm2", "vm1"))
    one.send(frame(1))
    two.expect(tagged(1))
    wait_until("it is shown", lambda: "10.0.0.1:1 > 10.0.0.2:9 UDP" in ended.text())
    ended.signal(signal.SIGTERM)  # SIGINT may be ignored here, as in any background job
    assert ended.wait(20.0) == 0
    assert "1 frames captured, 0 missed" in ended.text()
    switch.ctl("del-port", "vm2")
    assert deleted.wait(20.0) == 0
    switch.stop()
    stopped.wait(20.0)
    assert "1 frames captured" in stopped.text()
