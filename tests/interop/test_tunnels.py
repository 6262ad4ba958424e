# SPDX-License-Identifier: Apache-2.0
"""A host whose kernel makes a tunnel and leaves segments and checksums inside it to the device: behind AF_PACKET they
come as they are, with nothing that says "tunnel". Whoever is behind the other port gets what a wire may carry.
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

LEFT = "10.7.0.1"
SINKS: dict[str, dict[str, Any]] = {
    "afpacket": {"type": "afpacket"},  # its kernel takes large segments, but not those: it would drop them
    "afpacket-plain": {"type": "afpacket", "offloads": False},
    "afxdp": {"type": "afxdp"},
    "tap": {"type": "tap"},
}


@dataclass
class Lab:
    switch: Switchd
    left: Netns
    rights: dict[str, tuple[Netns, str]]  # by name of the port: who is behind it, and its address
    folder: Path


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with Netns() as home, Netns() as left, Netns() as one, Netns() as two, Netns() as three:
        home.veth("up0", left, "far0")
        left.address("far0", LEFT)
        ports: list[dict[str, Any]] = [{"name": "left", "type": "afpacket", "device": "up0"}]
        rights = {}
        for number, (name, keys) in enumerate(SINKS.items(), 1):
            address = f"10.7.0.{1 + number}"
            if keys["type"] == "tap":
                ports.append({"name": name, "device": "tap0", **keys})
                rights[name] = (home, address)
                continue
            host = (one, two, three)[number - 1]
            home.veth(f"up{number}", host, f"far{number}")
            host.address(f"far{number}", address)
            ports.append({"name": name, "device": f"up{number}", **keys})
            rights[name] = (host, address)
        with Switchd(module_folder, ports, prefix=home.prefix()) as switch:
            switch.wait_up("left", *SINKS)
            home.address("tap0", rights["tap"][1])
            yield Lab(switch, left, rights, module_folder)


def iperf(lab: Lab, sink: Netns, *options: str) -> dict[str, Any]:
    program = needs.program("iperf3", "iperf3")
    server = Process([*sink.prefix(), program, "-s", "-1"], lab.folder / "iperf3.log")
    try:
        wait_until("iperf3 listens", lambda: ":5201" in sink.run("ss", "-ltn"), 10.0)
        said = lab.left.run(program, "-J", "-c", INNER[1], *options, seconds=60.0)
    finally:
        server.stop()
    end: dict[str, Any] = json.loads(said)["end"]
    return end


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("outer", ["noudpcsum", "udpcsum"])
def test_what_a_kernel_left_open_inside_its_tunnel_is_finished(lab: Lab, sink: str, outer: str) -> None:
    host, address = lab.rights[sink]
    lab.left.wait_ping(address)
    before = [checksum_errors(end) for end in (lab.left, host)]
    cut = lab.switch.metrics().segmented(sink)
    with vxlan((lab.left, host), (LEFT, address), outer):
        lab.left.wait_ping(INNER[1])
        for direction in ([], ["-R"]):
            sent = iperf(lab, host, "-n", "8M", *direction)
            assert sent["sum_sent"]["bytes"] >= 8 << 20
        sent = iperf(lab, host, "-u", "-b", "20M", "-n", "1M")
        assert sent["sum"]["lost_packets"] < sent["sum"]["packets"] / 2
    assert lab.switch.metrics().segmented(sink) > cut, "large segments came, and pieces left"
    assert [checksum_errors(end) for end in (lab.left, host)] == before
    metrics = lab.switch.settle()
    metrics.check_conservation()
    assert "offload_unsupported" not in metrics.drops(sink)
