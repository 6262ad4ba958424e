# SPDX-License-Identifier: Apache-2.0
"""switchd with taps through vhost-net, and stations behind every kind of kernel port, each in a namespace of its own.

    python -m tests.interop.inside.vhost_net FOLDER

The machine's own interface is a port, too: whoever is behind it may talk to the stations while FOLDER/ready exists, and
says with FOLDER/finished that it has done so.

Writes one line a check; the first that fails ends it with status 1. Whoever receives verifies checksums only where no
offload says that they are still open: that is at the stations of the ports without offloads.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.interop import needs
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until
from tests.interop.switchd import Api, Switchd

# Port -> address of the station behind it.
STATIONS = {"vh": "10.9.1.1", "vhoff": "10.9.1.2", "plain": "10.9.1.3", "uplink": "10.9.1.4"}
PORTS: list[dict[str, Any]] = [
    {"name": "vh", "type": "tap", "device": "t-vh", "vhost": True, "queues": 2},
    {"name": "vhoff", "type": "tap", "device": "t-vhoff", "vhost": True, "offloads": False},
    {"name": "plain", "type": "tap", "device": "t-plain", "offloads": False},
    {"name": "uplink", "type": "afpacket", "device": "up0"},
    {"name": "outside", "type": "afpacket", "device": "eth0"},
]
PAIRS = (("vh", "plain"), ("vh", "vhoff"), ("vh", "uplink"))
CYCLES = 5


def say(text: str) -> None:
    print(f"{time.monotonic():7.1f} {text}", flush=True)


def checksum_errors(station: Netns) -> dict[str, int]:
    """What every protocol counts of segments and datagrams that did not verify."""
    lines = [line.split() for line in station.run("cat", "/proc/net/snmp").splitlines()]
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        for name, value in zip(names[1:], values[1:], strict=True):
            if name in ("InCsumErrors", "InErrs"):
                found[names[0] + name] = int(value)
    return found


@contextmanager
def iperf_server(station: Netns, folder: Path) -> Iterator[None]:
    server = Process([*station.prefix(), needs.program("iperf3", "iperf3"), "-s"], folder / "iperf3-server.log")
    try:
        wait_until("iperf3 listens", lambda: ":5201" in station.run("ss", "-ltn"), 30)
        yield
    finally:
        server.stop()


def transfer(client: Netns, address: str, *options: str) -> dict[str, Any]:
    text = client.run(needs.program("iperf3", "iperf3"), "-c", address, "-J", *options, seconds=60)
    end: dict[str, Any] = json.loads(text)["end"]
    return end


def transfers(switch: Switchd, nets: dict[str, Netns], folder: Path) -> None:
    for one, other in PAIRS:
        nets[one].wait_ping(STATIONS[other], 30)
        with iperf_server(nets[other], folder):
            for direction in ([], ["-R"]):
                arrow = "from" if direction else "to"
                # What is still in the sockets' buffers at the end is not counted as received.
                tcp = transfer(nets[one], STATIONS[other], "-n", "4M", *direction)
                assert tcp["sum_received"]["bytes"] >= 100_000, tcp
                say(f"tcp {one} {arrow} {other}")
                if other != "plain":
                    continue
                udp = transfer(nets[one], STATIONS[other], "-u", "-n", "400K", "-b", "4M", "-l", "1400", *direction)
                lost, sent = udp["sum"]["lost_packets"], udp["sum"]["packets"]
                assert sent >= 200, udp["sum"]
                assert lost * 2 < sent, udp["sum"]  # a slow receiver loses some in its socket
                say(f"udp {one} {arrow} {other}: {lost} of {sent} datagrams lost")
    for name, station in nets.items():
        errors = checksum_errors(station)
        assert len(errors) >= 5, f"{name}: {errors}"
        assert not any(errors.values()), f"{name}: {errors}"
    say("no checksum error at any station")
    switch.settle(30).check_conservation()
    say("every frame is accounted for")


def visit(nets: dict[str, Netns], home: Path, folder: Path) -> None:
    """Somebody from outside the machine talks to the stations behind vhost-net."""
    with iperf_server(nets["vh"], home), iperf_server(nets["vhoff"], home):
        (folder / "ready").touch()
        wait_until("the visitor is done", lambda: (folder / "finished").exists(), 150)
        (folder / "ready").unlink()
    for name in ("vh", "vhoff"):
        errors = checksum_errors(nets[name])
        assert not any(errors.values()), f"{name}: {errors}"
    say("a visitor was served")


def statuses(api: Api) -> None:
    for name, mode in (("vh", "vhost-net"), ("vhoff", "vhost-net"), ("plain", "read and write")):
        port = api.ask("GET", f"/v1/ports/{name}")
        status = port.get("status", port)
        assert status["facts"]["mode"] == mode, port
        if mode == "vhost-net":
            assert status["counters"]["kicks"] > 0, port
            assert status["counters"]["rings_broken"] == 0, port
    say("status names the mode and counts kicks")


def cycles(switch: Switchd, api: Api, nets: dict[str, Netns], folder: Path) -> None:
    """Ports come and go while others carry traffic; nothing stays open in the daemon."""
    assert switch.process is not None
    fds = Path(f"/proc/{switch.process.pid}/fd")

    def kinds() -> Counter[str]:
        """Open descriptors by what they are. Not sockets: the daemon closes its end of a connection of ours later; and
        not epoll sets, of which there is one more or less from one second to the next."""
        found: Counter[str] = Counter()
        for fd in fds.iterdir():
            with suppress(FileNotFoundError):
                found[re.sub(r"\d+", "N", str(fd.readlink()))] += 1
        passing = ("socket:", "anon_inode:[eventpoll]")
        return Counter({kind: count for kind, count in found.items() if not kind.startswith(passing)})

    def cycle() -> None:
        api.ask("POST", "/v1/ports", {"name": "guest", "type": "tap", "device": "t-guest", "vhost": True, "queues": 2})
        api.ask("DELETE", "/v1/ports/guest")

    cycle()
    before = kinds()
    assert before["/dev/vhost-net"] == 3, before  # vh has two queue pairs, vhoff one
    with iperf_server(nets["plain"], folder):
        iperf = needs.program("iperf3", "iperf3")
        client = [*nets["vh"].prefix(), iperf, "-c", STATIONS["plain"], "-t", "120"]
        traffic = Process(client, folder / "iperf3-client.log")
        for _ in range(CYCLES):
            cycle()
        seen = switch.metrics().received("vh")
        wait_until("the traffic goes on", lambda: switch.metrics().received("vh") > seen + 100, 30)
        traffic.check()
        traffic.stop()
    wait_until("the daemon's descriptors are as before", lambda: kinds() == before, 10)
    assert not Path("/sys/class/net/t-guest").exists()
    say(f"{CYCLES} ports came and went under traffic")


@contextmanager
def stations() -> Iterator[dict[str, Netns]]:
    with ExitStack() as stack:
        nets = {name: stack.enter_context(Netns()) for name in STATIONS}
        call("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0", "netns", nets["uplink"].name)
        call("ip", "link", "set", "up0", "up")
        call("ip", "link", "set", "eth0", "up")
        yield nets


def call(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)


def main(folder: Path) -> None:
    home = Path("/run/switch-test")  # Unix sockets do not work in the shared folder
    home.mkdir()
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    try:
        with stations() as nets, Switchd(home, PORTS, cpu=0) as switch:
            api = Api(switch.control)
            say("the daemon answers")
            for port in PORTS:
                if port["name"] not in nets:
                    continue
                station = nets[port["name"]]
                device = "far0" if port["name"] == "uplink" else port["device"]
                if device != "far0":
                    call("ip", "link", "set", device, "netns", station.name)
                station.address(device, STATIONS[port["name"]])
            wait_until("ports are up", lambda: all(map(switch.metrics().up, STATIONS)), 60)
            say("ports are up")
            visit(nets, home, folder)
            transfers(switch, nets, home)
            statuses(api)
            cycles(switch, api, nets, home)
        say("done")
    finally:
        for log in home.glob("*.log"):
            shutil.copy(log, folder / f"inner-{log.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
