# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of our own, so that no test touches the machine's network."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.interop import needs
from tests.interop.process import wait_until

CLONE_NEWNET = 0x40000000
T = TypeVar("T")
_numbers = itertools.count()


def unique(prefix: str) -> str:
    """A name for a namespace or an interface (at most 15 characters)."""
    return f"{prefix}{os.getpid() % 1000000}x{next(_numbers)}"


class Netns:
    def __init__(self) -> None:
        needs.root("network namespaces are made")
        self._ip = needs.program("ip", "iproute2")
        self.name = unique("sw")
        self._call(self._ip, "netns", "add", self.name)
        # IPv6's own chatter would blur the counting of frames.
        self.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
        self.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Netns:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([self._ip, "netns", "delete", self.name], check=False, capture_output=True)

    @staticmethod
    def _call(*command: str, seconds: float = 20.0) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def prefix(self) -> list[str]:
        """Put before a command to run it in here."""
        return [self._ip, "netns", "exec", self.name]

    def run(self, *command: str, seconds: float = 20.0) -> str:
        return self._call(*self.prefix(), *command, seconds=seconds)

    def ip(self, *arguments: str) -> str:
        return self._call(self._ip, "-n", self.name, *arguments)

    def address(self, device: str, address: str) -> None:
        self.ip("address", "add", f"{address}/24", "dev", device)
        self.ip("link", "set", device, "up")

    def veth(self, near: str, other: Netns, far: str) -> None:
        """A cable from here (`near`) to the other namespace (`far`), both ends up, no offloads that change frames."""
        self.ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", other.name)
        self.ip("link", "set", near, "up")
        other.ip("link", "set", far, "up")

    def pings(self, address: str, wait: int = 1) -> bool:
        command = [*self.prefix(), needs.program("busybox", "busybox-static"), "ping", "-c1", f"-W{wait}", address]
        return subprocess.run(command, check=False, capture_output=True, timeout=wait + 10).returncode == 0

    def wait_ping(self, address: str, seconds: float = 30.0) -> None:
        wait_until(f"{self.name} reaches {address}", lambda: self.pings(address), seconds)


def made_in(netns: Netns, make: Callable[[], T]) -> T:
    """What `make` opens belongs to the namespace; this process stays where it is."""
    done: list[Any] = []

    def work() -> None:  # a thread of its own: setns is per thread, and the thread ends here
        try:
            with Path(f"/var/run/netns/{netns.name}").open("rb") as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            done.append(make())
        except OSError as error:
            done.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(done[0], OSError):
        raise done[0]
    made: T = done[0]
    return made
