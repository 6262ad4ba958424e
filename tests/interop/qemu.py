# SPDX-License-Identifier: Apache-2.0
"""A QEMU guest without hardware virtualisation: Linux's own virtio driver behind QEMU's own vhost-user front-end.

QEMU is told vectors=0 (no MSI-X): version 7.2 crashes with vhost-user and MSI-X under TCG.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop import needs
from tests.interop.guest_image import Image
from tests.interop.process import Process, wait_until

_marks = itertools.count(1)
# no_timer_check: on a busy host the emulated timer fails the trial that the kernel makes of it, which is a panic.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=1 no_timer_check nokaslr mitigations=off random.trust_cpu=on net.ifnames=0"


@dataclass(frozen=True)
class Nic:
    """One vhost-user network device. `server`: QEMU owns the socket and the switch connects."""

    socket: Path
    mac: str
    queues: int = 1
    packed: bool = False
    server: bool = False
    options: str = ""  # more properties of virtio-net-pci, with a leading comma

    def arguments(self, number: int = 0) -> list[str]:
        """Of a machine's NIC of that number."""
        owner = "server=on,wait=off" if self.server else "reconnect=1"
        multi = "on" if self.queues > 1 else "off"
        return [
            "-chardev", f"socket,id=c{number},path={self.socket},{owner}",
            "-netdev", f"vhost-user,id=n{number},chardev=c{number},queues={self.queues}",
            "-device", f"virtio-net-pci,id=nic{number},netdev=n{number},mac={self.mac},vectors=0,romfile=,mq={multi},"
                       f"packed={'on' if self.packed else 'off'}{self.options}",
        ]  # fmt: skip


class Qmp:
    """A connection to QEMU's machine protocol. `events` are those that came so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Qmp:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.settimeout(20.0)
        try:
            self._line.connect(str(self._path))
        except OSError:
            self._line.close()
            raise
        self._stream = self._line.makefile("rw")
        self._stream.readline()
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what QEMU, gone meanwhile, did not read is written once more
            self._stream.close()
        self._line.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns."""
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        while "event" in (answer := json.loads(self._stream.readline())):
            self.events.append(answer)
        if "error" in answer:
            raise AssertionError(f"QMP {command}: {answer['error']}")
        return answer["return"]


class GuestError(AssertionError):
    """A command in the guest ended with another status than 0."""


def encoded(command: str) -> bytes:
    """A line for the guest's shell (guest_image.INIT)."""
    return base64.b64encode(command.encode()) + b"\n"


class Guest:
    """`incoming`: it does not boot, it waits at this path for one that migrates, made with the same NICs."""

    def __init__(self, image: Image, nics: Nic | Sequence[Nic], folder: Path, name: str, cpu: int | None = None,
                 smp: int = 1, incoming: Path | None = None) -> None:  # fmt: skip
        self.name = name
        network = [nics] if isinstance(nics, Nic) else nics
        self._console = folder / f"{name}.console"
        self._shell_path = folder / f"{name}.shell"
        self._qmp_path = folder / f"{name}.qmp"
        self._shell: socket.socket | None = None
        command = [
            *(["taskset", "-c", str(cpu)] if cpu is not None else []),
            needs.program("qemu-system-x86_64", "qemu-system-x86"), "-nodefaults", "-no-user-config",
            "-display", "none",
            "-machine", "q35,memory-backend=mem", "-accel", "tcg", "-cpu", "max", "-smp", str(smp), "-m", "192",
            "-object", "memory-backend-memfd,id=mem,size=192M,share=on",
            "-kernel", str(image.kernel), "-initrd", str(image.initramfs),
            "-append", KERNEL_OPTIONS,
            "-serial", f"file:{self._console}", "-serial", f"unix:{self._shell_path},server=on,wait=off",
            "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
            *(word for number, nic in enumerate(network) for word in nic.arguments(number)),
            *(["-incoming", f"unix:{incoming}"] if incoming else []),
        ]  # fmt: skip
        self.process = Process(command, folder / f"{name}.log")

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._shell:
            self._shell.close()
            self._shell = None
        self.process.stop(2.0)

    def wait_booted(self, seconds: float = 60.0) -> None:
        """Until the shell answers."""
        try:
            wait_until(f"{self.name} boots", self._boot_id, seconds)
        except AssertionError as error:
            said = self._console.read_text(errors="replace")[-2000:] if self._console.exists() else ""
            raise AssertionError(f"{error}\n--- console\n{said}\n--- QEMU\n{self.process.text()[-1000:]}") from None

    def wait_arrived(self, seconds: float = 60.0) -> None:
        """Of one that migrated to here: its shell goes on. It is asked once, for it misses nothing."""
        self._open()
        self.run("true", seconds)

    def _open(self) -> None:
        if self._shell:
            self._shell.close()
        self._shell = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._shell.settimeout(1.0)
        self._shell.connect(str(self._shell_path))

    def _try(self, command: str, seconds: float) -> tuple[str, int]:
        assert self._shell is not None, "wait_booted first"
        mark = f"@@{next(_marks)}"
        self._shell.sendall(encoded(f'echo "{mark}<"; {{ {command}\n}} </dev/null 2>&1; echo "{mark}>$?<"'))
        self._shell.settimeout(0.5)
        deadline = time.monotonic() + seconds
        text = ""
        while f"{mark}>" not in text or not text.rstrip().endswith("<"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: no answer to {command!r} in {seconds:.0f} s, only {text!r}")
            try:
                data = self._shell.recv(65536)
            except TimeoutError:
                self.process.check()
                continue
            if not data:
                raise ConnectionError(f"{self.name}: the shell's line closed")
            text += data.decode(errors="replace").replace("\r", "")
        output, status = text.split(f"{mark}<", 1)[-1].rsplit(f"{mark}>", 1)
        return output.strip(), int(status.strip().rstrip("<"))

    def send(self, command: str) -> None:
        """Without waiting for an answer, for commands that give none."""
        assert self._shell is not None, "wait_booted first"
        self._shell.sendall(encoded(command))

    def run(self, command: str, seconds: float = 30.0, check: bool = True) -> str:
        """Output of a shell command in the guest; GuestError unless its status is 0."""
        output, status = self._try(command, seconds)
        if check and status:
            raise GuestError(f"{self.name}: {command!r} ended with {status}: {output}")
        return output

    def reboot(self, how: str = "reboot -f", seconds: float = 60.0) -> None:
        """Make the guest start anew and wait for it; `how` is a command in the guest."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self.send(how)
        wait_until(f"{self.name} restarts", lambda: self._boot_id() not in ("", before), seconds)

    def reset(self, seconds: float = 60.0) -> None:
        """As the button on the machine would, and wait for the guest to be back."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self.qmp("system_reset")
        wait_until(f"{self.name} restarts", lambda: self._boot_id() not in ("", before), seconds)

    def _boot_id(self) -> str:
        self.process.check()
        try:
            self._open()
            return self._try("cat /proc/sys/kernel/random/boot_id", 3.0)[0]
        except (OSError, TimeoutError):
            return ""

    def succeeds(self, command: str, seconds: float = 30.0) -> bool:
        return self._try(command, seconds)[1] == 0

    def address(self, address: str, mtu: int = 1500) -> None:
        """Give eth0 an address. Without IPv6, whose own chatter would blur the counting of frames."""
        self.run(
            "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip addr flush dev eth0; "
            f"ip link set eth0 mtu {mtu} up && ip addr add {address}/24 dev eth0"
        )

    def pings(self, address: str, count: int = 1, wait: int = 1) -> bool:
        return self.succeeds(f"ping -c {count} -W {wait} {address}", 10.0 + count + wait)

    def wait_ping(self, address: str, seconds: float = 30.0) -> None:
        wait_until(f"{self.name} reaches {address}", lambda: self.pings(address), seconds)

    def status(self) -> str:
        """QEMU's word for what it does with the guest; empty while it starts."""
        self.process.check()
        try:
            said: str = self.qmp("query-status")["status"]
        except (OSError, ValueError):
            return ""
        return said

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command on QEMU's machine protocol; returns what it returns."""
        with Qmp(self._qmp_path) as monitor:
            return monitor.ask(command, **arguments)
