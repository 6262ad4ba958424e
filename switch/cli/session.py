# SPDX-License-Identifier: Apache-2.0
"""What every verb shares: where the daemon is, how to ask it, and how to answer (for a person or as JSON)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click

from switch.errors import ControlError

if TYPE_CHECKING:
    import http.client

DEFAULT_CONTROL = "/run/switch/control.sock"
TIMEOUT = 60.0
IDENTITY = ("token_file", "cacert", "cert", "key")


class Refused(ControlError):
    """The daemon answered with an error. `body` is its error object."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.body = body
        super().__init__(str(body.get("message", f"HTTP status {status}")))


class Session:
    """One run of swctl."""

    def __init__(self) -> None:
        self.control = os.environ.get("SWITCH_CONTROL") or DEFAULT_CONTROL
        # Only for a daemon at an URL: files that say who we are and whom we trust.
        self.identity = {key: os.environ.get(f"SWITCH_{key.upper()}", "") for key in IDENTITY}
        self.json = False

    @property
    def remote(self) -> bool:
        """Whether the daemon is named by an URL: it may be on another machine, with other files."""
        return "://" in self.control

    # ---- asking ----

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer. ControlError when there is none or it is an error. Queries that are None are left out."""
        import http.client

        response, connection = self._send(method, path, body, query, TIMEOUT)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._stopped(error) from error
        finally:
            connection.close()
        return self._decode(response.status, data)

    def stream(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The objects of an NDJSON stream as they come; ends when the daemon stops."""
        import http.client

        response, connection = self._send("GET", path, None, query, None)
        try:
            if response.status != 200:
                self._decode(response.status, response.read())
            while line := response.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: half a line, then the end
            raise self._stopped(error) from error
        finally:
            connection.close()

    def _stopped(self, error: Exception) -> ControlError:
        return ControlError(f"switchd at {self.control} stopped answering: {error!r}; see its log")

    def _send(self, method: str, path: str, body: Any, query: Mapping[str, Any], timeout: float | None) -> Any:
        import http.client

        given = {key: str(value).lower() if isinstance(value, bool) else value
                 for key, value in query.items() if value is not None}  # fmt: skip
        target = quote(path) + (f"?{urlencode(given)}" if given else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        connection = self._connect_remote(timeout, headers) if self.remote else self._connect_local(timeout)
        try:
            connection.request(method, target, data, headers)
            return connection.getresponse(), connection
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ControlError(f"switchd at {self.control} did not answer: {self._silent(error)}") from error

    def _silent(self, error: Exception) -> str:
        """Why no answer came."""
        if self.remote and not isinstance(error, TimeoutError):
            from switch.cli import remote

            return remote.failed(error, remote.Identity(**self.identity))
        return f"{error!r}; see its log"

    def _connect_remote(self, timeout: float | None, headers: dict[str, str]) -> http.client.HTTPConnection:
        import http.client

        from switch.cli import remote

        identity = remote.Identity(**self.identity)
        connection = http.client.HTTPConnection(*remote.place(self.control))
        headers["Authorization"] = f"Bearer {remote.token(identity, self.control)}"
        connection.sock = remote.connect(self.control, identity, timeout)
        return connection

    def _connect_local(self, timeout: float | None) -> http.client.HTTPConnection:
        import http.client

        connection = http.client.HTTPConnection("localhost")
        connection.sock = self._connect(timeout)
        return connection

    def _connect(self, timeout: float | None) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        channel.settimeout(timeout)
        try:
            channel.connect(self.control)
        except OSError as error:
            channel.close()
            raise ControlError(f"cannot reach switchd at {self.control}: {self._why(error)}") from error
        return channel

    def _why(self, error: OSError) -> str:
        other = "or name another socket with --control or $SWITCH_CONTROL"
        if "/" not in self.control and ":" in self.control:
            return f"there is no such socket; for a daemon on another machine write https://{self.control}"
        if isinstance(error, FileNotFoundError):
            return f"there is no such socket; start the daemon with `switchd --config FILE`, {other}"
        if isinstance(error, ConnectionRefusedError):
            return f"nobody listens there, so the daemon has died; start it again, {other}"
        if isinstance(error, PermissionError):
            return f"permission denied; {self._group()}use sudo, {other}"
        return f"{error.strerror or error}; {other}"

    def _group(self) -> str:
        try:
            group = Path(self.control).group()
        except (OSError, KeyError):
            return ""
        return f"join group {group}, "

    @staticmethod
    def _decode(status: int, data: bytes) -> Any:
        try:
            body = json.loads(data)
        except ValueError:
            body = {"error": {"message": data.decode(errors="replace")[:500] or f"HTTP status {status}"}}
        if status >= 400:
            raise Refused(status, body.get("error", {}) if isinstance(body, dict) else {})
        return body

    # ---- answering ----

    def answer(self, data: Any, text: Callable[[], str]) -> None:
        """`data` as JSON when asked for, else the text for a person; nothing when that is empty."""
        if self.json:
            click.echo(json.dumps(data, indent=2))
        elif shown := text():
            click.echo(shown)


def port_path(name: str, below: str = "") -> str:
    """The path of a port in the API. What cannot be part of a path is no port's name either."""
    if not name or "/" in name:
        raise ControlError(f"there is no port {name!r}: a name is letters, digits, '_', '.' and '-'; see swctl ports")
    return f"/v1/ports/{name}{below}"


def port_names(session: Session) -> list[str]:
    """For completion: quick, and silent when nobody answers."""
    try:
        connection = session._send("GET", "/v1/ports", None, {}, 1.0)
        ports = json.loads(connection[0].read())["ports"]
        connection[1].close()
        return [port["name"] for port in ports]
    except (ControlError, OSError, ValueError, KeyError):
        return []
