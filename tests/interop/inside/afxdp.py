# SPDX-License-Identifier: Apache-2.0
"""AF_XDP ports on a kernel of a distribution: one that knows less of AF_XDP, and has tunnels that others lack.

    python -m tests.interop.inside.afxdp

    host - far0 = up0 - switch - up1 = far1 - host

Prints what it found as JSON behind "SAID", and "ok" with a name for each tunnel that carried TCP and UDP.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from switch.datapath import DatapathOptions, PortSpec
from switch.errors import SwitchError
from switch.native import NativeDatapath
from tests.interop.netns import Netns, made_in
from tests.interop.process import wait_until

OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("198.51.100.1", "198.51.100.2")
BYTES = 300_000  # each way: many times what a large segment holds
TUNNELS = {
    "geneve": ("type", "geneve", "id", "7", "remote", "{far}"),
    "geneve, outer checksum": ("type", "geneve", "id", "7", "remote", "{far}", "udpcsum"),
    "gretap": ("type", "gretap", "local", "{near}", "remote", "{far}"),
    "gretap, key": ("type", "gretap", "local", "{near}", "remote", "{far}", "key", "9"),
    "gre": ("type", "gre", "local", "{near}", "remote", "{far}"),
    "ipip": ("type", "ipip", "local", "{near}", "remote", "{far}"),
}


def packet_socket(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
    made.bind((device, 0x88B5))
    made.settimeout(20)
    return made


def in_order(hosts: Sequence[Netns]) -> bool:
    """Whether a burst beyond what one system call of this kernel sends crosses the switch whole."""
    left = made_in(hosts[0], lambda: packet_socket("far0"))
    right = made_in(hosts[1], lambda: packet_socket("far1"))
    with left, right:
        for number in range(200):
            left.send(bytes.fromhex("52540000000252540000000188b5") + number.to_bytes(2, "big") + bytes(1498))
        return [int.from_bytes(right.recv(2048)[14:16], "big") for _ in range(200)] == list(range(200))


@contextlib.contextmanager
def tunnel(hosts: Sequence[Netns], settings: Sequence[str]) -> Iterator[None]:
    try:
        for host, near, far, inner in zip(hosts, OUTER, reversed(OUTER), INNER, strict=True):
            host.ip("link", "add", "name", "tunnel", *(word.format(near=near, far=far) for word in settings))
            host.address("tunnel", inner)
        yield
    finally:
        for host in hosts:
            subprocess.run([*host.prefix(), "ip", "link", "del", "tunnel"], check=False, capture_output=True)


def checksum_errors(host: Netns) -> int:
    """Segments and datagrams, of tunnels or in them, that the host's kernel refused for their checksums."""
    table = Path("/proc/thread-self/net/snmp")
    lines = [line.split() for line in made_in(host, table.read_text).splitlines()]
    rows = zip(lines[::2], lines[1::2], strict=True)
    return sum(
        int(row[1])
        for names, values in rows
        if names[0] in ("Tcp:", "Udp:")
        for row in zip(names, values, strict=True)
        if row[0] == "InCsumErrors"
    )


def refused_datagrams(hosts: Sequence[Netns]) -> None:
    """Nobody finishes what the tunnel's own kernel left open, or the rest of this script proves nothing."""
    before = checksum_errors(hosts[1])
    with made_in(hosts[0], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:

        def refused() -> bool:
            sender.sendto(b"open", (INNER[1], 9))
            return checksum_errors(hosts[1]) > before

        wait_until("a datagram's checksum is found wrong", refused, 30.0)


def server_socket(kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.bind((INNER[1], 7))
    made.settimeout(30)
    return made


def client_socket(kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(30)
    return made


def tcp(hosts: Sequence[Netns]) -> None:
    """What goes there comes back, at the same time."""
    data = os.urandom(BYTES)
    with (
        made_in(hosts[1], lambda: server_socket(socket.SOCK_STREAM)) as server,
        made_in(hosts[0], lambda: client_socket(socket.SOCK_STREAM)) as client,
    ):
        server.listen()
        client.connect((INNER[1], 7))
        peer, _ = server.accept()

        def echo() -> None:
            while some := peer.recv(65536):
                peer.sendall(some)
            peer.close()

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        peer.settimeout(30)
        threads = [threading.Thread(target=work) for work in (echo, send)]
        for thread in threads:
            thread.start()
        back = b""
        while some := client.recv(65536):
            back += some
        for thread in threads:
            thread.join()
    assert back == data


def udp(hosts: Sequence[Netns]) -> None:
    with (
        made_in(hosts[1], lambda: server_socket(socket.SOCK_DGRAM)) as server,
        made_in(hosts[0], lambda: client_socket(socket.SOCK_DGRAM)) as client,
    ):
        for number in range(50):
            sent = number.to_bytes(2, "big") + bytes(number * 20)
            client.sendto(sent, (INNER[1], 7))
            got, sender = server.recvfrom(2048)
            assert got == sent
            server.sendto(sent, sender)
            assert client.recv(2048) == sent


def tunnels(path: NativeDatapath, hosts: Sequence[Netns]) -> None:
    for host, device, address in zip(hosts, ("far0", "far1"), OUTER, strict=True):
        host.address(device, address)
    add(path, checksum="trust")
    for settings in TUNNELS.values():
        with tunnel(hosts, settings):
            refused_datagrams(hosts)
    print("ok", "without the repair checksums are wrong", flush=True)
    path.del_port("left")
    path.del_port("right")
    add(path)
    for name, settings in TUNNELS.items():
        before = [checksum_errors(host) for host in hosts]
        with tunnel(hosts, settings):
            udp(hosts)
            tcp(hosts)
        assert [checksum_errors(host) for host in hosts] == before, name
        print("ok", name, flush=True)


def add(path: NativeDatapath, **keys: Any) -> None:
    for name, device in (("left", "up0"), ("right", "up1")):
        path.add_port(PortSpec(name=name, type="afxdp", bridge="br0", device=device, **keys))


def main() -> None:
    said: dict[str, Any] = {"kernel": os.uname().release}
    with Netns() as left, Netns() as right:
        hosts = (left, right)
        for number, host in enumerate(hosts):
            link = f"ip link add name up{number} type veth peer name far{number} netns {host.name}"
            subprocess.run(link.split(), check=True)
            subprocess.run(["ip", "link", "set", f"up{number}", "up"], check=True)
            host.ip("link", "set", f"far{number}", "up")
        path = NativeDatapath(DatapathOptions(workers=(0,), memory_bytes=1 << 21, pin=False))
        path.start()
        path.add_bridge("br0", 300, 1024)
        try:
            tunnels(path, hosts)
            said["facts"] = dict(path.port("left").facts)
            said["order"] = in_order(hosts)
            path.del_port("left")
            left.ip("link", "set", "far0", "mtu", "9000")
            subprocess.run(["ip", "link", "set", "up0", "mtu", "9000"], check=True)
            try:
                path.add_port(PortSpec(name="left", type="afxdp", bridge="br0", device="up0"))
            except SwitchError as error:
                said["refused"] = str(error)
        finally:
            path.stop()
    print("SAID", json.dumps(said))


if __name__ == "__main__":
    main()
