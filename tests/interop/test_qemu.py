# SPDX-License-Identifier: Apache-2.0
"""Linux guests under QEMU: what an administrator does to a virtual machine, traffic returning by itself each time.

Three guests, booted once: vm1 (split rings, two queue pairs, the switch owns the socket), vm2 (packed rings, QEMU owns
the socket) and vm3 (no offloads, no mergeable buffers: what vm1 leaves to its peer, the switch must finish).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.guest_image import Image
from tests.interop.process import wait_until
from tests.interop.qemu import Guest, Nic
from tests.interop.switchd import Switchd, vhost_port

pytestmark = [pytest.mark.interop, pytest.mark.emulated, pytest.mark.timeout(240)]

PLAIN = (
    ",csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off"
    ",host_tso6=off,host_ecn=off,host_ufo=off,mrg_rxbuf=off"
)
ADDRESS = {"vm1": "10.7.0.1", "vm2": "10.7.0.2", "vm3": "10.7.0.3"}


@dataclass
class Lab:
    """The switch and its guests; replaceable, since tests kill them."""

    folder: Path
    image: Image
    switch: Switchd
    guests: dict[str, Guest]

    def nic(self, name: str) -> Nic:
        path, mac = self.folder / f"{name}.sock", f"52:54:00:00:00:0{name[-1]}"
        if name == "vm1":
            return Nic(path, mac, queues=2)
        return Nic(path, mac, packed=True, server=True) if name == "vm2" else Nic(path, mac, options=PLAIN)

    def boot(self, name: str) -> None:
        self.guests[name] = Guest(self.image, self.nic(name), self.folder, name)

    def ready(self, name: str) -> None:
        self.guests[name].wait_booted()
        self.guests[name].address(ADDRESS[name])

    def gone(self, name: str) -> None:
        """Kill a guest and wait until the switch has noticed."""
        guest = self.guests[name]
        guest.process.kill()
        guest.close()
        wait_until(f"the switch sees {name} gone", lambda: not self.switch.metrics().up(name), 10.0)

    def close(self) -> None:
        for guest in self.guests.values():
            guest.close()

    def settle(self) -> None:
        """All guests reach each other."""
        for name in ("vm2", "vm3"):
            self.guests["vm1"].wait_ping(ADDRESS[name])


@pytest.fixture(scope="module")
def lab(module_folder: Path, image: Image) -> Iterator[Lab]:
    ports = [
        vhost_port("vm1", module_folder / "vm1.sock", queues=2),
        vhost_port("vm2", module_folder / "vm2.sock", server=True),
        vhost_port("vm3", module_folder / "vm3.sock"),
    ]
    made = Lab(module_folder, image, Switchd(module_folder, ports), {})
    with ExitStack() as cleanup:
        cleanup.callback(made.close)
        cleanup.enter_context(made.switch)
        for name in ADDRESS:
            made.boot(name)
        for name in ADDRESS:
            made.ready(name)
        made.switch.wait_up(*ADDRESS)
        yield made


@pytest.fixture(autouse=True)
def connected(lab: Lab) -> None:
    """Each test begins with all guests reaching each other."""
    lab.settle()


def moved_bytes(client: Guest, server: Guest, address: str, size: str = "4M", *, reverse: bool = False) -> int:
    """Bytes of one TCP stream of that size that arrived. The last of them may not have been read yet."""
    server.run("pkill iperf3; iperf3 -s -D -1 -p 5201; sleep 0.2")
    flags = "-R" if reverse else ""
    text = client.run(f"iperf3 -c {address} -n {size} {flags} -J | grep -A12 sum_received | grep bytes", 60.0)
    return int(text.split(":")[1].strip(" ,"))


def test_half_a_command_spoils_no_other(lab: Lab) -> None:
    """Of the lab itself: a booting guest may hear the middle of the first command that it is sent."""
    lab.guests["vm3"].send("{ echo '")
    lab.guests["vm3"].wait_booted(20.0)
    assert lab.guests["vm3"].run("echo whole") == "whole"


def test_guests_learn_and_ping(lab: Lab) -> None:
    assert "0% packet loss" in lab.guests["vm1"].run(f"ping -c 20 -i 0.1 {ADDRESS['vm2']}", 20.0)
    macs = lab.switch.fdb_macs()
    assert {name: macs.get(lab.nic(name).mac) for name in ADDRESS} == {name: name for name in ADDRESS}


@pytest.mark.parametrize("peer", ["vm2", "vm3"])
@pytest.mark.parametrize("reverse", [False, True], ids=["to", "from"])
def test_tcp_flows(lab: Lab, peer: str, reverse: bool) -> None:
    before = lab.switch.metrics()
    moved = moved_bytes(lab.guests["vm1"], lab.guests[peer], ADDRESS[peer], reverse=reverse)
    assert moved > 1_000_000
    after = lab.switch.settle()
    for reason in ("malformed_descriptor", "bad_offload", "offload_unsupported", "buffer_too_small", "frame_too_long"):
        assert after.sum("switch_port_drops_total", reason=reason) == before.sum(
            "switch_port_drops_total", reason=reason
        )
    after.check_conservation()


def test_a_guest_without_offloads_gets_whole_segments(lab: Lab) -> None:
    """vm1 sends segments of up to 64 KB with checksums left open; the switch cuts and completes them for vm3."""
    before = lab.switch.metrics().sum("switch_port_segmented_frames_total", port="vm3")
    lab.guests["vm1"].run("ethtool -K eth0 tso on", check=False)
    moved_bytes(lab.guests["vm1"], lab.guests["vm3"], ADDRESS["vm3"])
    assert lab.switch.settle().sum("switch_port_segmented_frames_total", port="vm3") > before
    errors = lab.guests["vm3"].run("cat /proc/net/snmp | grep '^Tcp:' | tail -1 | cut -d' ' -f16")
    assert int(errors) == 0, "TCP segments with a bad checksum"


def test_a_vlan_separates_guests_at_once_and_joins_them_again(lab: Lab) -> None:
    first = lab.guests["vm1"]
    lab.switch.ctl("set-port", "vm1", "--vlan-access", "10")
    lab.switch.ctl("set-port", "vm2", "--vlan-access", "20")
    heard = int(lab.guests["vm2"].run("cat /sys/class/net/eth0/statistics/rx_packets"))
    for address in (ADDRESS["vm2"], ADDRESS["vm3"]):
        assert not first.pings(address)
    assert int(lab.guests["vm2"].run("cat /sys/class/net/eth0/statistics/rx_packets")) == heard
    lab.switch.ctl("set-port", "vm2", "--vlan-access", "10")
    first.wait_ping(ADDRESS["vm2"])
    assert not first.pings(ADDRESS["vm3"])
    lab.switch.ctl("apply", str(lab.switch.file))  # as configured: no VLANs


def test_the_driver_is_removed_and_loaded_again(lab: Lab) -> None:
    for name in ("vm1", "vm2"):
        guest = lab.guests[name]
        guest.run("rmmod virtio_net && insmod /modules/virtio_net.ko")
        guest.address(ADDRESS[name])
        lab.settle()


def test_the_number_of_queues_changes(lab: Lab) -> None:
    guest = lab.guests["vm1"]
    for count in (2, 1, 2):
        guest.run(f"ethtool -L eth0 combined {count}")
        lab.settle()
        assert moved_bytes(guest, lab.guests["vm2"], ADDRESS["vm2"], "1M") > 100_000


def test_a_paused_guest_continues(lab: Lab) -> None:
    lab.guests["vm2"].qmp("stop")
    assert not lab.guests["vm1"].pings(ADDRESS["vm2"])
    assert lab.guests["vm1"].pings(ADDRESS["vm3"]), "others are not disturbed"
    lab.guests["vm2"].qmp("cont")
    lab.settle()


def test_a_pulled_cable_is_plugged_in_again(lab: Lab) -> None:
    lab.guests["vm2"].qmp("set_link", name="nic0", up=False)
    assert not lab.guests["vm1"].pings(ADDRESS["vm2"])
    lab.guests["vm2"].qmp("set_link", name="nic0", up=True)
    lab.settle()


def test_guests_reboot(lab: Lab) -> None:
    """Two at once, one as from within and one as the button on the machine does it."""
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(lab.guests["vm1"].reboot), pool.submit(lab.guests["vm2"].reset)]
        for each in done:
            each.result()
    for name in ("vm1", "vm2"):
        lab.ready(name)
    lab.settle()


def test_the_switch_is_killed_and_started(lab: Lab) -> None:
    process = lab.switch.process
    assert process is not None
    process.kill()
    assert not lab.guests["vm1"].pings(ADDRESS["vm2"])
    lab.switch.start()
    lab.settle()
    assert moved_bytes(lab.guests["vm1"], lab.guests["vm2"], ADDRESS["vm2"], "1M") > 100_000


def test_guests_are_killed_and_started(lab: Lab) -> None:
    for name in ("vm1", "vm2"):
        lab.gone(name)
        assert lab.switch.metrics().up("vm3")
    for name in ("vm1", "vm2"):
        lab.boot(name)
    for name in ("vm1", "vm2"):
        lab.ready(name)
    lab.settle()


def test_switch_and_guest_are_killed_together(lab: Lab) -> None:
    process, guest = lab.switch.process, lab.guests["vm2"]
    assert process is not None
    process.kill()
    guest.process.kill()
    guest.close()
    lab.boot("vm2")  # the guest first, this time
    lab.switch.start()
    lab.ready("vm2")
    lab.settle()
