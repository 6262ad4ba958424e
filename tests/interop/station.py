# SPDX-License-Identifier: Apache-2.0
"""A station in a network namespace that watches a guest: how long it was silent, what it says unasked, and whether
every byte that it was sent is right."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.interop.netns import Netns, made_in
from tests.interop.process import wait_until

ETH_P_ALL = 3
SIOCOUTQ = 0x5411  # bytes of a TCP socket that the other side has not acknowledged
IPV4_HEADER, ICMP_HEADER = 20, 8


class Work:
    """A thread that calls step() until the context ends, which raises what a step raised."""

    def __init__(self, line: socket.socket | None = None) -> None:
        """`line` is closed at the end."""
        self._end_of = line
        self.turn = threading.Lock()  # held during each step
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def step(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                with self.turn:
                    self.step()
                time.sleep(0.005)  # whoever else wants the turn gets it
        except BaseException as error:  # for the test's own thread
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        if self._end_of:
            self._end_of.close()
        if self._failure and not error:
            raise self._failure


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Pulse(Work):
    """Pings an address every 20 ms and notes when answers came."""

    def __init__(self, netns: Netns, address: str) -> None:
        self._line = made_in(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        super().__init__(self._line)
        self._line.connect((address, 0))
        self._line.settimeout(0.02)
        self._number = 0
        self.answers: list[float] = []

    def step(self) -> None:
        self.answers = self.answers or [time.monotonic()]
        self._number = (self._number + 1) % 65536
        head = struct.pack(">BBHHH", 8, 0, 0, os.getpid() % 65536, self._number)
        self._line.send(head[:2] + checksum(head).to_bytes(2, "big") + head[4:])
        again = time.monotonic() + 0.02
        while (now := time.monotonic()) < again:
            try:
                got = self._line.recv(2048)
            except TimeoutError:
                continue
            if got[IPV4_HEADER] == 0 and got[IPV4_HEADER + 4 : IPV4_HEADER + 6] == head[4:6]:
                self.answers.append(now)

    def silence(self) -> float:
        """The longest time without an answer so far, in seconds."""
        return max(later - earlier for earlier, later in zip(self.answers, self.answers[1:], strict=False))


class Ear(Work):
    """Counts what a station's interface hears: (EtherType, source address)."""

    def __init__(self, netns: Netns, device: str) -> None:
        self._line = made_in(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        super().__init__(self._line)
        self._line.settimeout(0.1)
        self._line.bind((device, ETH_P_ALL))
        self.heard: Counter[tuple[int, str]] = Counter()

    def step(self) -> None:
        try:
            frame, where = self._line.recvfrom(2048)
        except TimeoutError:
            return
        if where[2] != socket.PACKET_OUTGOING:
            self.heard[int.from_bytes(frame[12:14], "big"), frame[6:12].hex(":")] += 1


def connected(netns: Netns, address: str, port: int, seconds: float = 10.0) -> socket.socket:
    """A TCP connection to somebody who is about to listen."""

    def attempt() -> socket.socket | None:
        line = made_in(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        line.settimeout(seconds)
        try:
            line.connect((address, port))
        except ConnectionRefusedError:
            line.close()
            return None
        return line

    line = wait_until(f"{address} listens on port {port}", attempt, seconds)
    assert line is not None
    return line


class Echoed(Work):
    """A TCP stream that the other side sends back. Every byte is compared."""

    BLOCK = 4096

    def __init__(self, line: socket.socket) -> None:
        super().__init__(line)
        self._line = line
        self._line.settimeout(30.0)
        self.rounds = 0

    def step(self) -> None:
        block = os.urandom(self.BLOCK)
        self._line.sendall(block)
        back = bytearray()
        while len(back) < len(block):
            got = self._line.recv(len(block) - len(back))
            assert got, f"the echo ended after {self.rounds} blocks and {len(back)} bytes"
            back += got
        assert back == block, f"block {self.rounds} came back changed"
        self.rounds += 1

    def more(self, rounds: int) -> Callable[[], bool]:
        """Whether so many more blocks came back since now."""
        goal = self.rounds + rounds
        return lambda: self.rounds >= goal


class Parcel:
    """Random bytes for somebody who does not read them yet."""

    def __init__(self, line: socket.socket, size: int) -> None:
        self._line = line
        self._data = os.urandom(size)
        self.digest = hashlib.sha256(self._data).hexdigest()

    def send(self) -> None:
        """All of it, and wait until the other side's kernel has it."""
        self._line.sendall(self._data)
        wait_until("the parcel is acknowledged", lambda: self._unacknowledged() == 0, 30.0)

    def _unacknowledged(self) -> int:
        left: int = struct.unpack("=i", fcntl.ioctl(self._line, SIOCOUTQ, bytes(4)))[0]
        return left

    def end(self) -> None:
        self._line.close()
