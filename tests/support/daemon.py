# SPDX-License-Identifier: Apache-2.0
"""A Control and its API over a MemoryDatapath, served on a real Unix socket by a thread; for unit tests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from switch.api.app import make_app
from switch.api.sockets import claim_socket
from switch.api.tcp import TcpListener
from switch.config import Machine, parse_config
from switch.control import Control, Listener
from switch.daemon import _make_server
from switch.metrics import make_registry
from switch.state import SavedState, StateFile
from tests.support.memory_datapath import MemoryDatapath

MACHINE = Machine(frozenset({0, 1, 2, 3}), lambda group: 1234 if group == "switch" else None)


def config_text(folder: Path, ports: str = "", extra: str = "") -> str:
    return (
        f"version: 1\nswitch: {{workers: [{{cpu: 2}}]}}\ncontrol: {{socket: {folder}/control.sock}}\n"
        f"metrics: {{listen: off}}\n{extra}ports:\n"
        f"  - {{name: vm1, type: vhostuser, socket: {folder}/vm1.sock, vlan: {{access: 10}}}}\n"
        f"  - {{name: vm2, type: vhostuser, socket: {folder}/vm2.sock}}\n{ports}"
    )


def make_control(
    folder: Path,
    datapath: MemoryDatapath | None = None,
    text: str = "",
    saved: SavedState | None = None,
    listener: Listener | None = None,
) -> Control:
    """A started Control whose file is folder/switch.yaml."""
    path = folder / "switch.yaml"
    path.write_text(text or config_text(folder))
    config = parse_config(path.read_text(), str(path), folder, MACHINE)
    control = Control(
        datapath or MemoryDatapath(), config, path, machine=MACHINE, state_file=StateFile(folder / "state.json"),
        listener=listener,
    )  # fmt: skip
    control.start(saved)
    return control


class Service:
    """A running API. `ask` speaks HTTP over its Unix socket; `call` runs a coroutine on its loop.

    `tcp`: it is served over TCP too, as this control.tcp says.
    """

    def __init__(self, folder: Path, tcp: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.socket = folder / "control.sock"
        self.datapath = MemoryDatapath()
        self.listener = TcpListener()
        self.control = make_control(folder, self.datapath, self.text(tcp), listener=self.listener)
        self.listener.tell = self.control.news
        self._loop = asyncio.new_event_loop()
        self._claimed = claim_socket(self.socket, 0o660, None)
        registry = make_registry(self.datapath, self.control.facts)
        app = make_app(self.control, registry)
        self.listener.serve(app)
        self._server = _make_server(app)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if tcp:
            self.call(self.listener.demand(self.control.config.control.tcp))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._claimed.listener]))
        self._loop.close()

    def text(self, tcp: Mapping[str, Any] | None) -> str:
        """The configuration with this control.tcp."""
        control = f"control: {{socket: {self.socket}"
        return config_text(self.folder).replace(control, f"{control}, tcp: {json.dumps(tcp)}" if tcp else control)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def start(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Run a coroutine on the loop and go on meanwhile."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def soon(self, action: Any, *arguments: Any) -> None:
        """Run a function on the loop."""

        async def run() -> None:
            action(*arguments)

        self.call(run())

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        connection.sock.connect(str(self.socket))
        return connection

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with contextlib.closing(self.connect()) as connection:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.getheader("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text.decode()

    def close(self) -> None:
        self.soon(self.control.events.close)
        self.call(self.listener.close())
        self._server.should_exit = True
        self._thread.join(20)
        self._claimed.release()
        self.datapath.close()


@contextlib.contextmanager
def service(folder: Path, tcp: Mapping[str, Any] | None = None) -> Iterator[Service]:
    made = Service(folder, tcp)
    try:
        yield made
    finally:
        made.close()
