# SPDX-License-Identifier: Apache-2.0
"""Taps through vhost-net, on a machine whose kernel has it: frame by frame, and as switchd with stations.

A Linux guest beside the machine visits the stations. Its frames pass a switch here, the machine's interface, and the
switch in the machine with its tap: both ends' virtio drivers are Linux's own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interop import needs
from tests.interop.guest_image import Image
from tests.interop.machine import Done, Machine
from tests.interop.process import wait_until
from tests.interop.qemu import Guest, Nic
from tests.interop.switchd import Switchd, vhost_port
from tests.support import verbs_standin

pytestmark = [pytest.mark.interop, pytest.mark.emulated, pytest.mark.timeout(900)]

TEST_PORT = needs.ROOT / "build/asan/test_port"
SCRIPT = """
setarch -R {test_port} --no-colors --test-case='vhost-net:*' >{folder}/test_port.log 2>&1
echo $? >{folder}/test_port.status
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 SWITCH_MATRIX={stations}
python -m pytest -q -p pytest_timeout -p no:cacheprovider -k vhost tests/system/test_offload_matrix.py \
    >{folder}/matrix.log 2>&1
echo $? >{folder}/matrix.status
python -m tests.interop.inside.vhost_net {folder}
"""
# Of tests/system/test_offload_matrix.py; frames between those without vhost-net need none.
MATRIX = ("guest", "guest-plain", "tap", "afpacket", "afxdp", "verbs", "verbs-jumbo", "tap-vhost", "tap-vhost-plain")
MATRIX_TESTS = 30 + 4  # pairs, and rows of MTUs


STATIONS = {"with-offloads": "10.9.1.1", "without-offloads": "10.9.1.2"}


@dataclass
class Visit:
    """What the guest saw of one station."""

    pings: bool
    said: dict[str, dict[str, Any]] = field(default_factory=dict)  # iperf3's end, by its options


@dataclass
class Seen:
    done: Done
    folder: Path
    visits: dict[str, Visit]


def visit(guest: Guest, address: str) -> Visit:
    guest.wait_ping(address, 60)
    seen = Visit(guest.pings(address, 3))
    for options in ("-n 300K", "-n 300K -R", "-u -b 2M -l 1400 -n 100K -w 200K", "-u -b 2M -l 1400 -n 100K -w 200K -R"):
        seen.said[options] = json.loads(guest.run(f"iperf3 -J -c {address} {options}", 60))["end"]
    return seen


@pytest.fixture(scope="module")
def seen(module_folder: Path, image: Image) -> Seen:
    """One boot for all tests; a machine is slow to start."""
    needs.root("network namespaces are made there")
    for name, package in (("ip", "iproute2"), ("ss", "iproute2"), ("iperf3", "iperf3")):
        needs.program(name, package)
    if not TEST_PORT.exists():
        needs.lacking("the C++ tests are not built", "cmake --preset asan && cmake --build --preset asan")
    verbs_standin.need_pyverbs(sys.executable)
    verbs_standin.build()  # here, where a compiler is not emulated
    here = Machine(["tun", "vhost_net", "veth", "virtio_net"])
    script = SCRIPT.format(test_port=TEST_PORT, folder=module_folder, stations=",".join(MATRIX))
    nics = {
        name: Nic(module_folder / f"{name}.sock", f"52:54:00:00:0a:0{i}") for i, name in enumerate(("vm1", "machine"))
    }
    with Switchd(module_folder, [vhost_port(name, nic.socket) for name, nic in nics.items()]):
        process = here.start(script, module_folder, nic=nics["machine"])

        def ready() -> bool:
            process.check()
            return (module_folder / "ready").exists()

        try:
            with Guest(image, nics["vm1"], module_folder, "vm1") as guest:
                guest.wait_booted()
                guest.address("10.9.1.9")
                wait_until("the stations are ready", ready, 400)
                visits = {name: visit(guest, address) for name, address in STATIONS.items()}
            (module_folder / "finished").touch()
        except BaseException:
            process.kill()  # or it runs on beside all later tests
            raise
        return Seen(here.finish(process, module_folder, 400), module_folder, visits)


def test_frames_pass_vhost_net_unchanged(seen: Seen) -> None:
    """tests/cpp/port/tap_vhost_test.cc, the part that skips where there is no vhost-net, under ASan and UBSan."""
    said = (seen.folder / "test_port.log").read_text()
    assert (seen.folder / "test_port.status").read_text().strip() == "0", said[-4000:]
    assert "skipped:" not in said, said


def test_what_was_left_open_arrives_open_or_finished_through_vhost_net(seen: Seen) -> None:
    said = (seen.folder / "matrix.log").read_text()
    assert (seen.folder / "matrix.status").read_text().strip() == "0", said[-6000:]
    assert f"{MATRIX_TESTS} passed" in said, said[-2000:]


def test_stations_behind_vhost_net_reach_all_others(seen: Seen) -> None:
    """tests/interop/inside/vhost_net.py: TCP, UDP, checksums, counters, ports that come and go."""
    done, log = seen.done, seen.folder / "inner-switchd.log"
    assert done.status == 0, f"{done.output[-4000:]}\n{log.read_text()[-2000:] if log.exists() else ''}"
    for line in (
        "a visitor was served",
        "every frame is accounted for",
        "kicks",
        "came and went under traffic",
        "done",
    ):
        assert line in done.output


@pytest.mark.parametrize("station", STATIONS)
def test_a_guest_and_a_station_behind_vhost_net_exchange_ping_tcp_and_udp(seen: Seen, station: str) -> None:
    """Both ways. That the station found no wrong checksum is tested where it is counted, in the machine."""
    found = seen.visits[station]
    assert found.pings
    for options, end in found.said.items():
        if "-u" in options:
            assert end["sum"]["packets"] >= 70, f"{options}: {end['sum']}"
            assert end["sum"]["lost_packets"] == 0, f"{options}: {end['sum']}"
        else:
            # iperf3's server counts what it has read when the client is done, not what is still in its socket.
            assert end["sum_sent"]["bytes"] >= 300_000, f"{options}: {end}"
            assert end["sum_received"]["bytes"] > 10_000, f"{options}: {end}"
