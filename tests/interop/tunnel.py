# SPDX-License-Identifier: Apache-2.0
"""A tunnel from host to host, made by their kernels, and what they think of the packets that arrive in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.interop.netns import Netns

INNER = ("10.8.0.1", "10.8.0.2")


def checksum_errors(host: Netns) -> dict[str, int]:
    """Packets that the host's kernel refused for their TCP or UDP checksum since the namespace was made."""
    lines = host.run("cat", "/proc/net/snmp").splitlines()
    errors = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol = names.partition(":")[0]
        fields = dict(zip(names.split()[1:], values.split()[1:], strict=True))
        if protocol in ("Tcp", "Udp"):
            errors[protocol] = int(fields["InCsumErrors"])
    return errors


@contextmanager
def vxlan(hosts: tuple[Netns, Netns], over: tuple[str, str], *options: str) -> Iterator[None]:
    """VXLAN between two addresses of the hosts; inside it they have those of INNER."""
    try:
        for host, near, far, inner in zip(hosts, over, reversed(over), INNER, strict=True):
            settings = f"type vxlan id 7 dstport 4789 local {near} remote {far}"
            host.ip("link", "add", "vx0", *settings.split(), *options)
            host.address("vx0", inner)
        yield
    finally:
        for host in hosts:
            subprocess.run([*host.prefix(), "ip", "link", "del", "vx0"], check=False, capture_output=True)
