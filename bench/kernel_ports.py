# SPDX-License-Identifier: Apache-2.0
"""Kernel-backed ports beside those of OVS-DPDK: two hosts (network namespaces) that talk through the switch.

python -m bench.kernel_ports --json bench/results/kernel-ports/local.json
python -m bench.kernel_ports --contenders ours-afpacket,ovs-af_packet --rounds 1 --seconds 1 --json FILE

Every contender has namespaces of its own and is started before the first round; while one is measured the others are
stopped. The switch polls on one CPU, both hosts' programs run on the other. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench import machine
from bench.generator import core
from bench.numbers import median
from bench.process import BenchError, Child, run, wait_until
from bench.switches import LOAD_CPU, OVS_PROGRAM, OVS_SCHEMA, ROOT, SWITCH_CPU, Needs, Ours, Ovs, Switch

LEFT, RIGHT = "10.6.0.1", "10.6.0.2"
COLUMNS = ("tcp_gbps", "udp_mpps", "udp_loss", "rtt_p50_us", "rtt_p99_us")
NO_OFFLOADS = ("tx", "off", "tso", "off", "gso", "off")
ECHO = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if len(sys.argv) == 3:
    s.bind((sys.argv[1], 7)); print("ready", flush=True)
    while True: s.sendto(*s.recvfrom(2048))
s.settimeout(1.0); s.connect((sys.argv[1], 7)); times = []
for i in range(600):
    t = time.perf_counter_ns(); s.send(b"x" * 64)
    try: s.recv(2048)
    except TimeoutError: continue
    times.append(time.perf_counter_ns() - t)
times = sorted(times[100:]); print(times[len(times) // 2] / 1000, times[len(times) * 99 // 100] / 1000)
"""


@dataclass(frozen=True)
class Contender:
    """What carries the frames between the hosts."""

    port: tuple[str, ...]  # ours: the kind; OVS: settings of the interface, {device} filled in
    makes_device: bool = False  # a TAP that the switch makes, handed to the host afterwards
    plain_hosts: bool = False  # the hosts must finish checksums and cut segments themselves
    settings: tuple[str, ...] = ()  # of OVS as a whole

    @property
    def ours(self) -> bool:
        return "=" not in self.port[0]


CONTENDERS = {
    "ours-afpacket": Contender(("afpacket",)),
    "ours-afxdp": Contender(("afxdp",)),
    "ours-tap": Contender(("tap",), makes_device=True),
    "ovs-af_packet": Contender(
        ("type=dpdk", "options:dpdk-devargs=net_af_packet_{device},iface={device}"), plain_hosts=True
    ),
    "ovs-system": Contender(("type=system",), plain_hosts=True),
    "ovs-system-tso": Contender(("type=system",), settings=("other_config:userspace-tso-enable=true",)),
    # net_tap wants as many receive as transmit queues, and OVS makes one of these per thread.
    "ovs-net_tap": Contender(
        ("type=dpdk", "options:dpdk-devargs=net_tap_{device},iface={device}", "options:n_rxq=2"),
        makes_device=True,
        plain_hosts=True,
    ),
    "ovs-afxdp": Contender(("type=afxdp", "options:xdp-mode=generic"), plain_hosts=True),
}


@dataclass
class Hosts:
    """Three namespaces: a host, the switch, a host."""

    name: str
    contender: Contender
    names: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Hosts:
        for role in ("left", "switch", "right"):
            self.names[role] = f"swb{os.getpid()}{self.name}{role}"
            run(["ip", "netns", "add", self.names[role]])
            for scope in ("all", "default"):
                self.call(role, "sh", "-c", f"echo 1 >/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if not self.contender.makes_device:
            for number, role in enumerate(("left", "right")):
                run(["ip", "-n", self.names["switch"], "link", "add", f"s{number}", "type", "veth", "peer", "name",
                     f"h{number}", "netns", self.names[role]])  # fmt: skip
                run(["ip", "-n", self.names["switch"], "link", "set", f"s{number}", "up"])
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names.values():
            with contextlib.suppress(BenchError):
                run(["ip", "netns", "delete", name])

    def prefix(self, role: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[role]]

    def call(self, role: str, *command: str, seconds: float = 20.0) -> str:
        return run([*self.prefix(role), *command], seconds=seconds)

    def connect(self) -> None:
        """Addresses, when the switch runs."""
        for number, (role, address) in enumerate((("left", LEFT), ("right", RIGHT))):
            device = f"s{number}" if self.contender.makes_device else f"h{number}"
            if self.contender.makes_device:
                run(["ip", "-n", self.names["switch"], "link", "set", device, "netns", self.names[role]])
            run(["ip", "-n", self.names[role], "address", "add", f"{address}/24", "dev", device])
            run(["ip", "-n", self.names[role], "link", "set", device, "up"])
            if self.contender.plain_hosts:
                self.call(role, "ethtool", "-K", device, *NO_OFFLOADS)


class OursHere(Ours):
    def __init__(self, label: str, tsc_hz: int, hosts: Hosts) -> None:
        super().__init__(label, ROOT, tsc_hz)
        self.hosts = hosts

    def _start(self, needs: Needs) -> None:
        configuration = self.configuration(Needs(0, 0))
        kind = self.hosts.contender.port[0]
        configuration["ports"] = [{"name": f"p{i}", "type": kind, "device": f"s{i}"} for i in range(2)]
        file = self.folder / "switch.yaml"
        file.write_text(yaml.safe_dump(configuration))
        command: list[str | Path] = [*self.hosts.prefix("switch"), self.python, "-P", "-m", "switch.daemon"]
        command += ["--config", file, "--fresh"]
        child = Child(command, self.folder / "switchd.log", {SWITCH_CPU})
        self.children.append(child)
        wait_until("switchd", self._answers, 20, child)


class OvsHere(Ovs):
    """Without huge pages, so that several run at once: every frame is copied by the kernel anyhow."""

    def __init__(self, label: str, hosts: Hosts) -> None:
        super().__init__(label)
        self.hosts = hosts

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
        cpu = hex(1 << SWITCH_CPU)
        extra = f"--legacy-mem --no-huge -m 256 --no-pci --no-telemetry --file-prefix={folder.name}"
        self.ctl(
            "--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
            f"other_config:dpdk-extra={extra}", "other_config:per-port-memory=true",
            f"other_config:dpdk-lcore-mask={cpu}", f"other_config:pmd-cpu-mask={cpu}",
            "other_config:emc-insert-inv-prob=1", "other_config:max-idle=600000", *self.hosts.contender.settings,
        )  # fmt: skip
        daemon = Child(
            [*self.hosts.prefix("switch"), OVS_PROGRAM, f"unix:{folder}/db.sock", "--no-chdir",
             f"--unixctl={folder}/ovs.ctl"],
            folder / "vswitchd.log", {SWITCH_CPU}, self.environment,
        )  # fmt: skip
        self.children.append(daemon)
        wait_until("ovs-vswitchd's socket", (folder / "ovs.ctl").exists, 30, daemon)
        command = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=standalone"]
        for i in range(2):
            command += ["--", "add-port", "br0", f"s{i}", "--", "set", "Interface", f"s{i}"]
            command += [text.format(device=f"s{i}") for text in self.hosts.contender.port]
        self.ctl(*command)
        for i in range(2):
            error = self.ctl("get", "Interface", f"s{i}", "error").strip()
            if error != "[]":
                raise BenchError(f"OVS: s{i}: {error}")


def wait_connected(hosts: Hosts) -> None:
    def reaches() -> bool:
        with contextlib.suppress(BenchError):
            hosts.call("left", "busybox", "ping", "-c1", "-W1", RIGHT)
            return True
        return False

    wait_until("the hosts reach each other", reaches, 20)


def iperf(hosts: Hosts, folder: Path, *options: str) -> dict[str, Any]:
    server = Child([*hosts.prefix("right"), "iperf3", "-s", "-1"], folder / "iperf3.log", {LOAD_CPU})
    try:
        wait_until("iperf3", lambda: ":5201" in hosts.call("right", "ss", "-ltn"), 10, server)
        said = hosts.call("left", "iperf3", "-J", "-c", RIGHT, *options, seconds=60)
        end: dict[str, Any] = json.loads(said)["end"]
        return end
    finally:
        server.stop()


def measure(hosts: Hosts, folder: Path, seconds: int) -> dict[str, float]:
    tcp = iperf(hosts, folder, "-t", str(seconds))["sum_received"]["bits_per_second"] / 1e9
    # Receiver's count of what arrived over the sender's time.
    udp = iperf(hosts, folder, "-u", "-b", "0", "-l", "64", "-t", str(seconds))["sum"]
    echo = Child([*hosts.prefix("right"), sys.executable, "-c", ECHO, RIGHT, "serve"], folder / "echo.log", {LOAD_CPU})
    try:
        wait_until("the echo", lambda: b"ready" in (folder / "echo.log").read_bytes(), 10, echo)
        half, most = hosts.call("left", sys.executable, "-c", ECHO, RIGHT).split()
    finally:
        echo.stop()
    arrived = udp["packets"] - udp["lost_packets"]
    return {
        "tcp_gbps": tcp,
        "udp_mpps": arrived / udp["seconds"] / 1e6,
        "udp_loss": udp["lost_packets"] / max(1, udp["packets"]),
        "rtt_p50_us": float(half),
        "rtt_p99_us": float(most),
    }


def make(name: str, hosts: Hosts, tsc_hz: int) -> Switch:
    return OursHere(name, tsc_hz, hosts) if hosts.contender.ours else OvsHere(name, hosts)


def run_all(names: list[str], rounds: int, seconds: int, tsc_hz: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        ready: dict[str, tuple[Switch, Hosts]] = {}
        for number, name in enumerate(names):
            hosts = stack.enter_context(Hosts(str(number), CONTENDERS[name]))
            switch = make(name, hosts, tsc_hz)
            try:
                switch.start(Needs(2, 2))
                stack.callback(switch.stop)
                hosts.connect()
                wait_connected(hosts)
            except BenchError as error:
                print(f"{name:<16} does not run here: {error}", file=sys.stderr)
                results[name] = {"error": re.sub(r"/tmp/\S+", "PATH", str(error)).splitlines()[0]}
                switch.stop()
                continue
            switch.pause()
            ready[name] = (switch, hosts)
            results[name] = {"version": switch.version(), "rounds": []}
        for _ in range(rounds):
            for name, (switch, hosts) in ready.items():
                switch.resume()
                time.sleep(0.2)
                results[name]["rounds"].append(measure(hosts, switch.folder, seconds))
                switch.pause()
        for switch, _ in ready.values():
            switch.resume()
    return results


def merge(file: Path, facts: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Rounds of the same contender and version add up over runs."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    all_of_them: dict[str, Any] = known.get("contenders", {})
    for name, result in results.items():
        before = all_of_them.get(name, {})
        if "rounds" in result and before.get("version") == result["version"]:
            result["rounds"] = before["rounds"] + result["rounds"]
        if "rounds" in result or "rounds" not in before:
            all_of_them[name] = result
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**facts, "contenders": all_of_them}, indent=1, sort_keys=True) + "\n")
    return all_of_them


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_ports", description=__doc__.split("\n")[0])
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="of " + ", ".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each has its turn")
    parser.add_argument("--seconds", type=int, default=2, help="of each TCP and UDP run (iperf3 takes whole ones)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the rounds to this file")
    given = parser.parse_args(arguments)
    names = given.contenders.split(",")
    if unknown := [name for name in names if name not in CONTENDERS]:
        parser.error(f"there is no contender {', '.join(unknown)}")
    if os.geteuid() != 0:
        parser.error("network namespaces are made: run as root")
    tsc_hz = core().tsc_hz()
    os.sched_setaffinity(0, {LOAD_CPU})
    results = run_all(names, given.rounds, given.seconds, tsc_hz)
    if given.json:
        results = merge(given.json, {"machine": machine.describe(tsc_hz)}, results)
    for name, result in results.items():
        if rounds := result.get("rounds"):
            shown = "  ".join(f"{key} {median([one[key] for one in rounds]):8.3f}" for key in COLUMNS)
            print(f"{name:<16} {shown}  ({len(rounds)} rounds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
