# SPDX-License-Identifier: Apache-2.0
"""A running guest moves from one host to another and back: its memory, its connections and its place in the network.

    station - TAP - switch a - vhost-user link - switch b

The guest has two NICs, which take every way through the back-end between them: split rings on a socket of the switch,
and the guest announces itself; packed rings on a socket of QEMU, and the switch announces the guest (SEND_RARP).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from switch.testing import Guest as SoftGuest
from tests.interop.guest_image import Image
from tests.interop.netns import Netns
from tests.interop.process import wait_until
from tests.interop.qemu import Guest, Nic
from tests.interop.station import Ear, Echoed, Parcel, Pulse, Work, connected
from tests.interop.switchd import Api, Switchd, vhost_port

pytestmark = [pytest.mark.interop, pytest.mark.emulated, pytest.mark.netns, pytest.mark.timeout(180)]

MACS = ("52:54:00:00:0c:00", "52:54:00:00:0c:01")
GUEST = ("10.10.0.1", "10.10.1.1")
STATION = ("10.10.0.2", "10.10.1.2")
ARP, RARP = 0x0806, 0x8035
PARCEL = 256 * 1024
# Each NIC answers for its own address only; a receiver that does not read still takes a parcel.
SETTINGS = """
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
echo '4194304 4194304 4194304' >/proc/sys/net/ipv4/tcp_rmem
"""


def nics(folder: Path, ports: tuple[str, str] = ("vm0", "vm1")) -> tuple[Nic, Nic]:
    return (
        Nic(folder / f"{ports[0]}.sock", MACS[0], queues=2),
        Nic(folder / f"{ports[1]}.sock", MACS[1], packed=True, server=True, options=",guest_announce=off"),
    )


class Neighbours(Work):
    """Two guests of a host who exchange frames all the time; one that does not arrive is an error."""

    def __init__(self, one: SoftGuest, other: SoftGuest) -> None:
        super().__init__()
        self._pair = (one, other)
        self.count = 0

    def step(self) -> None:
        for way, (source, sink) in enumerate((self._pair, self._pair[::-1])):
            addresses = bytes.fromhex("0200000000b1 0200000000b2" if way == 0 else "0200000000b2 0200000000b1")
            frame = addresses + b"\x88\xb5" + self.count.to_bytes(4, "big") + bytes(60)
            source.send(frame)
            sink.expect(frame, timeout=5.0)
        self.count += 1


@dataclass
class Lab:
    folder: Path
    image: Image
    cpu: int
    station: Netns
    hosts: dict[str, Switchd]
    guest: Guest
    host: str = "a"  # where the guest is
    made: list[Guest] = field(default_factory=list)

    def destination(self, ports: tuple[str, str] = ("vm0", "vm1")) -> tuple[Guest, Path]:
        """A QEMU on the other host that waits for the guest, and where."""
        name = f"in{len(self.made)}"
        line = self.folder / f"{name}.line"
        network = nics(self.hosts[self.other()].folder, ports)
        waiting = Guest(self.image, network, self.folder, name, self.cpu, incoming=line)
        self.made.append(waiting)
        wait_until(f"{name} waits", lambda: waiting.status() == "inmigrate", 20.0)
        return waiting, line

    def close(self) -> None:
        for guest in self.made:
            guest.close()

    def other(self) -> str:
        return "b" if self.host == "a" else "a"

    def arrived(self, guest: Guest) -> None:
        self.guest.close()
        self.guest, self.host = guest, self.other()
        guest.wait_arrived()

    def logging(self) -> list[str]:
        """Whether the guest's host logs what it writes, by NIC."""
        api = Api(self.hosts[self.host].control)
        return [api.ask("GET", f"/v1/ports/{port}")["facts"]["dirty_logging"] for port in ("vm0", "vm1")]

    def said(self) -> list[str]:
        """What the guest's host told of logging, at its first NIC."""
        api = Api(self.hosts[self.host].control)
        return [event["detail"] for event in api.ask("GET", "/v1/events?kind=port_dirty_logging&port=vm0")["events"]]

    def detail(self, host: str) -> str:
        """What a person reads there of the guest's first NIC."""
        return str(Api(self.hosts[host].control).ask("GET", "/v1/ports/vm0")["detail"])

    def stages(self, host: str) -> list[str]:
        api = Api(self.hosts[host].control)
        return [api.ask("GET", f"/v1/ports/{port}")["stage"] for port in ("vm0", "vm1")]

    def places(self) -> dict[str, dict[str, str]]:
        """Where each switch has the guest's addresses."""
        found = {name: switch.fdb_macs() for name, switch in self.hosts.items()}
        return {name: {mac: macs.get(mac, "") for mac in MACS} for name, macs in found.items()}

    def expected_places(self) -> dict[str, dict[str, str]]:
        here = dict(zip(MACS, ("vm0", "vm1"), strict=True))
        return {name: here if name == self.host else dict.fromkeys(MACS, "link") for name in self.hosts}

    def wait_places(self) -> None:
        wait_until("both switches know where the guest is", lambda: self.places() == self.expected_places(), 20.0)


@pytest.fixture(scope="module")
def lab(module_folder: Path, image: Image, cpus: tuple[int, int]) -> Iterator[Lab]:
    folders = {name: module_folder / name for name in ("a", "b")}
    for folder in folders.values():
        folder.mkdir()
    link = folders["a"] / "link.sock"

    def ports(folder: Path) -> list[dict[str, Any]]:
        return [
            vhost_port("vm0", folder / "vm0.sock", queues=2),
            vhost_port("vm1", folder / "vm1.sock", server=True),
            vhost_port("poor0", folder / "poor0.sock", queues=2, offloads=False),
            vhost_port("poor1", folder / "poor1.sock", server=True),
        ]

    with ExitStack() as stack:
        station = stack.enter_context(Netns())
        hosts = {
            "a": Switchd(folders["a"], [
                *ports(folders["a"]),
                {"name": "station", "type": "tap", "device": "t0"},
                vhost_port("link", link),
                vhost_port("n1", folders["a"] / "n1.sock"),
                vhost_port("n2", folders["a"] / "n2.sock"),
            ], prefix=station.prefix()),
            "b": Switchd(folders["b"], [
                *ports(folders["b"]),
                {"name": "link", "type": "virtiouser", "socket": str(link), "socket_owner": "peer"},
            ]),
        }  # fmt: skip
        guest = Guest(image, nics(folders["a"]), module_folder, "vm", cpus[1])
        made = Lab(module_folder, image, cpus[1], station, hosts, guest, made=[guest])
        stack.callback(made.close)
        for switch in hosts.values():
            stack.enter_context(switch)
        for address in STATION:
            station.address("t0", address)
        guest.wait_booted()
        guest.run(SETTINGS)
        for number, address in enumerate(GUEST):
            guest.run(f"ip addr add {address}/24 dev eth{number} && ip link set eth{number} up")
            station.wait_ping(address)
        yield made


def start(guest: Guest, line: Path) -> None:
    """Begin a migration. With a way back, on which the destination says that the guest is there."""
    guest.qmp("migrate-set-capabilities", capabilities=[{"capability": "return-path", "state": True}])
    guest.qmp("migrate", uri=f"unix:{line}")


def migration(guest: Guest) -> dict[str, Any]:
    said: dict[str, Any] = guest.qmp("query-migrate")
    return said


def ended(guest: Guest) -> str:
    """How the migration ended."""

    def end() -> str:
        status: str = migration(guest)["status"]
        return status if status in ("completed", "failed", "cancelled") else ""

    return wait_until("the migration ends", end, 60.0)


def start_slowly(lab: Lab, line: Path) -> None:
    """Begin a migration, and let nearly all memory pass. What the switch writes there afterwards passes only if it is
    logged. The guest must be at rest: QEMU 7.2's emulation forgets pages that the CPU writes while QEMU looks at which
    were written, with or without a vhost-user device."""
    lab.guest.qmp("migrate-set-parameters", **{"max-bandwidth": 16 << 20, "downtime-limit": 1})
    start(lab.guest, line)

    def passed(leave: int) -> bool:
        said = migration(lab.guest)
        assert said["status"] in ("setup", "active"), said
        ram = said.get("ram", {})
        left, passes = ram.get("remaining", 1 << 30), ram.get("dirty-sync-count", 0)
        return bool(left < leave or passes > 1)

    for leave, slower in ((24 << 20, 4 << 20), (1 << 20, 16 << 10)):
        wait_until("memory passes", partial(passed, leave), 60.0, every=0.02)
        lab.guest.qmp("migrate-set-parameters", **{"max-bandwidth": slower})


def hurry(guest: Guest) -> None:
    """Let a migration end as soon as it can."""
    guest.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 1000})


@dataclass
class Flows:
    """To and from one NIC of the guest."""

    pulse: Pulse
    echo: Echoed
    parcel: Parcel


def open_flows(lab: Lab, stack: ExitStack) -> list[Flows]:
    found = []
    for number, address in enumerate(GUEST):
        echo_port, parcel_port = 5000 + number, 5100 + number
        lab.guest.run(
            f"nc -l -p {echo_port} -e cat >/dev/null 2>&1 &\n"
            f"nc -l -p {parcel_port} >/tmp/parcel{number} 2>/dev/null & echo $! >/tmp/reader{number}"
        )
        parcel = Parcel(connected(lab.station, address, parcel_port), PARCEL)
        lab.guest.run(f"kill -STOP $(cat /tmp/reader{number})")
        stack.callback(parcel.end)
        found.append(Flows(Pulse(lab.station, address), Echoed(connected(lab.station, address, echo_port)), parcel))
    return found


def test_a_guest_under_traffic_moves_to_another_host(lab: Lab) -> None:
    """Of what arrives after its memory has passed, the destination learns through the dirty log alone: whole buffers
    that the guest has not looked into yet (parcels), and the rings."""
    source, target = lab.hosts[lab.host], lab.hosts[lab.other()]
    with ExitStack() as stack:
        soft = [stack.enter_context(SoftGuest(str(lab.hosts["a"].folder / f"n{n}.sock"))) for n in (1, 2)]
        neighbours = stack.enter_context(Neighbours(*soft))
        flows = open_flows(lab, stack)
        waiting, line = lab.destination()
        assert lab.stages(lab.other()) == ["negotiating", "negotiating"]
        start_slowly(lab, line)
        assert lab.logging() == ["yes", "yes"]
        assert lab.said()[-1].startswith("on: ")
        assert lab.detail(lab.host) == "pages that are written for the guest are logged: it moves to another host"
        assert lab.detail(lab.other()).startswith("no features were agreed on: a guest that moves here has not arrived")
        for flow in flows:
            stack.enter_context(flow.pulse)
            stack.enter_context(flow.echo)
        for flow in flows:
            flow.parcel.send()
            wait_until("the stream flows", flow.echo.more(5), 30.0)
        assert migration(lab.guest)["status"] == "active"
        with ExitStack() as rest:
            for flow in flows:
                rest.enter_context(flow.pulse.turn)
                rest.enter_context(flow.echo.turn)
            hurry(lab.guest)
            wait_until("the guest leaves", lambda: lab.guest.status() != "running", 20.0, every=0.01)
        assert ended(lab.guest) == "completed"
        wait_until("the guest runs there", lambda: lab.stages(lab.other()) == ["running", "running"], 20.0)
        assert lab.stages(lab.host) == ["rings", "rings"]
        lab.arrived(waiting)
        for number, flow in enumerate(flows):
            wait_until("the stream goes on", flow.echo.more(20), 30.0)
            flow.parcel.end()
            lab.guest.run(f"kill -CONT $(cat /tmp/reader{number})")

            # The reader ends with the stream.
            lab.guest.run(f"while kill -0 $(cat /tmp/reader{number}); do sleep 0.1; done")
            assert lab.guest.run(f"sha256sum </tmp/parcel{number} | cut -d' ' -f1") == flow.parcel.digest
        lab.wait_places()
        for number, flow in enumerate(flows):
            print(f"eth{number} was silent for {flow.pulse.silence() * 1000:.0f} ms")
        assert neighbours.count > 0
    for switch in (source, target):
        switch.settle().check_conservation()
        assert "ring_" not in str(switch.ctl("events"))


def test_a_guest_without_traffic_is_found_where_it_went(lab: Lab) -> None:
    """Nobody talks to the guest, and it says nothing but that it is there."""
    for address in GUEST:
        lab.station.wait_ping(address)
    lab.wait_places()
    waiting, line = lab.destination()
    with Ear(lab.station, "t0") as ear:
        hurry(lab.guest)
        start(lab.guest, line)
        assert ended(lab.guest) == "completed"
        lab.arrived(waiting)
        lab.wait_places()
        wait_until("the guest announces eth0", lambda: ear.heard[ARP, MACS[0]], 10.0)
        wait_until("the switch announces eth1", lambda: ear.heard[RARP, MACS[1]], 10.0)
    assert not ear.heard[RARP, MACS[0]]
    for address in GUEST:
        lab.station.wait_ping(address)


def test_a_cancelled_migration_goes_on_at_the_source(lab: Lab) -> None:
    waiting, line = lab.destination()
    with ExitStack() as stack:
        stack.callback(waiting.close)
        flows = open_flows(lab, stack)
        lab.guest.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 20, "downtime-limit": 1})
        start(lab.guest, line)
        wait_until("what is written is logged", lambda: lab.logging() == ["yes", "yes"], 10.0)
        for flow in flows:
            stack.enter_context(flow.pulse)
            stack.enter_context(flow.echo)
            wait_until("the stream flows", flow.echo.more(5), 30.0)
        lab.guest.qmp("migrate_cancel")
        assert ended(lab.guest) == "cancelled"
        wait_until("nothing is logged any more", lambda: lab.logging() == ["no", "no"], 10.0)
        assert [text.split(":")[0] for text in lab.said()[-2:]] == ["on", "off"]
        for flow in flows:
            wait_until("the stream goes on", flow.echo.more(20), 30.0)
        lab.guest.run("kill -CONT $(cat /tmp/reader0 /tmp/reader1)")
    assert lab.places() == lab.expected_places()


def test_a_port_that_offers_less_is_refused_before_the_guest_leaves(lab: Lab) -> None:
    waiting, line = lab.destination(("poor0", "poor1"))
    with ExitStack() as stack:
        stack.callback(waiting.close)
        hurry(lab.guest)
        start(lab.guest, line)
        assert ended(lab.guest) == "failed"
        wait_until("the destination gives up", lambda: waiting.process.status is not None, 20.0)
        assert "unsupported. Allowed features" in waiting.process.text()
    for address in GUEST:
        lab.station.wait_ping(address)
    assert lab.places() == lab.expected_places()
