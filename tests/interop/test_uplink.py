# SPDX-License-Identifier: Apache-2.0
"""A `virtiouser` port as the uplink into another vhost-user switch: OVS-DPDK, testpmd's net_vhost, one of ours.

    guest - our switch - virtiouser - the other switch - guest

Frames pass both ways; when either switch is killed and started again they pass again, and nobody lends a hand.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from switch.testing import Guest
from tests.interop import testpmd
from tests.interop.netns import Netns
from tests.interop.ovs import Ovs
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

LEFT, RIGHT = bytes.fromhex("020000000a01"), bytes.fromhex("020000000a02")
TAG = bytes.fromhex("8100600a")  # VLAN 10, priority 3


def frame(to_right: bool, mark: int, size: int = 60, tag: bytes = b"") -> bytes:
    addresses = RIGHT + LEFT if to_right else LEFT + RIGHT
    start = addresses + tag + b"\x88\xb5" + mark.to_bytes(2, "big")
    return start + bytes(mark % 251 for _ in range(size - len(start)))


class Peer(Protocol):
    """The other switch, between the `uplink` socket and a guest of its own on `guest`."""

    guest: Path

    def start(self) -> None: ...
    def kill(self) -> None: ...


class OvsPeer:
    def __init__(self, folder: Path, uplink: Path, we_listen: bool, cpu: int, stack: ExitStack) -> None:
        self._ovs = stack.enter_context(Ovs(folder, cpu, stack.enter_context(Netns())))
        self.guest = self._ovs.add_listening("vm0")
        if we_listen:
            self._ovs.add_connecting("sw0", uplink)
        else:
            (folder / "ovs/sw0").touch()
            uplink.symlink_to(self._ovs.add_listening("sw0"))

    def start(self) -> None:
        self._ovs.start(["sw0", "vm0"])

    def kill(self) -> None:
        self._ovs.kill()


class NetVhostPeer:
    """Not a switch: what comes out of one socket goes into the other."""

    def __init__(self, folder: Path, uplink: Path, we_listen: bool, cpu: int, stack: ExitStack) -> None:
        self.guest = folder / "vm0"
        self._folder, self._uplink, self._we_listen, self._cpu = folder, uplink, we_listen, cpu
        self._process: testpmd.Testpmd | None = None
        stack.callback(self.kill)

    def start(self) -> None:
        vdevs = [f"net_vhost0,iface={self._uplink},client={self._we_listen:d}", f"net_vhost1,iface={self.guest}"]
        self._process = testpmd.Testpmd(vdevs, self._folder, self._cpu, "--forward-mode=io")
        self._process.start()

    def kill(self) -> None:
        if self._process:
            self._process.process.kill()
            self._process.close()
            self._process = None
        for path in (self.guest, self._uplink):  # a killed testpmd leaves its sockets behind
            if not (path == self._uplink and self._we_listen):
                path.unlink(missing_ok=True)


class SwitchdPeer:
    def __init__(self, folder: Path, uplink: Path, we_listen: bool, cpu: int, stack: ExitStack) -> None:
        own = folder / "peer"
        own.mkdir()
        self.guest = own / "vm0.sock"
        ports = [vhost_port("vm0", self.guest), vhost_port("sw0", uplink, server=we_listen)]
        self._switch = Switchd(own, ports, cpu)
        stack.callback(self._switch.stop)

    def start(self) -> None:
        self._switch.start()

    def kill(self) -> None:
        assert self._switch.process is not None
        self._switch.process.kill()


ROWS: dict[str, tuple[Callable[[Path, Path, bool, int, ExitStack], Peer], bool, bool]] = {
    # peer, whether we listen, packed rings
    # OVS-DPDK and testpmd have one library (rte_vhost): every combination is with one of them.
    "ovs-listens-packed": (OvsPeer, False, True),
    "ovs-connects-split": (OvsPeer, True, False),
    "testpmd-listens-split": (NetVhostPeer, False, False),
    "testpmd-connects-packed": (NetVhostPeer, True, True),
    "switchd-listens-packed": (SwitchdPeer, False, True),
    "switchd-connects-split": (SwitchdPeer, True, False),
}


def crosses(left: Guest, right: Guest, count: int = 100) -> None:
    """Frames of many sizes pass both ways, unchanged and in order; the first ones may be lost while rings start."""
    for to_right, sender, receiver in ((True, left, right), (False, right, left)):
        first = frame(to_right, 0xFFFF)

        def arrives(sender: Guest = sender, receiver: Guest = receiver, first: bytes = first) -> bool:
            sender.send(first)
            got = receiver.recv(0.1)
            while got is not None and got != first:
                got = receiver.recv(0.1)
            return got is not None

        wait_until("the first frame crosses", arrives, 30.0, every=0.01)
        for mark in range(count):
            tag = TAG if mark % 3 == 0 else b""
            wanted = frame(to_right, mark, 64 + mark * 1450 // count, tag)
            sender.send(wanted)
            receiver.expect(wanted, timeout=10.0)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_an_uplink_carries_frames_and_comes_back_after_either_side_was_killed(
    folder: Path, cpus: tuple[int, int], row: tuple[Callable[..., Peer], bool, bool]
) -> None:
    make, we_listen, packed = row
    uplink = folder / "uplink"
    owner = "switch" if we_listen else "peer"
    ports = [
        vhost_port("vm1", folder / "vm1.sock"),
        {"name": "uplink", "type": "virtiouser", "socket": str(uplink), "socket_owner": owner, "packed": packed},
    ]
    with ExitStack() as stack:
        peer = make(folder, uplink, we_listen, cpus[1], stack)
        switch = stack.enter_context(Switchd(folder, ports, cpus[0]))
        peer.start()
        left = stack.enter_context(Guest(str(folder / "vm1.sock"), ready_timeout=30.0))
        right = stack.enter_context(Guest(str(peer.guest), ready_timeout=30.0))
        switch.wait_up("uplink")
        crosses(left, right)
        rings = switch.ctl("port", "uplink")["rings"]
        assert {ring["facts"]["layout"] for ring in rings} == {"packed" if packed else "split"}

        peer.kill()
        wait_until("the port is down", lambda: not switch.metrics().up("uplink"), 10.0)
        peer.start()
        switch.wait_up("uplink")
        crosses(left, right)

        assert switch.process is not None
        switch.process.kill()
        switch.start()
        switch.wait_up("uplink", "vm1")
        crosses(left, right)
        switch.settle().check_conservation()
