# SPDX-License-Identifier: Apache-2.0
"""The switches under test. Each runs on one CPU whole: data path, control threads and all.

A switch is started with a number of vhost-user ports, p0 to pN; `path(i)` is the socket of port i and
`guest_listens` says who makes it. `busy()` is the CPU time that its data path spent moving frames, and how many.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bench.process import BenchError, Child, run, wait_until

ROOT = Path(__file__).resolve().parents[1]
SWITCH_CPU = 0
LOAD_CPU = 1
OVS_PROGRAM = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
OVS_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@dataclass(frozen=True, slots=True)
class Busy:
    cycles: float
    frames: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a case asks of the switch."""

    ports: int
    macs: int  # addresses that it will see altogether
    frame_bytes: int = 64
    offloads: bool = False  # guests send TCP frames for the other side to cut
    control_apart: bool = False  # control threads of switchd where its own rules put them, not on the worker's CPU

    @property
    def jumbo(self) -> bool:
        return self.frame_bytes > 1518 and not self.offloads


class Switch(ABC):
    guest_listens: ClassVar[bool] = True
    most_macs: ClassVar[int] = 1 << 30  # more addresses than that make no sense
    most_ports: ClassVar[int] = 1024
    takes_offloads: ClassVar[bool] = True

    def __init__(self, label: str) -> None:
        self.label = label
        self.children: list[Child] = []
        self.needs = Needs(0, 0)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name)

    def path(self, port: int) -> Path:
        return self.folder / f"p{port}.sock"

    def start(self, needs: Needs) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="swbench-")
        self.needs = needs
        try:
            self._start(needs)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for child in reversed(self.children):
            child.stop()
        self.children.clear()
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    @property
    def running(self) -> bool:
        return self._folder is not None

    def pause(self) -> None:
        for child in self.children:
            child.pause()

    def resume(self) -> None:
        for child in self.children:
            child.resume()

    def able(self, needs: Needs) -> bool:
        fits = needs.macs <= self.most_macs and needs.ports <= self.most_ports
        return fits and (self.takes_offloads or not needs.offloads)

    def check(self) -> None:
        for child in self.children:
            child.check()

    @abstractmethod
    def _start(self, needs: Needs) -> None: ...
    @abstractmethod
    def busy(self) -> Busy | None: ...
    @abstractmethod
    def version(self) -> str: ...


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Ours(Switch):
    """switchd of a checkout (this one, or another that is to be compared), with its default configuration."""

    guest_listens = False

    def __init__(self, label: str, checkout: Path, tsc_hz: int) -> None:
        super().__init__(label)
        self.checkout = checkout
        self.tsc_hz = tsc_hz
        self.python = Path(sys.executable) if checkout == ROOT else checkout / ".venv/bin/python"
        if not self.python.exists():
            raise BenchError(f"{checkout} has no .venv: run tools/setup.sh run there")

    def configuration(self, needs: Needs) -> dict[str, Any]:
        return {
            "version": 1,
            "switch": {"workers": [{"cpu": SWITCH_CPU}], "state_dir": str(self.folder)},
            "control": {"socket": str(self.folder / "control.sock")},
            "metrics": {"listen": "off"},
            "bridges": [{"name": "br0", "mac_limit": min(1 << 20, max(65536, 2 * needs.macs))}],
            "ports": [
                {"name": f"p{i}", "type": "vhostuser", "socket": str(self.path(i)), "socket_owner": "switch"}
                for i in range(needs.ports)
            ],
        }

    def _start(self, needs: Needs) -> None:
        file = self.folder / "switch.yaml"
        file.write_text(yaml.safe_dump(self.configuration(needs)))
        command: list[str | Path] = [self.python, "-P", "-m", "switch.daemon", "--config", file, "--fresh"]
        cpus = {SWITCH_CPU, LOAD_CPU} if needs.control_apart else {SWITCH_CPU}
        child = Child(command, self.folder / "switchd.log", cpus)
        self.children.append(child)
        wait_until("switchd's sockets", lambda: self._answers() and self.path(needs.ports - 1).exists(), 20, child)

    def _answers(self) -> bool:
        try:
            self.request("GET", "/v1/workers")
        except OSError:
            return False
        return True

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        connection = UnixConnection(self.folder / "control.sock")
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise BenchError(f"{self.label}: {method} {path}: {answer.status} {said.decode(errors='replace')}")
        return said

    def busy(self) -> Busy | None:
        workers = json.loads(self.request("GET", "/v1/workers"))["workers"]
        return Busy(sum(w["busy_seconds"] for w in workers) * self.tsc_hz, sum(w["frames"] for w in workers))

    def version(self) -> str:
        commit = run(["git", "-C", self.checkout, "rev-parse", "--short=10", "HEAD"]).strip()
        changed = run(["git", "-C", self.checkout, "status", "--porcelain", "-uno"]).strip()
        return commit + (" with local changes" if changed else "")


class Ovs(Switch):
    """ovs-vswitchd with DPDK and one bridge in NORMAL mode; every flow goes into its exact match cache."""

    most_macs = 10_000

    def _start(self, needs: Needs) -> None:
        if not Path(OVS_PROGRAM).exists():
            raise BenchError("no OVS with DPDK: apt-get install openvswitch-switch-dpdk")
        folder = self.folder
        self.environment = {name: str(folder) for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")}
        self.environment |= {"RUNTIME_DIRECTORY": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        run(["ovsdb-tool", "create", folder / "conf.db", OVS_SCHEMA], self.environment)
        server = Child(
            ["ovsdb-server", f"--remote=punix:{folder}/db.sock", "--no-chdir", f"--unixctl={folder}/db.ctl",
             folder / "conf.db"],
            folder / "ovsdb.log", {LOAD_CPU}, self.environment,
        )  # fmt: skip
        self.children.append(server)
        wait_until("ovsdb-server's socket", (folder / "db.sock").exists, 10, server)
        self.ctl("--no-wait", "init")
        self.ctl("--no-wait", "set", "Open_vSwitch", ".", *(
            f"other_config:{key}={value}" for key, value in {
                "dpdk-init": "true", "dpdk-socket-mem": "512", "dpdk-extra": "--in-memory --no-pci --no-telemetry",
                "dpdk-lcore-mask": hex(1 << SWITCH_CPU), "pmd-cpu-mask": hex(1 << SWITCH_CPU),
                "emc-insert-inv-prob": "1", "max-idle": "600000", "userspace-tso-enable": str(needs.offloads).lower(),
            }.items()
        ))  # fmt: skip
        daemon = Child(
            [OVS_PROGRAM, f"unix:{folder}/db.sock", "--no-chdir", f"--unixctl={folder}/ovs.ctl"],
            folder / "vswitchd.log", {SWITCH_CPU}, self.environment,
        )  # fmt: skip
        self.children.append(daemon)
        wait_until("ovs-vswitchd's socket", (folder / "ovs.ctl").exists, 30, daemon)
        command = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=standalone"]
        command += [f"other_config:mac-table-size={max(8192, 2 * needs.macs)}"]
        for i in range(needs.ports):
            command += ["--", "add-port", "br0", f"p{i}", "--", "set", "Interface", f"p{i}"]
            command += ["type=dpdkvhostuserclient", f"options:vhost-server-path={self.path(i)}"]
            if needs.jumbo:
                command.append(f"mtu_request={needs.frame_bytes}")
        self.ctl(*command)

    def ctl(self, *words: str) -> str:
        return run(["ovs-vsctl", "--timeout=30", f"--db=unix:{self.folder}/db.sock", *words], self.environment, 40)

    def ask(self, *words: str) -> str:
        return run(["ovs-appctl", "-t", self.folder / "ovs.ctl", *words], self.environment)

    def busy(self) -> Busy | None:
        text = self.ask("dpif-netdev/pmd-stats-show")
        cycles = re.search(r"processing cycles: (\d+)", text)
        frames = re.search(r"packets received: (\d+)", text)
        return Busy(float(cycles[1]), int(frames[1])) if cycles and frames else None

    def version(self) -> str:
        return run([OVS_PROGRAM, "--version"]).replace("\n", ", ").strip(", ")


class Testpmd(Switch):
    """testpmd in io mode between vhost ports: DPDK's vhost library and nothing else, no look at any frame."""

    __test__ = False
    takes_offloads = False
    most_ports = 32  # RTE_MAX_ETHPORTS

    def _start(self, needs: Needs) -> None:
        program = shutil.which("dpdk-testpmd")
        if program is None:
            raise BenchError("no dpdk-testpmd: apt-get install dpdk-dev")
        buffers = ["--mbuf-size=10240", "--total-num-mbufs=8192"] if needs.jumbo else ["--total-num-mbufs=16384"]
        vdevs = [f"--vdev=net_vhost{i},iface={self.path(i)},queues=1,client=1" for i in range(needs.ports)]
        # Standard input stays open and silent: testpmd ends when a line comes.
        self._stdin, keep = os.pipe()
        self._keep = keep
        command = [
            "stdbuf", "-oL", program, "--lcores", f"0@{SWITCH_CPU},1@{SWITCH_CPU}", "--no-pci", "--in-memory",
            "-m", "256", "--no-telemetry", *vdevs,
            "--", "--nb-cores=1", "--forward-mode=io", *buffers, "--disable-link-check",
        ]  # fmt: skip
        environment = {"RUNTIME_DIRECTORY": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        log = self.folder / "testpmd.log"
        child = Child(command, log, {SWITCH_CPU}, environment, self._stdin)
        self.children.append(child)
        wait_until("testpmd", lambda: "Press enter" in log.read_text(errors="replace"), 20, child)

    def stop(self) -> None:
        super().stop()
        for name in ("_stdin", "_keep"):
            if fd := self.__dict__.pop(name, None):
                os.close(fd)

    def busy(self) -> Busy | None:
        return None

    def version(self) -> str:
        return run(["pkg-config", "--modversion", "libdpdk"]).strip()


def make_switch(text: str, tsc_hz: int) -> Switch:
    """A switch from the command line: ours, ours=CHECKOUT, ovs, testpmd."""
    kind, _, checkout = text.partition("=")
    if kind == "ours":
        path = Path(checkout).resolve() if checkout else ROOT
        return Ours(f"ours@{path.name}" if checkout else "ours", path, tsc_hz)
    if kind == "ovs" and not checkout:
        return Ovs("ovs")
    if kind == "testpmd" and not checkout:
        return Testpmd("testpmd")
    raise BenchError(f"there is no switch '{text}': ours, ours=CHECKOUT, ovs, testpmd")
