# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd as a peer: a guest behind virtio-user, or (for proving this harness) a switch between vhost sockets."""

from __future__ import annotations

import itertools
import os
import pty
import re
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop import needs
from tests.interop.process import Process, wait_until

PROMPT = "testpmd> "
_numbers = itertools.count()


@dataclass(frozen=True)
class VirtioUser:
    """Options of one virtio-user device; the defaults are testpmd's."""

    path: Path
    mac: str
    queues: int = 1
    queue_size: int = 256
    packed: bool = False
    mergeable: bool = True
    in_order: bool = True
    vectorized: bool = False
    server: bool = False

    def vdev(self, index: int) -> str:
        return ",".join([
            f"net_virtio_user{index}", f"mac={self.mac}", f"path={self.path}", f"queues={self.queues}",
            f"queue_size={self.queue_size}", f"packed_vq={self.packed:d}", f"mrg_rxbuf={self.mergeable:d}",
            f"in_order={self.in_order:d}", f"vectorized={self.vectorized:d}", f"server={self.server:d}",
        ])  # fmt: skip


@dataclass
class PortCount:
    received: int = 0
    transmitted: int = 0
    missed: int = 0
    errors: int = 0
    dropped: int = 0
    fields: dict[str, int] = field(default_factory=dict)


class Testpmd:
    """One interactive testpmd on its own terminal. `cpu` runs both its command line and its polling thread."""

    __test__ = False  # not a test class

    def __init__(self, vdevs: list[str], folder: Path, cpu: int, *options: str, eal: tuple[str, ...] = ()) -> None:
        program = needs.program("dpdk-testpmd", "dpdk-dev")
        name = f"swt{os.getpid()}n{next(_numbers)}"
        self._master, slave = pty.openpty()
        # Short, private and gone with us: what DPDK keeps for other processes of the same --file-prefix.
        self._runtime = tempfile.TemporaryDirectory(prefix="swt")
        command = [
            program, "--lcores", f"0@{cpu},1@{cpu}", "--no-pci", "--no-huge", "-m", "192", f"--file-prefix={name}",
            "--no-telemetry", "--force-max-simd-bitwidth=512", *(f"--vdev={vdev}" for vdev in vdevs), *eal,
            "--", "--interactive", "--total-num-mbufs=8192", "--nb-cores=1", *options,
        ]  # fmt: skip
        environment = {**os.environ, "RUNTIME_DIRECTORY": self._runtime.name, "XDG_RUNTIME_DIR": self._runtime.name}
        self.process = Process(command, folder / f"{name}.log", slave, slave, environment)
        os.close(slave)
        self._text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._read_from = 0
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Testpmd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is gone
                return
            if not data:
                return
            text = data.decode(errors="replace").replace("\r", "")
            self._text += re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
            with self.process.log.open("a") as log:
                log.write(text)

    def _answer(self, seconds: float = 30.0) -> str:
        """Everything up to the next prompt."""

        def arrived() -> int:
            at = self._text.find(PROMPT, self._read_from)
            if at < 0:
                self.process.check()
            return at + 1

        at = wait_until("testpmd's prompt", arrived, seconds) - 1
        answer = self._text[self._read_from : at]
        self._read_from = at + len(PROMPT)
        return answer

    def do(self, command: str, seconds: float = 30.0) -> str:
        """Type a command, return what it says."""
        os.write(self._master, command.encode() + b"\n")
        return self._answer(seconds)

    def start(self, first: bool = False) -> None:
        """Begin forwarding; `first` sends one burst per queue to have something to forward."""
        self.do("start tx_first" if first else "start")

    def stop(self) -> None:
        self.do("stop")

    def stats(self, port: int = 0) -> PortCount:
        text = self.do(f"show port stats {port}")
        fields = {key: int(value) for key, value in re.findall(r"([RT]X-[a-z]+):\s+(\d+)", text)}
        return PortCount(
            received=fields["RX-packets"],
            transmitted=fields["TX-packets"],
            missed=fields["RX-missed"],
            errors=fields["RX-errors"] + fields["TX-errors"],
            dropped=0,
            fields=fields,
        )

    def close(self) -> None:
        self.process.stop(3.0)
        self._reader.join(3.0)
        os.close(self._master)
        self._runtime.cleanup()


def guest(device: VirtioUser, folder: Path, cpu: int, peer_mac: str, mode: str = "mac") -> Testpmd:
    """A guest that answers every frame it gets by one to `peer_mac`; not started yet."""
    queues = str(device.queues)
    options = [f"--rxq={queues}", f"--txq={queues}", f"--forward-mode={mode}", f"--eth-peer=0,{peer_mac}"]
    if device.queue_size != 256:
        options += [f"--rxd={device.queue_size}", f"--txd={device.queue_size}"]
    return Testpmd([device.vdev(0)], folder, cpu, *options)


def stand_in_switch(sockets: list[Path], folder: Path, cpu: int, queues: int = 1, client: bool = False) -> Testpmd:
    """rte_vhost between two sockets, forwarding blindly: what the harness itself is proved against."""
    vdevs = [f"net_vhost{i},iface={path},queues={queues},client={client:d}" for i, path in enumerate(sockets)]
    return Testpmd(vdevs, folder, cpu, f"--rxq={queues}", f"--txq={queues}", "--forward-mode=io")
