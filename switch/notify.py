# SPDX-License-Identifier: Apache-2.0
"""Tell systemd how the daemon is: sd_notify in a few lines. Without NOTIFY_SOCKET every call does nothing."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Sends state lines to the service manager."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def send(self, *lines: str) -> None:
        """READY=1, STOPPING=1, RELOADING=1, WATCHDOG=1, STATUS=text. Never raises: a deaf manager is not our fault."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)

    @staticmethod
    def watchdog_interval() -> float | None:
        """Seconds between two WATCHDOG=1: half of what systemd allows; None when it does not watch this process."""
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        if not usec.isdigit() or (pid and pid != str(os.getpid())):
            return None
        return int(usec) / 2_000_000 or None
