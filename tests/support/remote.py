# SPDX-License-Identifier: Apache-2.0
"""A client of the API over TCP, and certificates for both sides; for unit tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from switch.datapath import Event
from tests.support.daemon import Service
from tests.support.pki import Pki


class Remote:
    """A client of a Service over TCP."""

    def __init__(self, api: Service, pki: Pki) -> None:
        self.api = api
        self.pki = pki
        self.context = ssl.create_default_context(cafile=str(pki.ca))

    @property
    def port(self) -> int:
        return int(self.api.listener.url.rpartition(":")[2])

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.pki.folder / f'{name}.token').read_text().strip()}"}

    def connect(self, host: str = "127.0.0.1", source: str = "") -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            host, self.port, timeout=20, context=self.context, source_address=(source, 0) if source else None
        )

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, token: str = "ops"
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON or text, headers."""
        with contextlib.closing(self.connect()) as connection:
            data = None if body is None else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data else {}
            connection.request(method, path, data, sent | (self.bearer(token) if headers is None else headers))
            answer = connection.getresponse()
            text = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            is_json = found.get("content-type", "") == "application/json"
            return answer.status, json.loads(text) if is_json else text.decode(), found

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def refused(self, *reasons: str) -> int:
        facts = self.api.listener.facts()
        assert facts is not None
        return sum(facts.refused[reason] for reason in reasons)

    def apply(self, section: dict[str, Any] | None) -> Any:
        """Through the control socket, as `swctl apply` does."""
        request = {"text": self.api.text(section), "path": str(self.api.folder / "switch.yaml")}
        status, answer = self.api.ask("POST", "/v1/config/apply", request)
        assert status == 200, answer
        return answer

    @contextlib.contextmanager
    def following(self, token: str) -> Iterator[http.client.HTTPResponse]:
        """A stream of the events of ports."""
        with contextlib.closing(self.connect()) as stream:
            stream.request("GET", "/v1/events?follow=1&limit=0&kind=port", headers=self.bearer(token))
            answer = stream.getresponse()
            assert answer.status == 200
            yield answer

    def goes_on(self, answer: http.client.HTTPResponse) -> bool:
        """Whether an event comes by that stream."""
        self.api.soon(self.api.control.events.append, [Event(1.0, "port_connected", port="vm1")])
        return bool(json.loads(answer.readline())["kind"] == "port_connected")
