# SPDX-License-Identifier: Apache-2.0
"""A worker thread that is really stopped, alone, is noticed, and systemd is not told any more that all is well.

One that only sleeps is not noticed. The thread is held by ptrace, as by a debugger.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.process import wait_until
from tests.interop.switchd import Api, Switchd, vhost_port

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207


@contextlib.contextmanager
def held(thread: int) -> Iterator[None]:
    """One thread of another process, stopped while the block runs; its siblings go on."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int) -> None:
        if libc.ptrace(request, thread, None, None) < 0:
            number = ctypes.get_errno()
            if number == errno.EPERM:
                pytest.skip("this process may not trace the daemon: run as root, or sysctl kernel.yama.ptrace_scope=0")
            raise OSError(number, os.strerror(number))

    ptrace(PTRACE_SEIZE)
    ptrace(PTRACE_INTERRUPT)
    os.waitpid(thread, 0x40000000)  # __WALL: a thread is not a child
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH)


class Manager:
    """systemd's end of the notifications."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def pings(self) -> int:
        """How often since the last call it was said that all is well."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += self.socket.recv(4096) == b"WATCHDOG=1"
        return count


@pytest.mark.parametrize("polling", ["busy", "adaptive"])
def test_a_worker_that_is_stopped_is_noticed_and_one_that_sleeps_is_not(
    folder: Path, polling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(folder / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    switch = Switchd(folder, [vhost_port("vm1", folder / "vm1.sock")])
    switch.config["switch"]["polling"] = polling
    with contextlib.closing(manager.socket), switch:
        api = Api(switch.control)

        def worker() -> dict[str, object]:
            found: dict[str, object] = api.ask("GET", "/v1/workers")["workers"][0]
            return found

        def kinds() -> list[str]:
            return [event["kind"] for event in api.ask("GET", "/v1/events")["events"]]

        before = worker()
        wait_until("an idle worker turns over", lambda: int(str(worker()["loops"])) > int(str(before["loops"])) + 2)
        assert worker()["stuck_seconds"] == 0
        with held(int(str(before["thread_id"]))):
            wait_until("the stopped worker is noticed", lambda: "worker_stuck" in kinds(), 60)
            assert int(str(worker()["stuck_seconds"])) >= 5
            assert "stuck" in switch.ctl_status("workers", json_output=False)[1]
            assert "worker 0 has made no round" in switch.ctl_status("show", json_output=False)[1]
            assert switch.metrics().sum("switch_worker_stuck", worker="0") == 1
            manager.pings()
            until = int(str(worker()["stuck_seconds"])) + 2
            wait_until("two seconds more", lambda: int(str(worker()["stuck_seconds"])) >= until, 60)
            assert manager.pings() == 0
        wait_until("the worker goes on", lambda: "worker_recovered" in kinds(), 60)
        assert worker()["stuck_seconds"] == 0
        assert switch.metrics().sum("switch_worker_stuck", worker="0") == 0
        wait_until("all is well again", lambda: manager.pings() > 0, 60)
