# SPDX-License-Identifier: Apache-2.0
"""What people get wrong: each mistake is answered by a sentence that names it, and a running switch stays as it was."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from tests.interop import needs
from tests.interop.netns import Netns, made_in
from tests.interop.process import wait_until
from tests.interop.switchd import Api, Switchd, entry_point, vhost_port
from tests.support import verbs_standin
from tests.support.verbs_standin import Standin


@pytest.fixture(scope="module")
def running(module_folder: Path) -> Iterator[Switchd]:
    with Switchd(module_folder, [vhost_port("vm1", module_folder / "vm1.sock")]) as switch:
        yield switch


def start_fails(switch: Switchd) -> str:
    """What a daemon that cannot start says; it must end by itself, with status 1 and without a traceback."""
    process = switch.start(wait=False)
    try:
        assert process.wait(30.0) == 1, process.text()
    finally:
        process.stop()
    assert "Traceback" not in process.text()
    return process.text()


def refused(switch: Switchd, *arguments: str) -> str:
    """What swctl says to a request that cannot be met; the switch must be as it was before."""
    api = Api(switch.control)
    before = api.ask("GET", "/v1/ports")
    status, output, errors = switch.ctl_status(*arguments, json_output=False)
    assert status == 1, output + errors
    assert "Traceback" not in errors
    names = [[port.get("name") for port in ports] for ports in map(rows, (before, api.ask("GET", "/v1/ports")))]
    assert names[0] == names[1]
    return output + errors


def rows(found: Any) -> list[dict[str, Any]]:
    return found if isinstance(found, list) else found["ports"]


def replaced(switch: Switchd, old: str, new: str) -> Path:
    path = switch.folder / "changed.yaml"
    text = switch.file.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_wrong_key_is_named_with_its_place(folder: Path) -> None:
    switch = Switchd(folder, [vhost_port("vm1", folder / "vm1.sock", quees=2)])
    said = start_fails(switch)
    line = 1 + switch.file.read_text().splitlines().index("  quees: 2")
    assert f"{switch.file}:{line}:" in said
    assert "queues" in said


def test_text_that_is_no_yaml_is_named_with_its_place(folder: Path) -> None:
    path = folder / "broken.yaml"
    path.write_text("version: 1\nports: [{name: vm1\n")
    done = subprocess.run(
        [entry_point("switchd"), "--config", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert f"{path}:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    done = subprocess.run(
        [entry_point("switchd"), "--config", str(folder / "none.yaml")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert str(folder / "none.yaml") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cpu_that_does_not_exist_is_named(folder: Path) -> None:
    assert "4000" in start_fails(Switchd(folder, [], cpu=4000))


def test_a_second_daemon_on_the_same_control_socket_is_refused(running: Switchd, folder: Path) -> None:
    second = Switchd(folder, [])
    second.config["control"]["socket"] = str(running.control)
    assert str(running.control) in start_fails(second)
    assert running.ctl_status("ports")[0] == 0, "the first goes on"


def test_a_metrics_address_in_use_is_named(running: Switchd, folder: Path) -> None:
    second = Switchd(folder, [])
    second.config["metrics"]["listen"] = f"127.0.0.1:{running.metrics_port}"
    assert str(running.metrics_port) in start_fails(second)


def test_a_socket_in_use_is_named(running: Switchd, folder: Path) -> None:
    path = folder / "taken.sock"
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
        owner.listen()
        said = refused(running, "add-port", "vhostuser", "taken", "--socket", str(path))
        assert str(path) in said


def test_a_socket_left_by_a_dead_owner_is_taken_over(running: Switchd, folder: Path) -> None:
    path = folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
    running.ctl("add-port", "vhostuser", "stale", "--socket", str(path))
    running.ctl("del-port", "stale")


def test_a_file_that_is_no_socket_is_never_removed(running: Switchd, folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    assert str(path) in refused(running, "add-port", "vhostuser", "precious", "--socket", str(path))
    assert path.read_text() == "data"


def test_a_folder_that_does_not_exist_is_named(running: Switchd, folder: Path) -> None:
    path = folder / "none/vm.sock"
    assert str(path.parent) in refused(running, "add-port", "vhostuser", "lost", "--socket", str(path))


def test_a_folder_without_permission_is_named(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0)
    prefix: list[str] = []
    if os.geteuid() == 0:  # root may write anywhere unless it gives that up
        prefix = [
            needs.program("setpriv", "util-linux"),
            "--inh-caps=-all",
            "--bounding-set=-dac_override,-dac_read_search",
        ]
    with Switchd(folder, [], prefix=prefix) as switch:
        said = refused(switch, "add-port", "vhostuser", "closed", "--socket", str(closed / "vm.sock"))
        assert str(closed) in said
        assert "ermission" in said


def test_a_path_too_long_for_a_socket_is_named(running: Switchd, folder: Path) -> None:
    assert "107" in refused(running, "add-port", "vhostuser", "long", "--socket", str(folder / ("x" * 120)))


def test_a_name_in_use_is_refused(running: Switchd) -> None:
    assert "vm1" in refused(running, "add-port", "vhostuser", "vm1", "--socket", str(running.folder / "x.sock"))


def test_a_port_that_does_not_exist_is_named_and_missing_ok_forgives(running: Switchd) -> None:
    assert "nobody" in refused(running, "del-port", "nobody")
    running.ctl("del-port", "nobody", "--missing-ok")


def test_an_unknown_kind_is_answered_by_the_known_ones(running: Switchd) -> None:
    status, _, errors = running.ctl_status("add-port", "vhostusr", "vm9", "--socket", "/x", json_output=False)
    assert status != 0
    assert "vhostuser" in errors


def test_a_bad_file_is_not_applied(running: Switchd) -> None:
    said = refused(running, "apply", str(replaced(running, "type: vhostuser", "type: vhostusr")))
    assert "vhostuser" in said
    assert running.metrics().sum("switch_port_up", port="vm1") == 0
    assert running.metrics().ports() == ["vm1"]


def test_validate_needs_no_daemon(folder: Path) -> None:
    switch = Switchd(folder, [vhost_port("vm1", folder / "vm1.sock")])
    switch.write()
    assert switch.ctl_status("validate", str(switch.file))[0] == 0
    switch.config["ports"] = [vhost_port("vm1", folder / "vm1.sock"), vhost_port("vm1", folder / "vm2.sock")]
    switch.write()
    assert switch.ctl_status("validate", str(switch.file))[0] == 1


def test_a_daemon_that_does_not_run_is_named(folder: Path) -> None:
    switch = Switchd(folder, [])
    status, _, errors = switch.ctl_status("ports", json_output=False)
    assert status == 1
    assert str(switch.control) in errors


# Kernel-backed kinds and the uplink: one row per mistake --------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    kind: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]  # words of the answer
    without: str = ""  # capabilities that the daemon lacks
    starved: bool = False  # it gets no more memory
    locked_kb: int | None = None  # most that it may lock in memory


NO_ADMIN = "net_admin,-sys_admin"  # the kernel takes the second for the first where BPF is concerned
PORT_MISTAKES = {
    "afpacket-missing": Mistake("afpacket", ("--device", "nosuch0"), ("nosuch0", "none of this name", "ip link")),
    "afpacket-no-ethernet": Mistake("afpacket", ("--device", "lo"), ("lo", "not an Ethernet interface")),
    "afpacket-taken": Mistake("afpacket", ("--device", "taken0"), ("taken0", "first", "each port needs its own")),
    "afpacket-mtu": Mistake(
        "afpacket", ("--device", "cable0", "--mtu", "9000"), ("9000", "1500", "ip link set dev cable0 mtu 9000")
    ),
    "afpacket-no-right": Mistake("afpacket", ("--device", "cable0"), ("cable0", "CAP_NET_RAW"), without="net_raw"),
    "afpacket-no-memory": Mistake(
        "afpacket", ("--device", "cable0", "--queues", "4"), ("cable0", "fewer queues", "memory"), starved=True
    ),
    "afpacket-too-many": Mistake("afpacket", ("--device", "cable0", "--queues", "257"), ("queues", "256")),
    "tap-not-a-tap": Mistake("tap", ("--device", "cable0"), ("cable0", "not a tap")),
    "tap-busy": Mistake("tap", ("--device", "busy0"), ("busy0", "another process is using it", "another device")),
    "tap-busy-queue": Mistake("tap", ("--device", "plain0", "--queues", "2"), ("plain0", "multi_queue")),
    "tap-mtu": Mistake("tap", ("--device", "new0", "--mtu", "65535"), ("65535", "65521 at most")),
    "tap-no-right": Mistake("tap", ("--device", "new0"), ("new0", "CAP_NET_ADMIN"), without=NO_ADMIN),
    "tap-no-memory": Mistake(
        "tap", ("--device", "new0", "--queues", "4"), ("new0", "fewer queues", "memory"), starved=True
    ),
    "tap-no-vhost": Mistake(
        "tap",
        ("--device", "new0", "--vhost"),
        ("/dev/vhost-net", "No such file", "modprobe vhost_net", "or leave out `vhost: true`"),
    ),
    "afxdp-missing": Mistake("afxdp", ("--device", "nosuch0"), ("nosuch0", "none of this name", "ip link")),
    "afxdp-no-ethernet": Mistake("afxdp", ("--device", "lo"), ("lo", "not an Ethernet interface")),
    "afxdp-taken": Mistake("afxdp", ("--device", "taken0"), ("taken0", "first", "each port needs its own")),
    "afxdp-busy": Mistake(
        "afxdp", ("--device", "busy1"), ("queue 0 of busy1", "another AF_XDP socket has this queue", "ss --xdp -p")
    ),
    "afxdp-mtu": Mistake(
        "afxdp", ("--device", "cable0", "--mtu", "9000"), ("9000", "1500", "ip link set dev cable0 mtu 9000")
    ),
    "afxdp-queues": Mistake(
        "afxdp",
        ("--device", "cable0", "--queues", "4"),
        ("4 queues of cable0", "it has 1", "ethtool -L cable0 combined 4"),
    ),
    "afxdp-too-many": Mistake("afxdp", ("--device", "cable0", "--queues", "257"), ("queues", "256")),
    "afxdp-no-admin": Mistake("afxdp", ("--device", "cable0"), ("cable0", "CAP_NET_ADMIN"), without=NO_ADMIN),
    "afxdp-no-bpf": Mistake(
        "afxdp", ("--device", "cable0"), ("cable0", "CAP_BPF", "AmbientCapabilities="), without="bpf,-sys_admin"
    ),
    "afxdp-no-rights": Mistake(
        "afxdp", ("--device", "cable0"), ("cable0", "CAP_NET_RAW", "CAP_BPF", "root"), without="all"
    ),
    "afxdp-no-memory": Mistake("afxdp", ("--device", "cable0"), ("cable0", "32 MB", "memory"), starved=True),
    "afxdp-no-locked-memory": Mistake(
        "afxdp", ("--device", "cable0"), ("32 MB", "cable0", "64 KB", "LimitMEMLOCK=infinity"), "ipc_lock", locked_kb=64
    ),
    "verbs-missing": Mistake(
        "verbs", ("--device", "mlx5_9"), ("there is no RDMA device mlx5_9", "mlx5_0", "rdma link", "mlx5_ib")
    ),
    "verbs-taken": Mistake("verbs", ("--device", "mlx5_0"), ("mlx5_0", "nic", "each port needs its own")),
    "verbs-no-interface": Mistake("verbs", ("--device", "mlx5_1"), ("open the device mlx5_1", "No such device")),
    "verbs-no-raw-packets": Mistake(
        "verbs", ("--device", "rxe0"), ("rxe0", "raw packet queue pair", "mlx5", "use type: afpacket")
    ),
    "verbs-infiniband": Mistake("verbs", ("--device", "ib0"), ("ib0 is no Ethernet device",)),
    "verbs-no-right": Mistake(
        "verbs", ("--device", "mlx5_2"), ("mlx5_2", "CAP_NET_RAW", "/dev/infiniband/uverbs"), without="net_raw"
    ),
    "verbs-mtu": Mistake("verbs", ("--device", "mlx5_2", "--mtu", "65535"), ("65535", "65514")),
    "verbs-no-memory": Mistake(
        "verbs", ("--device", "mlx5_2", "--queues", "16"), ("mlx5_2", "MB", "memory", "fewer queues"), starved=True
    ),
    "verbs-no-locked-memory": Mistake(
        "verbs", ("--device", "mlx5_2"), ("mlx5_2", "64 KB", "LimitMEMLOCK=infinity"), "ipc_lock", locked_kb=64
    ),
    "verbs-too-many": Mistake("verbs", ("--device", "mlx5_2", "--queues", "129"), ("queues", "128")),
    "vdpa-no-file": Mistake("vdpa", ("--device", "vdpa0"), ("vdpa0", "/dev/vhost-vdpa-0")),
    "vduse-no-module": Mistake(
        "vduse", ("--device", "new0"), ("/dev/vduse/control", "No such file", "modprobe vduse", "Linux 6.10")
    ),
    "virtiouser-no-socket": Mistake("virtiouser", (), ("socket",)),
    "virtiouser-taken": Mistake(
        "virtiouser", ("--socket", "{folder}/taken.sock", "--socket-owner", "switch"), ("taken.sock", "in use")
    ),
    "virtiouser-ring": Mistake(
        "virtiouser", ("--socket", "{folder}/x.sock", "--ring-size", "300"), ("ring_size", "power of two", "256")
    ),
    "virtiouser-no-folder": Mistake(
        "virtiouser", ("--socket", "{folder}/none/x.sock", "--socket-owner", "switch"), ("none",)
    ),
}


@dataclass
class Bench:
    """A switch in a namespace with interfaces to make mistakes with, and others there that lack a capability."""

    folder: Path
    netns: Netns
    prefix: list[str]
    stack: contextlib.ExitStack
    switches: dict[str, Switchd] = field(default_factory=dict)

    def switch(self, without: str = "", ports: Sequence[dict[str, Any]] = ()) -> Switchd:
        if without not in self.switches:
            folder = self.folder / f"lacks-{len(self.switches)}"
            folder.mkdir()
            setpriv = [needs.program("setpriv", "util-linux"), "--inh-caps=-all", f"--bounding-set=-{without}"]
            prefix = [*self.netns.prefix(), *(setpriv if without else []), *self.prefix]
            self.switches[without] = self.stack.enter_context(Switchd(folder, list(ports), prefix=prefix))
        return self.switches[without]


@pytest.fixture(scope="module")
def bench(module_folder: Path) -> Iterator[Bench]:
    with Netns() as netns, Netns() as other, contextlib.ExitStack() as stack:
        for number, cable in enumerate(("cable0", "taken0", "busy1")):
            netns.veth(cable, other, f"far{number}")
        netns.ip("tuntap", "add", "dev", "plain0", "mode", "tap")
        ports: list[dict[str, Any]] = [{"name": "first", "type": "afpacket", "device": "taken0"}]
        made = Bench(module_folder, netns, [], stack)
        if not verbs_standin.why_not(sys.executable):
            standin = Standin(module_folder)
            made.prefix = standin.environment()
            for device in ("mlx5_0", "mlx5_2"):
                standin.set(device, "cable0")
            standin.set("mlx5_1", "nosuch0")
            standin.set("rxe0", "cable0", raw=0)
            standin.set("ib0", "cable0", ethernet=0)
            ports.append({"name": "nic", "type": "verbs", "device": "mlx5_0"})
        stack.enter_context(contextlib.closing(made_in(netns, lambda: hold_tap("busy0"))))
        stack.enter_context(made_in(netns, lambda: hold_xdp_queue("busy1")))
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(str(module_folder / "taken.sock"))
        owner.listen()
        made.switch(ports=ports)
        yield made


def hold_tap(name: str) -> IO[bytes]:
    """A TAP of one queue that this process uses."""
    device = Path("/dev/net/tun").open("r+b", buffering=0)  # noqa: SIM115
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF: IFF_TAP | IFF_NO_PI
    return device


def hold_xdp_queue(name: str) -> socket.socket:
    """An AF_XDP socket that has the first queue of an interface."""
    held = socket.socket(44, socket.SOCK_RAW)  # AF_XDP
    size, chunk = 1 << 16, 4096
    memory = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    held.setsockopt(283, 4, struct.pack("=QQIIII", address, size, chunk, 0, 0, 0))  # SOL_XDP, XDP_UMEM_REG
    for ring in (5, 6, 2):  # the fill, completion and receive ring
        held.setsockopt(283, ring, struct.pack("=I", 8))
    to = struct.pack("=HHIII", 44, 0, socket.if_nametoindex(name), 0, 0)  # struct sockaddr_xdp
    if ctypes.CDLL(None, use_errno=True).bind(held.fileno(), to, len(to)):
        raise OSError(ctypes.get_errno(), f"bind an AF_XDP socket to {name}")
    return held


@contextlib.contextmanager
def starved(pid: int) -> Iterator[None]:
    """The process may grow by 3 MB: enough to answer, too little for the buffers of a port."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 20), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


@pytest.mark.netns
@pytest.mark.parametrize("mistake", PORT_MISTAKES.values(), ids=PORT_MISTAKES.keys())
def test_a_port_that_cannot_be_says_why_and_what_to_do(bench: Bench, mistake: Mistake) -> None:
    if mistake.kind == "verbs":
        verbs_standin.need_pyverbs(sys.executable)
    switch, netns = bench.switch(mistake.without), bench.netns
    arguments = [part.format(folder=bench.folder) for part in mistake.arguments]
    assert switch.process is not None
    with contextlib.ExitStack() as stack:
        if mistake.starved:
            refused(switch, "del-port", "nobody")  # the threads that answer are there already
            stack.enter_context(starved(switch.process.pid))
        if mistake.locked_kb is not None:
            limit = 1024 * mistake.locked_kb
            resource.prlimit(switch.process.pid, resource.RLIMIT_MEMLOCK, (limit, limit))
        before = netns.ip("-o", "link").count("\n")
        said = refused(switch, "add-port", mistake.kind, "wrong", *arguments)
    for word in mistake.says:
        assert word in said, said
    assert netns.ip("-o", "link").count("\n") == before, "an interface was left behind"


def test_a_device_that_may_come_later_is_waited_for_and_named(bench: Bench) -> None:
    """vDPA devices come and go by other hands, as a guest's socket does: the port is there and says what it lacks."""
    switch = bench.switch()
    switch.ctl("add-port", "vdpa", "later", "--device", "/dev/vhost-vdpa-9")
    try:
        words = ("/dev/vhost-vdpa-9", "No such file", "vhost_vdpa", "vdpa dev add")
        wait_until("the port says why", lambda: all(word in str(switch.ctl("port", "later")) for word in words), 10.0)
    finally:
        switch.ctl("del-port", "later")
