# SPDX-License-Identifier: Apache-2.0
"""The API over TCP, with real TLS: who gets in and may do what, and what strangers get."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.api import connections
from switch.api.gate import access_of
from switch.datapath import Event
from tests.interop.process import wait_until
from tests.support.daemon import service
from tests.support.pki import Pki
from tests.support.remote import Remote

PORT = {"name": "vm7", "type": "vhostuser", "socket": "/run/vm7.sock"}


@pytest.fixture(scope="module")
def pki(module_folder: Path) -> Pki:
    made = Pki(module_folder / "pki")
    made.section()
    made.issue("client", usage="clientAuth")
    made.issue("stranger", usage="clientAuth", ca=made.authority("other"))
    return made


@pytest.fixture
def remote(folder: Path, pki: Pki) -> Iterator[Remote]:
    with service(folder, pki.section()) as api:
        yield Remote(api, pki)


@pytest.fixture(scope="module")
def shared(module_folder: Path, pki: Pki) -> Iterator[Remote]:
    """For tests that change nothing."""
    with service(module_folder, pki.section()) as api:
        yield Remote(api, pki)


# ---- who gets in, and may do what ----


def test_a_token_opens_the_same_api(remote: Remote) -> None:
    status, body, headers = remote.ask("GET", "/v1/ports")
    assert (status, [port["name"] for port in body["ports"]]) == (200, ["vm1", "vm2"])
    assert headers["date"].endswith("GMT")
    assert remote.ask("POST", "/v1/ports", PORT)[:2] == (201, {"changed": True})
    assert "vm7" in remote.api.datapath.specs


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="switchd"'),
        ({"Authorization": "Bearer"}, 'Bearer realm="switchd"'),
        ({"Authorization": "Basic b3BzOm9wcw=="}, 'Bearer realm="switchd"'),
        ({"Authorization": "Bearer ops"}, 'Bearer realm="switchd", error="invalid_token"'),
        ({"Authorization": f"bearer {'0' * 64}"}, 'Bearer realm="switchd", error="invalid_token"'),
        ({"Authorization": "Bearer \xe9\xff" + "0" * 64}, 'Bearer realm="switchd", error="invalid_token"'),
    ],
)
@pytest.mark.parametrize("path", ["/v1/ports", "/metrics", "/openapi.json", "/", "/v1/events?follow=1"])
def test_without_a_good_token_nothing_is_told(
    shared: Remote, path: str, headers: dict[str, str], challenge: str
) -> None:
    before = shared.refused("token")
    status, body, found = shared.ask("GET", path, headers=headers)
    assert (status, body["error"]["kind"], found["www-authenticate"]) == (401, "unauthorized", challenge)
    assert "--token-file" in body["error"]["message"]
    assert found["connection"] == "close"
    assert shared.refused("token") == before + 1


def test_two_tokens_are_none(shared: Remote) -> None:
    with contextlib.closing(shared.connect()) as connection:
        connection.putrequest("GET", "/v1/ports")
        for _ in range(2):
            connection.putheader("Authorization", shared.bearer("ops")["Authorization"])
        connection.endheaders()
        assert connection.getresponse().status == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/show", None, 200),
        ("GET", "/metrics", None, 200),
        ("GET", "/openapi.json", None, 200),
        ("GET", "/v1/config", None, 200),
        ("POST", "/v1/ports/vm1/explain", {"frame": "ffffffffffff5254000000010806"}, 200),
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/log", None, 405),
        ("POST", "/v1/ports", PORT, 403),
        ("DELETE", "/v1/ports/vm1", None, 403),
        ("DELETE", "/v1/ports/vm%31", None, 403),
        ("PATCH", "/v1/ports/vm1", {"mtu": 9000}, 403),
        ("GET", "/v1/ports/vm1/capture", None, 403),
        ("GET", "/v1/ports/vm1/%63apture?count=1", None, 403),
        ("POST", "/v1/fdb/flush", {}, 403),
        ("POST", "/v1/config/apply", {"text": "version: 1"}, 403),
        ("POST", "/v1/config/plan", {"text": "version: 1"}, 403),
        ("PUT", "/v1/log", {"level": "debug"}, 403),
    ],
)
def test_a_token_that_may_read_changes_nothing(shared: Remote, method: str, path: str, body: Any, status: int) -> None:
    before, refusals = list(shared.api.datapath.calls), shared.refused("access")
    found, answer, headers = shared.ask(method, path, body, token="eye")
    assert found == status, answer
    assert shared.api.datapath.calls == before
    if status == 403:
        assert answer["error"]["kind"] == "forbidden"
        assert "token eye may only read" in answer["error"]["message"]
        assert 'error="insufficient_scope"' in headers["www-authenticate"]
        assert shared.refused("access") == refusals + 1


def test_every_route_says_what_it_needs(shared: Remote) -> None:
    document = shared.ask("GET", "/openapi.json")[1]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    needed = {
        (method, path): operation["security"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(needed) > 20
    for (method, path), security in needed.items():
        assert security == [{}, {"token": [access_of(path, {method.upper()})]}]
        responses = document["paths"][path][method]["responses"]
        assert {"401", "403"} <= responses.keys()
    reads = {
        path for (method, path), security in needed.items() if security[1]["token"] == ["read"] and method != "get"
    }
    assert reads == {"/v1/ports/{name}/explain"}


def test_who_did_it_is_in_the_event(remote: Remote) -> None:
    remote.ask("PATCH", "/v1/ports/vm1", {"mtu": 9000})
    remote.api.ask("PATCH", "/v1/ports/vm2", {"mtu": 9000})
    details = [event["detail"] for event in remote.ask("GET", "/v1/events?kind=config_changed")[1]["events"]]
    assert details[0].startswith("set port vm1: mtu 0 -> 9000, by ops from 127.0.0.1:")
    assert details[1] == "set port vm2: mtu 0 -> 9000"


@pytest.mark.parametrize(
    ("listen", "host"), [("[::1]:0", "::1"), (":0", "::1"), (":0", "127.0.0.1"), ("localhost:0", "localhost")]
)
def test_addresses_of_every_kind(folder: Path, pki: Pki, listen: str, host: str) -> None:
    with service(folder, pki.section(listen=listen)) as api:
        remote = Remote(api, pki)
        with contextlib.closing(remote.connect(host)) as connection:
            connection.request("GET", "/v1/ports", headers=remote.bearer("eye"))
            assert connection.getresponse().status == 200


@pytest.mark.parametrize(("certificate", "gets_in"), [("client", True), ("", False), ("stranger", False)])
def test_with_a_client_ca_the_token_is_not_enough(folder: Path, pki: Pki, certificate: str, gets_in: bool) -> None:
    with service(folder, pki.section(client_ca=str(pki.ca))) as api:
        remote = Remote(api, pki)
        if certificate:
            remote.context.load_cert_chain(
                str(pki.folder / f"{certificate}.pem"), str(pki.folder / f"{certificate}.key")
            )
        if gets_in:
            assert remote.ask("GET", "/v1/ports")[0] == 200
            assert remote.ask("GET", "/v1/ports", headers={})[0] == 401, "a certificate is not enough either"
        else:
            with pytest.raises(OSError):  # noqa: PT011 reset, closed or an alert: as TLS happens to say it
                remote.ask("GET", "/v1/ports")
            wait_until("it is counted", lambda: remote.refused("tls") == 1)


@pytest.mark.parametrize(
    ("version", "speaks"),
    [(ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_versions_of_tls(remote: Remote, version: ssl.TLSVersion, speaks: bool) -> None:
    remote.context.minimum_version = remote.context.maximum_version = version
    remote.context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if speaks:
        assert remote.ask("GET", "/v1/ports")[0] == 200
    else:
        with pytest.raises(OSError):  # noqa: PT011
            remote.ask("GET", "/v1/ports")


# ---- what strangers get ----


def closed(channel: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := channel.recv(65536):
            found += part
    return found


def test_http_without_tls_is_told_to_use_it(remote: Remote) -> None:
    with remote.raw() as channel:
        channel.sendall(b"GET /v1/ports HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = closed(channel).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "use https" in json.loads(body)["error"]["message"]
    assert remote.refused("plaintext") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00",
        b"\x16",
        b"\x16\x03\x01\xff\xff" + b"\xff" * 2000,  # a TLS record of 65535 bytes
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00",  # a ClientHello of 16 MB
        b"\x80\x2e\x01\x00\x02" + bytes(43),  # SSL 2
        b"SSH-2.0-x\r\n",
        bytes(range(256)) * 8,
    ],
)
def test_garbage_ends_the_connection_and_nothing_else(shared: Remote, sent: bytes) -> None:
    before = shared.refused("tls", "plaintext")
    with shared.raw() as channel:
        channel.sendall(sent)
        with contextlib.suppress(OSError):  # it is closed already
            channel.shutdown(socket.SHUT_WR)
        closed(channel)
    wait_until("it is counted", lambda: shared.refused("tls", "plaintext") > before)
    assert shared.ask("GET", "/v1/ports")[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /v1/ports HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5_000 + b"\r\n",
        b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"GET /v1/ports HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_inside_tls_too(shared: Remote, head: bytes) -> None:
    with shared.raw() as plain, shared.context.wrap_socket(plain, server_hostname="localhost") as channel:
        with contextlib.suppress(OSError):
            channel.sendall(head)
        assert closed(channel).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    assert shared.ask("GET", "/v1/ports")[0] == 200


@pytest.mark.parametrize("stage", ["connected", "half a handshake", "handshake", "half a request"])
def test_a_slow_stranger_is_dropped(remote: Remote, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(connections, "STRANGER_TIME", 1.0)  # there is a handshake within it
    with remote.raw() as plain:
        channel = plain
        if stage == "half a handshake":
            plain.sendall(b"\x16\x03\x01\x02\x00\x01")
        elif stage != "connected":
            channel = remote.context.wrap_socket(plain, server_hostname="localhost")
        if stage == "half a request":
            channel.sendall(b"GET /v1/ports HTTP/1.1\r\nHost: x\r\n")
        assert closed(channel) == b""
        channel.close()
    wait_until("it is counted", lambda: remote.refused("timeout") + remote.refused("tls"))
    monkeypatch.undo()
    assert remote.ask("GET", "/v1/ports")[0] == 200


def test_a_crowd_of_strangers_keeps_nobody_out(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ACCEPTS_PER_SECOND", 5000)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 20)
    with contextlib.closing(remote.connect()) as stream, contextlib.ExitStack() as crowd:
        stream.request("GET", "/v1/events?follow=1&limit=0", headers=remote.bearer("eye"))
        answer = stream.getresponse()
        for _ in range(200):
            crowd.enter_context(remote.raw())
            facts = remote.api.listener.facts()
            assert facts is not None
            assert facts.connections <= 20
        assert remote.ask("GET", "/v1/ports")[0] == 200
        remote.api.soon(remote.api.control.events.append, [Event(1.0, "port_connected", port="vm1")])
        assert json.loads(answer.readline())["kind"] == "port_connected", "who is known stays"
    wait_until("all are gone", lambda: (found := remote.api.listener.facts()) and found.connections == 0)
    assert remote.refused("limit") >= 180


def test_when_all_are_known_one_more_is_refused(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    with contextlib.ExitStack() as open_ones:
        for _ in range(2):
            connection = open_ones.enter_context(contextlib.closing(remote.connect()))
            connection.request("GET", "/v1/events?follow=1", headers=remote.bearer("eye"))
            assert connection.getresponse().status == 200
        status, body, _ = remote.ask("GET", "/v1/ports")
        assert (status, body["error"]["kind"]) == (429, "limit")
        assert "2 connections are open, the most there can be" in body["error"]["message"]
        assert remote.refused("limit") == 1
    wait_until("they are gone", lambda: (found := remote.api.listener.facts()) and found.connections == 0)
    assert remote.ask("GET", "/v1/ports")[0] == 200


@pytest.mark.parametrize(
    ("listen", "host", "others", "origin"),
    [
        ("127.0.0.1:0", "127.0.0.1", "127.0.0.2", "127.0.0.1"),
        (":0", "::1", "127.0.0.1", "::/64"),
    ],
)
def test_one_address_cannot_take_all_connections(
    folder: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch, listen: str, host: str, others: str, origin: str
) -> None:
    monkeypatch.setattr(connections, "MOST_PER_ADDRESS", 3)
    with service(folder, pki.section(listen=listen)) as api, contextlib.ExitStack() as open_ones:
        remote = Remote(api, pki)

        def ask(path: str, source: str = host, headers: dict[str, str] | None = None) -> tuple[int, Any]:
            connection = remote.connect(source if ":" in source else "127.0.0.1", source)
            open_ones.callback(connection.close)
            connection.request("GET", path, headers=remote.bearer("eye") if headers is None else headers)
            answer = connection.getresponse()
            return answer.status, None if "follow" in path else json.loads(answer.read())

        for _ in range(3):
            assert ask("/v1/events?follow=1")[0] == 200
        status, body = ask("/v1/ports")
        assert (status, body["error"]["kind"]) == (429, "limit")
        assert body["error"]["message"] == (
            f"GET /v1/ports: 3 connections from {origin} are open, the most of one address: close some"
        )
        assert ask("/v1/ports", headers={})[0] == 401, "whoever has no token hears nothing of it"
        assert ask("/v1/ports", source=others)[0] == 200
        assert remote.refused("limit") == 1


def test_connections_come_in_at_a_bounded_rate(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(connections, "ACCEPTS_PER_SECOND", 10)
    monkeypatch.setattr(asyncio, "sleep", noted)
    with contextlib.ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(remote.raw())
        wait_until("the allowance is used up", lambda: pauses)
    assert min(pauses) > 0


def test_a_body_has_a_size_and_a_time(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("switch.api.gate.MOST_BODY", 1000)
    status, body, _ = remote.ask("POST", "/v1/config/validate", {"text": "x" * 2000})
    assert (status, body["error"]["kind"]) == (413, "request")
    monkeypatch.setattr("switch.api.gate.BODY_TIME", 0.1)
    with contextlib.closing(remote.connect()) as connection:
        connection.putrequest("POST", "/v1/config/validate")
        for name, value in {**remote.bearer("ops"), "Content-Length": "100"}.items():
            connection.putheader(name, value)
        connection.endheaders(b"{")
        assert connection.getresponse().status == 408


def test_a_strangers_body_is_not_read(remote: Remote) -> None:
    with contextlib.closing(remote.connect()) as connection:
        connection.putrequest("POST", "/v1/ports")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        assert connection.getresponse().status == 401
        assert connection.sock is None, "the connection is closed"


def test_a_client_that_resets_its_connection_leaves_nothing(remote: Remote) -> None:
    for request in (b"", b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n"):
        plain = remote.raw()
        channel = remote.context.wrap_socket(plain, server_hostname="localhost")
        if request:
            channel.sendall(request + f"Authorization: {remote.bearer('eye')['Authorization']}\r\n\r\n".encode())
            assert channel.recv(15) == b"HTTP/1.1 200 OK"
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        channel.close()
    wait_until("they are gone", lambda: (found := remote.api.listener.facts()) and found.connections == 0)


def test_metrics_say_what_a_monitor_wants(remote: Remote) -> None:
    remote.ask("GET", "/metrics", headers={})
    text = remote.ask("GET", "/metrics", token="eye")[1]
    assert "switch_api_listening 1.0" in text
    assert "switch_api_connections 1.0" in text
    assert 'switch_api_refused_total{reason="token"} 1.0' in text
    assert 'switch_api_refused_total{reason="limit"} 0.0' in text
    assert "switch_api_certificate_expiry_timestamp_seconds" in text
