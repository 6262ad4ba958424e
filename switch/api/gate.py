# SPDX-License-Identifier: Apache-2.0
"""What stands between a TLS connection and the API: who asks, whether that one may, and how much it may send.

The routes say themselves what they need (make_app marks each of them): `read` or `write`. Nothing of a body is read
before its sender is known. A refusal ends the connection, so that the rest of a body has nowhere to go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from switch.api.credentials import Credentials, Token
from switch.events import actor

log = logging.getLogger("switch.api")

MOST_BODY = 12 << 20  # a configuration of 8 MiB, as JSON
BODY_TIME = 60.0  # seconds for a whole body

# Answers that only a writer gets although they change nothing: other people's frames, and what costs the daemon time.
WRITE_ONLY = frozenset({"/v1/ports/{name}/capture"})
# Requests that change nothing although they have a body.
READ_ONLY = frozenset({"/v1/ports/{name}/explain"})


class Peer(Protocol):
    """The connection that a request came by."""

    address: str
    token: Token | None  # of the request that is being served
    answering: bool  # its response has begun

    def introduce(self) -> str: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...


def access_of(path: str, methods: set[str]) -> str:
    """What a route needs of whoever comes by TCP."""
    if path in WRITE_ONLY:
        return "write"
    return "read" if methods <= {"GET", "HEAD"} or path in READ_ONLY else "write"


class Gate:
    """An ASGI application per connection: `functools.partial(gate, peer)`."""

    def __init__(
        self, app: FastAPI, credentials: Callable[[], Credentials | None], refused: Callable[[str, str, str], None]
    ) -> None:
        self._app = app
        self._credentials = credentials
        self._refused = refused  # (reason, address, words)

    async def __call__(self, peer: Peer, scope: Scope, receive: Receive, send: Send) -> None:
        peer.begin()
        before = actor.set("")
        try:
            await self._serve(peer, scope, receive, _dated(peer, send))
        finally:
            actor.reset(before)
            peer.token = None
            peer.answering = False
            peer.end()

    async def _serve(self, peer: Peer, scope: Scope, receive: Receive, send: Send) -> None:
        given = _bearer(scope)
        credentials = self._credentials()
        token = credentials.match(given) if credentials and given else None
        what = f"{scope['method']} {scope['path']}"
        if token is None:
            reason = "the token is not one of control.tcp.tokens, or not any more" if given else "no token was sent"
            self._refused("token", peer.address, f"{what}: {reason}")
            hint = "swctl sends the one of --token-file, curl -H 'Authorization: Bearer TOKEN'"
            refusal = _refusal(401, "unauthorized", f"{what}: {reason}; {hint}", "invalid_token" if given else "")
            await refusal(scope, receive, send)
            return
        if why := peer.introduce():
            self._refused("limit", peer.address, f"{what}: {why}")
            await _refusal(429, "limit", f"{what}: {why}")(scope, receive, send)
            return
        if token.access != "write" and self._needs(scope) == "write":
            self._refused("access", peer.address, f"{what}: token {token.name} may only read")
            words = f"{what}: token {token.name} may only read; this needs one with access: write"
            await _refusal(403, "forbidden", words, "insufficient_scope")(scope, receive, send)
            return
        peer.token = token
        actor.set(f"{token.name} from {peer.address}")
        if scope["method"] not in ("GET", "HEAD"):
            log.info("%s, by %s", what, actor.get())
        await self._app(scope, _bounded(peer, receive), send)

    def _needs(self, scope: Scope) -> str:
        """What the route needs that a request will take; one that nobody serves needs nothing to be told so."""
        for route in self._app.routes:
            if isinstance(route, APIRoute) and route.matches(scope)[0] is Match.FULL:
                return access_of(route.path, route.methods or set())
        return "read"


def _bearer(scope: Scope) -> str:
    """The token of the header Authorization (RFC 6750); "" when there is none or there are two."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return ""
    scheme, _, token = found[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _refusal(status: int, kind: str, message: str, error: str | None = None) -> JSONResponse:
    """`error` is what RFC 6750 calls what is wrong with the token, if that is what is wrong."""
    headers = {"Connection": "close"}
    if error is not None:
        headers["WWW-Authenticate"] = 'Bearer realm="switchd"' + (f', error="{error}"' if error else "")
    return JSONResponse({"error": {"kind": kind, "message": message, "faults": []}}, status, headers=headers)


def _dated(peer: Peer, send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            peer.answering = True
            date = formatdate(usegmt=True).encode()
            message = {**message, "headers": [*message.get("headers", ()), (b"date", date)]}
        await send(message)

    return wrapped


def _bounded(peer: Peer, receive: Receive) -> Receive:
    """A body has a size and a time."""
    size = 0
    until = time.monotonic() + BODY_TIME
    whole = False

    def refuse(status: int, why: str) -> Message:
        if not peer.answering:
            raise HTTPException(status, why)
        return {"type": "http.disconnect"}  # nobody reads this body, and it is too late for a refusal

    async def wrapped() -> Message:
        nonlocal size, whole
        if whole:  # what is waited for now is that the client leaves
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                message = await receive()
        except TimeoutError:
            return refuse(408, f"the body did not come within {BODY_TIME:g} seconds")
        size += len(message.get("body", b""))
        if size > MOST_BODY:
            return refuse(413, f"the body is larger than {MOST_BODY >> 20} MiB")
        whole = not message.get("more_body", False)
        return message

    return wrapped


def describe_access(app: FastAPI) -> None:
    """Write into /openapi.json what each route needs of whoever comes by TCP; on the control socket, nothing."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            needed = {"token": [access_of(route.path, route.methods or set())]}
            route.openapi_extra = {**(route.openapi_extra or {}), "security": [{}, needed]}
    original = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemes = original().setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {
                "type": "http",
                "scheme": "bearer",
                "description": "a token of control.tcp.tokens, over TLS; its access is the role: read, or write, "
                "which may read too. On the Unix socket file mode and group decide, and no token is needed",
            }
        return original()

    app.openapi = described  # type: ignore[method-assign]
