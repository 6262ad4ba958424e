# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch with DPDK as a peer: its own database, sockets and network namespace, and no huge pages.

The machine's openvswitch-switch service is neither needed nor touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.interop import needs
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until

PACKAGE = "openvswitch-switch-dpdk"
VSWITCHD = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


class Ovs:
    """One bridge, br0, that learns; ports are added with `add`. `cpu` polls."""

    def __init__(self, folder: Path, cpu: int, netns: Netns) -> None:
        self.folder = folder / "ovs"
        self._tool = needs.program("ovsdb-tool", PACKAGE)
        self._server = needs.program("ovsdb-server", PACKAGE)
        self._vsctl = needs.program("ovs-vsctl", PACKAGE)
        self._appctl = needs.program("ovs-appctl", PACKAGE)
        if not VSWITCHD.exists():
            needs.lacking(f"{VSWITCHD} is missing", f"apt-get install {PACKAGE}")
        self._netns = netns  # its internal port and its names are nobody else's there
        self._cpu = cpu
        self._database: Process | None = None
        self._daemon: Process | None = None

    @property
    def log(self) -> Path:
        return self.folder / "vswitchd.log"

    @property
    def _socket(self) -> Path:
        return self.folder / "db.sock"

    def _environment(self) -> dict[str, str]:
        own = dict.fromkeys(
            ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"),
            str(self.folder),
        )
        return {**os.environ, **own}

    def __enter__(self) -> Ovs:
        self.folder.mkdir()
        self._run(self._tool, "create", self.folder / "conf.db", SCHEMA)
        self._database = Process(
            [self._server, self.folder / "conf.db", f"--remote=punix:{self._socket}", "--no-chdir",
             f"--unixctl={self.folder / 'ovsdb.ctl'}"],
            self.folder / "ovsdb.log", environment=self._environment(),
        )  # fmt: skip
        try:
            wait_until("ovsdb-server listens", self._socket.exists)
            self.vsctl("init")
            # OVS asks DPDK for --in-memory, which excludes --no-huge, unless --legacy-mem is given.
            self.vsctl(
                "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
                "other_config:dpdk-extra=--legacy-mem --no-huge -m 256 --no-pci --no-telemetry "
                f"--file-prefix=ovs{os.getpid()}",
                "other_config:per-port-memory=true",  # pools of 16384 buffers instead of 262144
                f"other_config:pmd-cpu-mask={1 << self._cpu:#x}", f"other_config:dpdk-lcore-mask={1 << self._cpu:#x}",
            )  # fmt: skip
            self.vsctl("add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev")
        except BaseException:
            self._database.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._daemon, self._database):
            if process:
                process.stop()
        if self.log.exists():  # where short_folder() finds it when a test failed
            shutil.copy(self.log, self.folder.parent)

    def _run(self, *command: str | Path) -> str:
        parts = [str(part) for part in command]
        done = subprocess.run(
            parts, capture_output=True, text=True, timeout=30, check=False, env=self._environment()
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(parts)}: {done.stdout}{done.stderr}"
        return done.stdout

    def vsctl(self, *arguments: str) -> str:
        return self._run(self._vsctl, f"--db=unix:{self._socket}", "--no-wait", *arguments).strip()

    def add(self, name: str, kind: str, *settings: str) -> None:
        self.vsctl("add-port", "br0", name, "--", "set", "Interface", name, f"type={kind}", *settings)

    def add_listening(self, name: str) -> Path:
        """A vhost-user port on a socket that OVS makes."""
        self.add(name, "dpdkvhostuser")
        return self.folder / name

    def add_connecting(self, name: str, path: Path) -> None:
        """A vhost-user port that connects, for ever, to a socket that its peer makes."""
        self.add(name, "dpdkvhostuserclient", f"options:vhost-server-path={path}")

    def start(self, ports: Sequence[str] = ()) -> None:
        """`ports`: names to wait for; they exist then, connected or not."""
        for name in ports:  # a killed OVS leaves its sockets behind, and cannot bind to them again
            (self.folder / name).unlink(missing_ok=True)
        control = self.folder / "vswitchd.ctl"
        control.unlink(missing_ok=True)
        self._daemon = Process(
            [*self._netns.prefix(), VSWITCHD, f"unix:{self._socket}", f"--log-file={self.log}", "-vconsole:off",
             f"--unixctl={control}"],
            self.folder / "vswitchd.out", environment=self._environment(),
        )  # fmt: skip
        daemon = self._daemon

        def ready() -> bool:
            daemon.check()
            return control.exists() and all(f" {name} " in self._shown() for name in ports)

        wait_until(f"OVS has the ports {', '.join(ports)}", ready, 30.0, every=0.2)

    def _shown(self) -> str:
        """What the running datapath says of its ports; nothing before it answers."""
        command = [self._appctl, "-t", str(self.folder / "vswitchd.ctl"), "dpif/show"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout

    def kill(self) -> None:
        assert self._daemon is not None
        self._daemon.kill()
