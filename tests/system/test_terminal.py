# SPDX-License-Identifier: Apache-2.0
"""Verbs that run until Ctrl-C, on a terminal of their own: the key ends them as a person expects and leaves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from switch.testing import Guest
from tests.interop import needs
from tests.interop.process import wait_until
from tests.interop.switchd import Api, Switchd, entry_point, vhost_port

FRAME = bytes.fromhex("525400000002 525400000001 0800").ljust(60, b"\0")


class Terminal:
    """A pseudo-terminal with one command in the foreground."""

    def __init__(self, command: list[str]) -> None:
        self.master, slave = os.openpty()
        os.set_blocking(self.master, False)

        def take_it() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a test that runs in the background ignores

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=take_it,
            env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        os.close(slave)
        self._seen = b""

    def text(self) -> str:
        while select.select([self.master], [], [], 0)[0]:
            try:
                chunk = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
            if not chunk:
                break
            self._seen += chunk
        return self._seen.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def ends(self) -> int:
        """Its exit status."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)
        return self.process.wait()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


@contextlib.contextmanager
def swctl(switch: Switchd, *arguments: str) -> Iterator[Terminal]:
    terminal = Terminal([entry_point("swctl"), "--control", str(switch.control), *arguments])
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture(scope="module")
def lab(module_folder: Path) -> Iterator[tuple[Switchd, Guest]]:
    ports = [vhost_port(name, module_folder / f"{name}.sock") for name in ("vm1", "vm2")]
    one, two = (Guest(port["socket"]) for port in ports)
    with Switchd(module_folder, ports) as switch, one, two:
        switch.wait_up("vm1", "vm2")
        yield switch, one


def plans(switch: Switchd) -> int:
    """Every capture makes a new plan, and so does its end."""
    return int(Api(switch.control).ask("GET", "/v1/stats")["plan_generation"])


@pytest.mark.parametrize("way", ["lines", "file", "filter", "filter to file"])
def test_ctrl_c_ends_a_capture_and_says_what_it_saw(lab: tuple[Switchd, Guest], folder: Path, way: str) -> None:
    switch, guest = lab
    file = folder / "out.pcapng"
    options = (["--filter", "ether src 52:54:00:00:00:01"] if "filter" in way else []) + (
        ["-w", str(file)] if "file" in way else []
    )
    if "filter" in way:
        needs.program("tcpdump", "tcpdump")
    before = plans(switch)
    with swctl(switch, "capture", "vm1", *options) as terminal:
        wait_until("it captures", lambda: plans(switch) > before)
        there = plans(switch)
        guest.send(FRAME)
        seen: dict[str, Callable[[], bool]] = {
            "lines": lambda: "52:54:00:00:00:01 >" in terminal.text(),
            "file": lambda: file.exists() and FRAME in file.read_bytes(),
            "filter": lambda: "52:54:00:00:00:01 >" in terminal.text(),
            "filter to file": lambda: file.exists() and FRAME in file.read_bytes(),
        }
        wait_until("the frame is there", seen[way])
        terminal.press(b"\x03")
        assert terminal.ends() == 0, terminal.text()
        said = terminal.text()
    assert f"1 frames {'filtered' if 'filter' in way else 'captured'}, 0 missed" in said
    assert "Traceback" not in said
    wait_until("the switch captures no more", lambda: plans(switch) > there)


@pytest.mark.parametrize("verb", [["top"], ["events", "--follow"]])
def test_ctrl_c_ends_what_is_watched_without_a_word(lab: tuple[Switchd, Guest], verb: list[str]) -> None:
    switch, _ = lab
    with swctl(switch, *verb) as terminal:
        wait_until("it shows something", lambda: len(terminal.text()) > 40)
        terminal.press(b"\x03")
        assert terminal.ends() in (0, 130), terminal.text()
        said = terminal.text()
    assert "Traceback" not in said
    assert "Aborted" not in said
