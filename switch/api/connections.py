# SPDX-License-Identifier: Apache-2.0
"""Connections of the API over TCP: from their acceptance, through TLS, to their end. What strangers can cost is here.

Theory of operation. Connections are accepted by hand and given to uvicorn's HTTP protocol one at a time, with the
credentials of that moment. A stranger is whoever has not presented a token yet. Strangers come in at a bounded rate
(the rest waits in the kernel's queue), have a bounded time for the handshake and the head of a request, and when there
are too many the one that is a stranger longest makes room for the next: a client who knows the token gets in through a
crowd that does not. Until its first byte a stranger costs a descriptor and a timer, and no TLS.

Nobody makes room whose token is good. So of those, one address may have MOST_PER_ADDRESS connections, or a client that
forgets to close its own would take all from the others; one too many is answered, with the limit, and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from switch.api.credentials import Credentials, Token
from switch.api.gate import Gate
from switch.config.values import format_address

log = logging.getLogger("switch.api")

MOST_CONNECTIONS = 64
MOST_PER_ADDRESS = 16  # of those that presented a token; of IPv6, a network of /64 counts as one
ACCEPTS_PER_SECOND = 100  # a handshake costs up to a millisecond: a tenth of the control plane's time
STRANGER_TIME = 10.0  # seconds for the handshake and the head of a request
KEEP_ALIVE = 5  # seconds between two requests of a connection
MOST_HEAD = 16 << 10
GRACE = 2.0  # seconds between the end of a listener and that of its streams
COMPLAIN = 10.0  # seconds between two lines of the log about one kind of refusal

PLAIN_ANSWER = json.dumps(
    {"error": {"kind": "request", "message": "this port speaks TLS: use https", "faults": []}}
).encode()


@dataclass(slots=True)
class _Complaint:
    """One kind of refusal: when the log said so last, and how many were not said since."""

    said: float = float("-inf")
    silent: int = 0


@dataclass(slots=True)
class _Refusals:
    totals: Counter[str] = field(default_factory=Counter)
    complaints: dict[str, _Complaint] = field(default_factory=dict)

    def add(self, reason: str, address: str, words: str) -> None:
        """Count; and say it, but never more than once in COMPLAIN seconds."""
        self.totals[reason] += 1
        complaint = self.complaints.setdefault(reason, _Complaint())
        if time.monotonic() - complaint.said < COMPLAIN:
            complaint.silent += 1
            return
        more = f"; and {complaint.silent} more since the last line like this" if complaint.silent else ""
        log.warning("control.tcp: refused %s: %s%s", address, words, more)
        self.complaints[reason] = _Complaint(time.monotonic())


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with a deadline for strangers."""

    def __init__(self, peer: Peer, gate: Gate, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self.app = functools.partial(gate, peer)
        self.logger = logging.getLogger("switch.api.http")  # what strangers send is not worth a line each
        self._peer = peer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer.protocol = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._peer.gone()


class Peer:
    """One connection, from its acceptance to its end."""

    def __init__(self, home: Connections, channel: socket.socket, host: str, address: str) -> None:
        self.origin = _origin(host)
        self.address = address
        self.channel: socket.socket | None = channel  # until the protocol owns it
        self.protocol: Connection | None = None
        self.token: Token | None = None
        self.known = False  # has presented a token
        self.answering = False
        self.task: asyncio.Task[None] | None = None
        self._home = home
        self._requests = 0
        self._retired = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(STRANGER_TIME, self._late)

    # ---- the gate's view ----

    def introduce(self) -> str:
        """It presented a token. Why it cannot stay for all that; "" when it may."""
        if not self.known:
            if why := self._home.crowded(self.origin):
                return why
            self.known = True
        return ""

    def begin(self) -> None:
        self._requests += 1
        self._no_timer()

    def end(self) -> None:
        self._requests -= 1
        if self._requests == 0 and self._timer is None:
            if self._retired:  # its answer may be on its way still
                self._timer = self._loop.call_later(GRACE, self.abort)
            else:
                self._timer = self._loop.call_later(KEEP_ALIVE + STRANGER_TIME, self._late)

    def greeted(self, _: asyncio.Task[None]) -> None:
        """The handshake is over, one way or the other; or it was called off before it began."""
        self.task = None
        if self.protocol is None:
            self.gone()

    # ---- its end ----

    def _late(self) -> None:
        self._timer = None
        if not self.known:
            self._home.refused("timeout", self.address, "no request came in time")
        self.abort()

    def _no_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def retire(self) -> None:
        """End as soon as the request that is being served is answered; a stream, after a moment."""
        self._retired = True
        if self.protocol is None or not self._requests:
            self.abort()
            return
        self.protocol.shutdown()  # no further request
        if self.answering:
            self._no_timer()
            self._timer = self._loop.call_later(GRACE, self.abort)

    def abort(self) -> None:
        self._no_timer()
        if self.protocol is not None:
            self.protocol.transport.abort()
        elif self.task is not None:
            self.task.cancel()

    def gone(self) -> None:
        """Nothing is left of it."""
        self._no_timer()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self._home.forget(self)


class Connections:
    """Those that are open, and the way in. Everything on one event loop."""

    def __init__(self, credentials: Callable[[], Credentials | None]) -> None:
        self._credentials = credentials
        self._gate: Gate | None = None
        self._peers: dict[Peer, None] = {}  # in the order of their coming
        self._refusals = _Refusals()
        self._allowance, self._measured = float(ACCEPTS_PER_SECOND), time.monotonic()
        self._state = ServerState()
        self._config = uvicorn.Config(
            _nothing, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, date_header=False, timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=MOST_HEAD,
        )  # fmt: skip
        logging.getLogger("switch.api.http").setLevel(logging.ERROR)

    def serve(self, app: FastAPI) -> None:
        """Whom requests go to; before anything else."""
        self._gate = Gate(app, self._credentials, self.refused)

    def __len__(self) -> int:
        return len(self._peers)

    def refusals(self, reason: str) -> int:
        return self._refusals.totals[reason]

    def refused(self, reason: str, address: str, words: str) -> None:
        self._refusals.add(reason, address, words)

    def crowded(self, origin: str) -> str:
        """Why nobody else from there can become known; "" when there is room."""
        known = [peer.origin for peer in self._peers if peer.known]
        if known.count(origin) >= MOST_PER_ADDRESS:
            return f"{MOST_PER_ADDRESS} connections from {origin} are open, the most of one address: close some"
        if len(known) >= MOST_CONNECTIONS:
            return f"{MOST_CONNECTIONS} connections are open, the most there can be: try again later"
        return ""

    def forget(self, peer: Peer) -> None:
        self._peers.pop(peer, None)

    def retire(self, good: Collection[Token] = ()) -> None:
        """End what came with another token than these; without any, everything."""
        for peer in list(self._peers):
            if not good:
                peer.retire()
            elif peer.token is not None and peer.token not in good:
                log.info("control.tcp: %s goes: token %s is no more", peer.address, peer.token.name)
                peer.retire()

    async def ended(self) -> None:
        """After `retire`: wait for those that get their answer still, but not for ever."""
        end = time.monotonic() + GRACE + 0.5
        while self._peers and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for peer in list(self._peers):
            peer.abort()
        await asyncio.gather(*(peer.task for peer in self._peers if peer.task), return_exceptions=True)

    async def accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._pace()
            try:
                channel, where = await loop.sock_accept(listening)
            except OSError as error:
                # Out of descriptors, or the client left already.
                self.refused("limit", "a connection", f"it cannot be accepted ({error.strerror or error})")
                await asyncio.sleep(0.1)
                continue
            host = str(where[0]).removeprefix("::ffff:")
            self._admit(channel, host, format_address((host, where[1])))

    async def _pace(self) -> None:
        """At most ACCEPTS_PER_SECOND: the rest waits in the kernel's queue, and costs us nothing."""
        now = time.monotonic()
        self._allowance = min(ACCEPTS_PER_SECOND, self._allowance + (now - self._measured) * ACCEPTS_PER_SECOND)
        self._measured = now
        self._allowance -= 1
        if self._allowance < 0:
            await asyncio.sleep(-self._allowance / ACCEPTS_PER_SECOND)

    def _admit(self, channel: socket.socket, host: str, address: str) -> None:
        if len(self._peers) >= MOST_CONNECTIONS:
            oldest = next((peer for peer in self._peers if not peer.known), None)
            if oldest:  # else all are known, and this one shall hear of the limit
                self.refused("limit", oldest.address, f"{MOST_CONNECTIONS} connections are open")
                oldest.abort()
                self.forget(oldest)
        peer = Peer(self, channel, host, address)
        self._peers[peer] = None
        peer.task = asyncio.create_task(self._greet(peer, channel))
        peer.task.add_done_callback(peer.greeted)

    async def _greet(self, peer: Peer, channel: socket.socket) -> None:
        """From a connection to one that speaks TLS."""
        credentials, gate = self._credentials(), self._gate
        try:
            if credentials is None or gate is None or not await self._speaks_tls(peer, channel):
                return
            _keep_alive(channel)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(peer, gate, self._config, self._state), channel, ssl=credentials.context,
                ssl_handshake_timeout=STRANGER_TIME, ssl_shutdown_timeout=GRACE,
            )  # fmt: skip
            peer.channel = None
        except ssl.SSLError as error:
            self.refused("tls", peer.address, f"no TLS ({(error.reason or str(error)).replace('_', ' ').lower()})")
        except OSError as error:  # a timeout and a reset are two
            self.refused("tls", peer.address, f"it left during the TLS handshake ({error.strerror or error})")

    async def _speaks_tls(self, peer: Peer, channel: socket.socket) -> bool:
        """Wait for the first byte, at almost no cost. Whoever speaks HTTP without TLS is told so."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def arrived() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(channel, arrived)
        try:
            await ready
        finally:
            loop.remove_reader(channel)
        first = channel.recv(8, socket.MSG_PEEK)
        if first[:1] == b"\x16":  # a TLS record of the kind handshake: RFC 8446 section 5.1
            return True
        if not first:
            self.refused("tls", peer.address, "it left without a word")
            return False
        self.refused("plaintext", peer.address, "it speaks no TLS")
        if first[:1].isalpha():
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(PLAIN_ANSWER)}"
            with contextlib.suppress(OSError):
                channel.recv(MOST_HEAD)  # what is left unread would reset the connection before the answer is read
                channel.send(f"{head}\r\nConnection: close\r\n\r\n".encode() + PLAIN_ANSWER)
                channel.shutdown(socket.SHUT_WR)
        return False


def _origin(host: str) -> str:
    """What one client has: an address, or of IPv6 a network, in which it can make up addresses as it likes."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _keep_alive(channel: socket.socket) -> None:
    """A client that vanished is noticed within a minute or so, also by a stream that has nothing to say."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        socket.TCP_KEEPIDLE: 30,
        socket.TCP_KEEPINTVL: 10,
        socket.TCP_KEEPCNT: 3,
        socket.TCP_USER_TIMEOUT: 60_000,
    }
    for option, value in {**options, socket.TCP_NODELAY: 1}.items():
        channel.setsockopt(socket.IPPROTO_TCP, option, value)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """uvicorn wants an application; each connection has its own."""
