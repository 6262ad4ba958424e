# SPDX-License-Identifier: Apache-2.0
"""A switch run by an ordinary user: what needs no right works, the rest is refused with what it lacks and a way out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from switch.testing import Guest
from tests.interop.netns import Netns
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port
from tests.support import unprivileged, verbs_standin
from tests.support.verbs_standin import Standin
from tests.support.wire import Wire

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

FIRST, SECOND, EVERYBODY = "02:00:00:00:0e:01", "02:00:00:00:0e:02", "ff:ff:ff:ff:ff:ff"
# As on a machine where all modules are loaded: the numbers matter for the first one only, the others are not opened.
DEVICES = (
    "mkdir /dev/net /dev/vduse",
    "mknod -m 666 /dev/net/tun c 10 200",
    "mknod -m 600 /dev/vhost-net c 10 238",
    "mknod -m 600 /dev/vhost-vdpa-0 c 511 0",
    "mknod -m 600 /dev/vduse/control c 510 0",
)


@dataclass
class Lab:
    switch: Switchd
    netns: Netns

    def closed_tun(self) -> contextlib.AbstractContextManager[None]:
        """/dev/net/tun as the switch sees it, for root only."""
        assert self.switch.process is not None
        return closed(Path(f"/proc/{self.switch.process.pid}/root/dev/net/tun"))

    def guest(self, port: str = "vm1") -> Guest:
        return Guest(str(self.switch.folder / f"{port}.sock"))


@contextlib.contextmanager
def closed(path: Path) -> Iterator[None]:
    path.chmod(0o600)
    try:
        yield
    finally:
        path.chmod(0o666)


@contextlib.contextmanager
def make_lab(folder: Path, capabilities: Sequence[str] = ()) -> Iterator[Lab]:
    with Netns() as netns, Netns() as other:
        netns.veth("cable0", other, "far0")
        netns.veth("cable1", other, "far1")
        own: list[tuple[str, list[str]]] = [("mine0", []), ("queues0", ["multi_queue"]), ("down0", [])]
        for name, more in own:
            netns.ip("tuntap", "add", "dev", name, "mode", "tap", "user", str(unprivileged.UID), *more)
        for name in ("mine0", "queues0"):
            netns.ip("link", "set", name, "up")
        prefix = unprivileged.prefix(folder, capabilities, DEVICES, before=netns.prefix())
        if not verbs_standin.why_not(sys.executable):
            standin = Standin(folder)
            standin.set("mlx5_0", "cable1")
            os.chown(standin.folder, unprivileged.UID, unprivileged.UID)  # sockets for events are made there
            prefix += standin.environment()
        ports = [vhost_port(name, folder / f"{name}.sock") for name in ("vm1", "vm2")]
        switch = Switchd(folder, ports, prefix=prefix)
        os.chown(folder / "state", unprivileged.UID, unprivileged.UID)
        with switch:
            yield Lab(switch, netns)


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[Lab]:
    with make_lab(module_folder) as made:
        yield made


def greeting(source: str) -> bytes:
    return bytes(Ether(dst=EVERYBODY, src=source) / Raw(b"good morning" * 4))


def test_the_user_has_no_right_at_all(lab: Lab) -> None:
    """Or what follows would mean nothing."""
    assert lab.switch.process is not None
    said = Path(f"/proc/{lab.switch.process.pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in said.splitlines())
    assert lines["Uid"].split() == [str(unprivileged.UID)] * 4
    assert lines["Groups"].split() == []
    for kind in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        assert int(lines[kind], 16) == 0, kind


def test_guests_need_no_right(lab: Lab) -> None:
    with lab.guest("vm1") as first, lab.guest("vm2") as second:
        lab.switch.wait_up("vm1", "vm2")
        first.send(greeting(FIRST))
        assert second.recv(timeout=10.0) == greeting(FIRST)
        second.send(greeting(SECOND))
        assert first.recv(timeout=10.0) == greeting(SECOND)


def test_an_uplink_into_another_switch_needs_no_right(lab: Lab, folder: Path) -> None:
    os.chown(folder, unprivileged.UID, unprivileged.UID)
    ports = [vhost_port(name, folder / f"{name}.sock") for name in ("link", "vm9")]
    with Switchd(folder, ports) as other:
        os.chown(folder / "link.sock", unprivileged.UID, unprivileged.UID)
        lab.switch.ctl("add-port", "virtiouser", "up", "--socket", str(folder / "link.sock"), "--socket-owner", "peer")
        try:
            lab.switch.wait_up("up")
            with Guest(str(folder / "vm9.sock")) as far, lab.guest() as near:
                other.wait_up("link", "vm9")
                lab.switch.wait_up("vm1")
                near.send(greeting(FIRST))
                assert far.recv(timeout=10.0) == greeting(FIRST)
        finally:
            lab.switch.ctl("del-port", "up")


@dataclass(frozen=True)
class Refusal:
    kind: str
    arguments: tuple[str, ...]
    lacks: tuple[str, ...]  # what is missing, in the answer's words
    way: tuple[str, ...]  # and the way to it
    closed_tun: bool = False


REFUSALS = {
    "tap-new": Refusal(
        "tap",
        ("--device", "new0"),
        ("new0", "CAP_NET_ADMIN"),
        ("ip tuntap add dev new0 mode tap user USER", "ip link set dev new0 up"),
    ),
    "tap-closed": Refusal(
        "tap", ("--device", "mine0"), ("/dev/net/tun", "ermission"), ("chmod 0666 /dev/net/tun",), closed_tun=True
    ),
    "tap-down": Refusal("tap", ("--device", "down0"), ("down0", "CAP_NET_ADMIN"), ("ip link set dev down0 up",)),
    "tap-mtu": Refusal(
        "tap", ("--device", "mine0", "--mtu", "1400"), ("mine0", "CAP_NET_ADMIN"), ("ip link set dev mine0 mtu 1400",)
    ),
    "tap-address": Refusal(
        "tap",
        ("--device", "mine0", "--mac", "02:00:00:00:0c:01"),
        ("mine0", "CAP_NET_ADMIN"),
        ("ip link set dev mine0 address 02:00:00:00:0c:01",),
    ),
    "tap-vhost": Refusal(
        "tap", ("--device", "mine0", "--vhost"), ("/dev/vhost-net", "ermission"), ("udev", "leave out `vhost: true`")
    ),
    "afpacket": Refusal("afpacket", ("--device", "cable0"), ("cable0", "CAP_NET_RAW"), ("AmbientCapabilities=",)),
    "afxdp": Refusal(
        "afxdp", ("--device", "cable0"), ("cable0", "CAP_NET_RAW"), ("AmbientCapabilities=", "CAP_BPF", "CAP_NET_ADMIN")
    ),
    "verbs": Refusal(
        "verbs", ("--device", "mlx5_0"), ("mlx5_0", "CAP_NET_RAW", "/dev/infiniband/uverbs"), ("AmbientCapabilities=",)
    ),
    "vduse": Refusal(
        "vduse", ("--device", "vd0"), ("/dev/vduse/control", "ermission", "CAP_NET_ADMIN"), ("root", "udev")
    ),
}


@pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_port_that_needs_a_right_is_refused(lab: Lab, row: Refusal) -> None:
    if row.kind == "verbs":
        verbs_standin.need_pyverbs(sys.executable)
    before = lab.switch.ctl("ports")["ports"]
    with lab.closed_tun() if row.closed_tun else contextlib.nullcontext():
        status, output, errors = lab.switch.ctl_status("add-port", row.kind, "wish", *row.arguments, json_output=False)
    assert status == 1, output
    assert "port wish" in errors
    assert "Traceback" not in errors
    missing = [word for word in (*row.lacks, *row.way) if word not in errors]
    assert not missing, errors
    assert [port["name"] for port in lab.switch.ctl("ports")["ports"]] == [port["name"] for port in before]


def test_a_vdpa_device_is_waited_for_and_the_right_is_named(lab: Lab) -> None:
    """The device may come later, and so may the right."""
    lab.switch.ctl("add-port", "vdpa", "nic", "--device", "/dev/vhost-vdpa-0")
    try:
        wait_until("a reason", lambda: "ermission" in lab.switch.ctl("port", "nic")["detail"], 10.0)
        port = lab.switch.ctl("port", "nic")
        assert port["stage"] == "waiting_for_device"
        for word in ("/dev/vhost-vdpa-0", "udev"):
            assert word in port["detail"]
    finally:
        lab.switch.ctl("del-port", "nic")


@pytest.mark.parametrize(
    ("device", "asked", "done"),
    [
        ("mine0", (), ()),
        ("queues0", ("--queues", "2"), ()),
        ("mine0", ("--mtu", "1400"), ("mtu", "1400")),
        ("mine0", ("--mac", "02:00:00:00:0c:02"), ("address", "02:00:00:00:0c:02")),
    ],
    ids=["plain", "queues", "mtu", "address"],
)
def test_a_tap_that_was_made_for_the_user_needs_no_right(
    lab: Lab, device: str, asked: tuple[str, ...], done: tuple[str, ...]
) -> None:
    if done:
        lab.netns.ip("link", "set", "dev", device, *done)
    lab.switch.ctl("add-port", "tap", "host", "--device", device, *asked)
    try:
        lab.switch.wait_up("host")
        with lab.guest() as guest, Wire(lab.netns, device) as wire:
            lab.switch.wait_up("vm1")
            guest.send(greeting(FIRST))
            wire.wait_for(lambda frame: frame.src == FIRST)
            wire.send(Ether(greeting(SECOND)))
            wait_until("the host's frame", lambda: guest.recv(timeout=1.0) == greeting(SECOND), 10.0)
    finally:
        lab.switch.ctl("del-port", "host")


@pytest.mark.parametrize(
    ("capabilities", "rows"),
    [
        (("net_admin",), [("tap", "new0"), ("tap", "down0")]),
        (("net_raw", "ipc_lock"), [("afpacket", "cable0"), ("verbs", "mlx5_0")]),
        (("net_raw", "net_admin", "bpf", "ipc_lock"), [("afxdp", "cable0")]),
    ],
    ids=["tap", "afpacket-verbs", "afxdp"],
)
def test_the_capabilities_that_are_named_are_enough(
    folder: Path, capabilities: tuple[str, ...], rows: list[tuple[str, str]]
) -> None:
    """For the same user; CAP_IPC_LOCK where memory is locked."""
    with make_lab(folder, capabilities) as lab:
        for kind, device in rows:
            if kind == "verbs" and verbs_standin.why_not(sys.executable):
                continue
            lab.switch.ctl("add-port", kind, "wish", "--device", device)
            lab.switch.wait_up("wish")
            lab.switch.ctl("del-port", "wish")
