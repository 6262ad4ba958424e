# SPDX-License-Identifier: Apache-2.0
"""The real daemon, started as a person starts it, and what a person sees of it: swctl's JSON and /metrics."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from switch.config.dump import to_yaml
from tests.interop import needs
from tests.interop.process import Process, wait_until

Labels = frozenset[tuple[str, str]]


def entry_point(name: str) -> str:
    """switchd or swctl of the environment that the tests run in."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{path} is missing: install the project into this environment (make test does)"
    return str(path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def values_of(found: Any, key: str) -> Iterator[Any]:
    """Every value of `key` at any depth of a JSON value."""
    if isinstance(found, Mapping):
        for name, value in found.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(found, Sequence) and not isinstance(found, str):
        for value in found:
            yield from values_of(value, key)


class Metrics:
    """One scrape: sums over samples by any of their labels."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name][frozenset(sample.labels.items())] = sample.value

    def sum(self, name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(value for found, value in self.samples[name].items() if wanted <= found)

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums by one label, zeros left out."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.samples[name].items():
            if set(labels.items()) <= found and value:
                sums[dict(found)[label]] += value
        return dict(sums)

    def ports(self) -> list[str]:
        return sorted(dict(labels)["port"] for labels in self.samples["switch_port_up"])

    def up(self, port: str) -> bool:
        return self.sum("switch_port_up", port=port) == 1

    def received(self, port: str) -> int:
        return int(self.sum("switch_port_receive_frames_total", port=port))

    def transmitted(self, port: str) -> int:
        return int(self.sum("switch_port_transmit_frames_total", port=port))

    def segmented(self, port: str) -> int:
        """Frames that software segmentation added for the port."""
        return int(self.sum("switch_port_segmented_frames_total", port=port))

    def drops(self, port: str, direction: str | None = None) -> dict[str, float]:
        chosen = {"direction": direction} if direction else {}
        return self.by("switch_port_drops_total", "reason", port=port, **chosen)

    def check_conservation(self) -> None:
        """Every frame that came in is accounted for. True of a switch at rest only."""
        wrong = []
        for port in self.ports():
            came = self.received(port) + self.sum("switch_port_replicated_frames_total", port=port)
            went = self.sum("switch_port_forwarded_frames_total", port=port) + sum(self.drops(port, "rx").values())
            if came != went:
                wrong.append(f"{port}: received + replicated {came:.0f}, forwarded + dropped {went:.0f}")
            came = self.sum("switch_port_offered_frames_total", port=port)
            came += self.sum("switch_port_segmented_frames_total", port=port)
            went = self.transmitted(port) + sum(self.drops(port, "tx").values())
            if came != went:
                wrong.append(f"{port}: offered + segmented {came:.0f}, transmitted + dropped {went:.0f}")
        forwarded = self.sum("switch_port_forwarded_frames_total")
        offered = self.sum("switch_port_offered_frames_total")
        if forwarded != offered:
            wrong.append(f"all ports: forwarded {forwarded:.0f}, offered {offered:.0f}")
        assert not wrong, "\n".join(wrong)


class Api:
    """The control socket, without the Python of its own that every swctl is: a tenth of a second, seconds where it is
    emulated."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(60)
            connection.sock.connect(self._path)
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = connection.getresponse()
            data = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {data!r}"
        return json.loads(data) if data else None


class Switchd:
    """A daemon in `folder`, configured by `ports` (and what else is given), with its own sockets and metrics port.

    `prefix` runs it in a network namespace; its metrics are then read through the control socket's path instead.
    """

    def __init__(self, folder: Path, ports: list[dict[str, Any]], cpu: int | None = None, polling: str = "adaptive",
                 prefix: Sequence[str] = (), **sections: Any) -> None:  # fmt: skip
        self.folder = folder
        self.prefix = list(prefix)
        self.control = folder / "control.sock"
        self.metrics_port = free_port()
        self.file = folder / "switch.yaml"
        self.log = folder / "switchd.log"
        self.config: dict[str, Any] = {
            "version": 1,
            "switch": {
                "name": "sw0",
                "polling": polling,
                "workers": [{"cpu": needs.two_cpus()[0] if cpu is None else cpu}],
                "memory": {"size": "16M"},
                "state_dir": str(folder / "state"),
            },
            "control": {"socket": str(self.control)},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "bridges": [{"name": "br0"}],
            "ports": ports,
            **sections,
        }
        (folder / "state").mkdir(exist_ok=True)
        self.process: Process | None = None

    def __enter__(self) -> Switchd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write(self) -> None:
        self.file.write_text(to_yaml(self.config))

    def start(self, wait: bool = True) -> Process:
        self.write()
        command = [*self.prefix, entry_point("switchd"), "--config", str(self.file)]
        self.process = Process(command, self.log)
        if wait:
            wait_until("switchd answers on its control socket", self.answers, 120.0)
        return self.process

    def stop(self) -> None:
        if self.process:
            self.process.stop(10.0)

    def answers(self) -> bool:
        assert self.process is not None
        self.process.check()
        try:
            Api(self.control).ask("GET", "/v1/ports")
        except OSError:
            return False
        return True

    def ctl_status(self, *arguments: str, json_output: bool = True) -> tuple[int, str, str]:
        """Exit status, output and errors of one swctl."""
        command = [entry_point("swctl"), "--control", str(self.control), *(["-o", "json"] if json_output else [])]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=30, check=False,
            env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def ctl(self, *arguments: str) -> Any:
        """What swctl says, parsed."""
        status, output, errors = self.ctl_status(*arguments)
        assert status == 0, f"swctl {' '.join(arguments)} ended with {status}: {output}{errors}"
        return json.loads(output)

    def fdb_macs(self) -> dict[str, str]:
        """MAC -> port of every entry."""
        entries = [entry for entry in self._entries(self.ctl("fdb")) if "mac" in entry]
        return {entry["mac"]: entry["port"] for entry in entries}

    @classmethod
    def _entries(cls, found: Any) -> Iterator[dict[str, Any]]:
        if isinstance(found, dict):
            if "mac" in found:
                yield found
            for value in found.values():
                yield from cls._entries(value)
        elif isinstance(found, list):
            for value in found:
                yield from cls._entries(value)

    def metrics(self) -> Metrics:
        return Metrics(self.metrics_text())

    def metrics_text(self) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        if self.prefix:  # the port is only reachable from inside the namespace
            fetch = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
            command = [*self.prefix, sys.executable, "-c", fetch]
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.URLError as error:
            raise AssertionError(f"{url}: {error}") from error

    def wait_up(self, *ports: str, seconds: float = 30.0) -> None:
        def up() -> bool:
            metrics = self.metrics()
            return all(metrics.up(port) for port in ports)

        try:
            wait_until(f"ports {', '.join(ports)} up", up, seconds)
        except AssertionError as error:
            said = "\n".join(str(self.ctl_status("port", port, json_output=False)) for port in ports)
            raise AssertionError(f"{error}\n{said}\n{self.log.read_text()[-2000:]}") from error

    def settle(self, seconds: float = 10.0) -> Metrics:
        """Wait until two scrapes agree, that is until nothing moves any more; returns the last one."""
        last: list[Metrics] = []

        def still() -> bool:
            last.append(self.metrics())
            moving = ("switch_port_receive_frames_total", "switch_port_transmit_frames_total")
            return len(last) > 1 and all(last[-1].samples[name] == last[-2].samples[name] for name in moving)

        wait_until("counters come to rest", still, seconds, every=0.3)
        return last[-1]


def vhost_port(name: str, path: Path, server: bool = False, **more: Any) -> dict[str, Any]:
    """`server`: the guest's side owns the socket."""
    owner = "peer" if server else "switch"
    return {"name": name, "type": "vhostuser", "socket": str(path), "socket_owner": owner, **more}
