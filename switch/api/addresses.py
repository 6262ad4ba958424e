# SPDX-License-Identifier: Apache-2.0
"""The sockets of the API over TCP: one address, each that a name has, or all of the machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from switch.config.values import format_address
from switch.errors import cannot_listen


def listen_tcp(host: str, port: int, share: bool = False) -> list[socket.socket]:
    """Listen on an address, on each that a name has, or on all of the machine (""). SwitchError says why not.

    `share`: an address of our own may be in the way, see takes_over.
    """
    shown = format_address((host, port))
    opened: list[socket.socket] = []
    try:
        if not host and socket.has_dualstack_ipv6():
            found = [(socket.AF_INET6, ("::", port))]
        else:
            flags = socket.AI_PASSIVE
            family = socket.AF_INET if not host else socket.AF_UNSPEC
            listed = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, 0, flags)
            found = list(dict.fromkeys((entry[0], entry[4]) for entry in listed))  # type: ignore[misc]
        for family, address in found:
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            opened.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not host else 1)
            if share:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((address[0], opened[0].getsockname()[1] if len(opened) > 1 else port, *address[2:]))
            listener.listen(128)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
            listener.setblocking(False)
    except OSError as error:
        for listener in opened:
            listener.close()
        raise cannot_listen("the API", shown, "control.tcp.listen", error) from error
    return opened


@contextlib.contextmanager
def takes_over(listeners: Sequence[socket.socket]) -> Iterator[None]:
    """While it lasts, another address of the same port may be bound by this user: from 127.0.0.1 to all, say."""
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for listener in listeners:
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
