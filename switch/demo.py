# SPDX-License-Identifier: Apache-2.0
"""`make run`: a real switchd, two software guests that exchange frames through it, and a live table of rates.

Everything is a process of its own, as in life: the daemon, started as a person starts it, and the guests, which know
only their sockets. The table is made of what /metrics says. However this ends, nothing of it stays behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 20.0
FRAME_BYTES = 64
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


class DemoError(Exception):
    """Why the demo cannot go on, fit to be shown."""


@dataclass
class Totals:
    """Of one port, added up over queues and reasons."""

    values: dict[str, float] = field(default_factory=dict)
    up: bool = False

    def of(self, name: str) -> float:
        return self.values.get(name, 0.0)


@dataclass(frozen=True)
class Target:
    """What the configuration says that the demo needs."""

    file: Path
    control: str
    metrics: str
    ports: tuple[tuple[str, str], ...]  # name and socket of two vhost-user ports
    worker_cpus: tuple[int, ...]


def is_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def read_target(file: Path, folder: Path) -> Target:
    """Where its metrics address is taken (by a switch that runs already, say), a copy in `folder` has another one."""
    from switch.config import dump_config, load_config
    from switch.errors import ConfigError

    try:
        config = load_config(file)
    except ConfigError as error:
        raise DemoError(str(error)) from error
    except OSError as error:
        raise DemoError(f"cannot read {file}: {error.strerror}; run this from the root of the project") from error
    specs = [spec for spec in config.state().ports if spec.type == "vhostuser" and spec.socket_owner == "switch"]
    if len(specs) < 2:
        raise DemoError(f"{file}: the demo needs two vhostuser ports with socket_owner: switch, it has {len(specs)}")
    if config.metrics.listen is None:
        raise DemoError(f"{file}: the demo shows what /metrics says, but metrics.listen is off")
    host, port = config.metrics.listen
    if is_taken(host, port):
        taken, port = port, free_port(host)
        print(f"port {taken} is in use, so /metrics is on port {port} this time")
        metrics = config.metrics.model_copy(update={"listen": (host, port)})
        file = folder / file.name
        file.write_text(dump_config(config.model_copy(update={"metrics": metrics})))
    shown = f"[{host}]" if ":" in host else host or "127.0.0.1"
    return Target(
        file,
        config.control.socket,
        f"http://{shown}:{port}/metrics",
        tuple((spec.name, spec.socket) for spec in specs[:2]),
        config.datapath_options().workers,
    )


def scrape(url: str) -> dict[str, Totals]:
    """Port -> totals, and "worker" -> busy and idle seconds."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    found: dict[str, Totals] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            owner = sample.labels.get("port") or ("worker" if "worker" in sample.labels else "")
            if owner and sample.name.startswith("switch_"):
                totals = found.setdefault(owner, Totals())
                if sample.name == "switch_port_up":
                    totals.up = sample.value == 1
                short = sample.name.removeprefix("switch_port_").removeprefix("switch_worker_").removesuffix("_total")
                totals.values[short] = totals.of(short) + sample.value
    return found


@contextlib.contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own (Ctrl-C is for us), ended on leaving."""
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield child
    finally:
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            if child.poll() is None:
                child.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(seconds)


def check_alive(child: subprocess.Popen[bytes], what: str, log: Path) -> None:
    if child.poll() is not None:
        said = log.read_text(errors="replace").strip()[-1500:]
        raise DemoError(f"{what} ended with status {child.returncode}:\n{said}")


def wait_for_switch(child: subprocess.Popen[bytes], target: Target, log: Path) -> dict[str, Totals]:
    deadline = time.monotonic() + START_SECONDS
    while True:
        check_alive(child, "switchd", log)
        try:
            return scrape(target.metrics)
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise DemoError(f"switchd does not answer at {target.metrics}: {error}") from error
        time.sleep(0.1)


def conditions(target: Target, guest_cpus: Sequence[int]) -> str:
    """One line: what this machine gives and what the numbers below therefore mean."""
    cpus = sorted(os.sched_getaffinity(0))
    workers = ", ".join(map(str, target.worker_cpus))
    share = "" if len(cpus) > 2 else f" ({len(cpus)} CPU{'s' if len(cpus) > 1 else ''}: the guests share one)"
    huge = 0
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        huge = int(next(line for line in lines if line.startswith("HugePages_Free")).split()[1])
    pages = f"{huge} huge pages free" if huge else "no huge pages, works without"
    user = "root" if os.geteuid() == 0 else "not root, none needed"
    return f"worker on CPU {workers}, guests on {', '.join(map(str, sorted(set(guest_cpus))))}{share}; {pages}; {user}"


def guest_cpus(target: Target) -> tuple[int, int]:
    """CPUs for the two guests, beside the worker's if there are others."""
    free = [cpu for cpu in sorted(os.sched_getaffinity(0)) if cpu not in target.worker_cpus]
    free = free or sorted(os.sched_getaffinity(0))
    return free[0], free[min(1, len(free) - 1)]


def guest_commands(target: Target, cpus: tuple[int, int]) -> dict[str, list[str]]:
    """Guests that share a CPU poll in turn, in one process; others get a process each."""
    guests = [
        ["--socket", path, "--mac", MACS[index], "--peer-mac", MACS[1 - index]]
        for index, (_, path) in enumerate(target.ports)
    ]
    common = [sys.executable, "-m", "switch.testing.traffic", "--duration", "0", "--size", str(FRAME_BYTES)]
    if cpus[0] == cpus[1]:
        return {"guests": [*common, "--cpu", str(cpus[0]), *guests[0], *guests[1]]}
    return {
        f"guest-{name}": [*common, "--cpu", str(cpu), *guest]
        for (name, _), cpu, guest in zip(target.ports, cpus, guests, strict=True)
    }


COLUMNS = f"{'port':<10}{'state':>6}{'in Mpps':>10}{'in Gbit/s':>11}{'out Mpps':>10}{'out Gbit/s':>12}{'drops/s':>12}"


def table(before: dict[str, Totals], now: dict[str, Totals], seconds: float, left: float | None) -> list[str]:
    def rate(name: str, port: str) -> float:
        return max(0.0, now[port].of(name) - before.get(port, Totals()).of(name)) / seconds

    lines = [COLUMNS]
    for port in sorted(set(now) - {"worker"}):
        lines.append(
            f"{port:<10}{'up' if now[port].up else 'down':>6}"
            f"{rate('receive_frames', port) / 1e6:>10.3f}{rate('receive_bytes', port) * 8 / 1e9:>11.3f}"
            f"{rate('transmit_frames', port) / 1e6:>10.3f}{rate('transmit_bytes', port) * 8 / 1e9:>12.3f}"
            f"{rate('drops', port):>12.0f}"
        )
    busy, idle = rate("busy_seconds", "worker"), rate("idle_seconds", "worker")
    load = busy / (busy + idle) if busy + idle else 0.0
    ending = "Ctrl-C ends it" if left is None else f"{left:.0f} s left"
    lines.append(f"workers {load:.0%} busy; {ending}")
    return lines


def watch(target: Target, children: dict[str, tuple[subprocess.Popen[bytes], Path]], duration: float) -> None:
    """The live table, until `duration` is over (0: until Ctrl-C)."""
    terminal = sys.stdout.isatty()
    began = time.monotonic()
    before, when, shown = scrape(target.metrics), began, 0
    while not duration or time.monotonic() - began < duration:
        rest = duration - (time.monotonic() - began) if duration else 1.0
        time.sleep(min(1.0, max(0.05, rest)))
        for what, (child, log) in children.items():
            check_alive(child, what, log)
        now, moment = scrape(target.metrics), time.monotonic()
        left = max(0.0, duration - (moment - began)) if duration else None
        lines = table(before, now, moment - when, left)
        if terminal and shown:
            sys.stdout.write(f"\x1b[{shown}A\x1b[J")
        print("\n".join(lines), flush=True)
        before, when, shown = now, moment, len(lines)


def verdict(target: Target, first: dict[str, Totals], last: dict[str, Totals]) -> bool:
    """Whether frames came out of both ports that had gone in at the other."""
    fine = True
    for name, path in target.ports:
        start, end = first.get(name, Totals()), last.get(name, Totals())
        received = int(end.of("receive_frames") - start.of("receive_frames"))
        transmitted = int(end.of("transmit_frames") - start.of("transmit_frames"))
        print(f"{name}: {received:,} frames in, {transmitted:,} out")
        if not received or not transmitted:
            fine = False
            what = "nothing came from its guest" if not received else "nothing reached its guest"
            print(f"{name}: {what} at {path}", file=sys.stderr)
    return fine


def run(file: Path, duration: float) -> bool:
    with contextlib.ExitStack() as house:
        logs = Path(house.enter_context(tempfile.TemporaryDirectory(prefix="switch-demo-")))
        target = read_target(file, logs)
        cpus = guest_cpus(target)
        for path in (target.control, *(path for _, path in target.ports)):
            if not Path(path).parent.exists():
                Path(path).parent.mkdir(mode=0o755, parents=True)
                house.callback(shutil.rmtree, Path(path).parent, ignore_errors=True)
        switchd = [sys.executable, "-m", "switch.daemon", "--config", str(target.file), "--fresh"]
        daemon = house.enter_context(process(switchd, logs / "switchd.log"))
        first = wait_for_switch(daemon, target, logs / "switchd.log")
        children = {"switchd": (daemon, logs / "switchd.log")}
        for name, command in guest_commands(target, cpus).items():
            log = logs / f"{name}.log"
            children[name] = (house.enter_context(process(command, log)), log)
        print(f"switchd with {file}, two guests sending {FRAME_BYTES}-byte frames to each other")
        print(conditions(target, cpus))
        print(f"In another terminal:  .venv/bin/swctl --control {target.control} ports\n", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            watch(target, children, duration)
        print()
        return verdict(target, first, scrape(target.metrics))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit status 0 only if frames flowed both ways."""
    parser = argparse.ArgumentParser(prog="python -m switch.demo", description="A switch with two guests, live.")
    parser.add_argument("--duration", type=float, default=0.0, metavar="SECONDS", help="0: until Ctrl-C (default)")
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"), metavar="FILE")
    options = parser.parse_args(arguments)
    # An end by `kill` or a closed terminal takes the same way out as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return 0 if run(options.config, options.duration) else 1
    except DemoError as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1


if __name__ == "__main__":
    sys.exit(main())
