# SPDX-License-Identifier: Apache-2.0
"""A guest that breaks every rule: random messages with real descriptors of the wrong kinds, random rings, random ends.

    python -m tests.support.hostile_guest SOCKET SEED SECONDS

prints what it did as JSON. What it does follows from the seed, but for what the switch's timing decides.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import mmap
import os
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

MEMORY = 1 << 20
RING = 256
HALF = 0x20000  # of the memory for each ring: descriptors, driver area, device area, tables
BUFFERS = 0x80000  # and from here on buffers
VIRT = 0x7F00_0000_0000  # where the guest says that its memory begins in its own address space
GUEST = 0x10_0000  # the same in guest-physical addresses
AREAS = (0, 0x8000, 0x4000)  # descriptors, avail, used

# Requests by number, and what their payload is.
U64, STATE, ADDR, TABLE, REGION, LOG, FD, NOTHING = range(8)
REQUESTS = {
    1: NOTHING, 2: U64, 3: NOTHING, 4: NOTHING, 5: TABLE, 6: LOG, 7: NOTHING, 8: STATE, 9: ADDR, 10: STATE, 11: STATE,
    12: FD, 13: FD, 14: FD, 15: NOTHING, 16: U64, 17: NOTHING, 18: STATE, 19: U64, 20: U64, 36: NOTHING, 37: REGION,
    38: REGION, 39: U64, 40: NOTHING,
}  # fmt: skip
FEATURES = [1 << bit for bit in (0, 1, 5, 7, 8, 11, 12, 15, 27, 28, 29, 30, 32, 34, 35)]
NUMBERS = (0, 1, 2, 3, 0xFF, 0x100, 256, 0x7FFF, 0x8000, 0x10000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_F000, 2**64 - 1)


class Hostile:
    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.pool = self._make_pool()
        self.flipped = os.eventfd(0, os.EFD_CLOEXEC)
        os.eventfd_write(self.flipped, 2**64 - 2)
        self.socket: socket.socket | None = None
        self.memory = -1
        self.view: mmap.mmap | None = None
        self.indexes = [0, 0]
        threading.Thread(target=self._flip, daemon=True).start()

    # ---- what it passes ----

    def _make_pool(self) -> list[int]:
        """One descriptor of each kind that does not belong, and some that do."""
        short = os.memfd_create("hostile-short")
        os.ftruncate(short, 1)
        sealed = os.memfd_create("hostile-sealed", os.MFD_ALLOW_SEALING)
        os.ftruncate(sealed, MEMORY)
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        sparse = os.memfd_create("hostile-sparse")
        os.ftruncate(sparse, 1 << 44)
        full = os.eventfd(0)
        os.eventfd_write(full, 2**64 - 2)
        disk = tempfile.TemporaryFile(dir="/var/tmp")  # noqa: SIM115 (kept)
        disk.truncate(MEMORY)
        self._kept: list[Any] = [disk, socket.socket(socket.AF_UNIX), *socket.socketpair(), select.epoll()]
        return [
            short, sealed, sparse, full, os.eventfd(0, os.EFD_NONBLOCK), os.open("/", os.O_RDONLY),
            os.open("/dev/null", os.O_RDWR), os.open("/dev/zero", os.O_RDWR), os.open("/proc/self/mem", os.O_RDONLY),
            *os.pipe(), *(thing.fileno() for thing in self._kept),
        ]  # fmt: skip

    def _flip(self) -> None:
        """Make eventfds blocking all the time: their flags are shared with the switch."""
        while True:
            for fd in (self.flipped, self.pool[3]):
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            time.sleep(0.0005)

    def _lingering(self) -> int:
        """A TCP socket, our last reference to which goes with the message: who closes it then waits for its peer."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far = listener.accept()[0]
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 100))
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(bytes(1 << 16))
        self._kept.append(far)
        self.done["lingering"] += 1
        return near.detach()

    # ---- messages ----

    def number(self) -> int:
        choice = self.random.random()
        if choice < 0.5:
            return self.random.randrange(8)
        return (
            self.random.choice(NUMBERS) if choice < 0.8 else self.random.getrandbits(self.random.choice((16, 32, 64)))
        )

    def region(self) -> bytes:
        if self.random.random() < 0.6:
            offset = 0x1000 * self.random.randrange(4)
            return struct.pack("=4Q", GUEST + offset, MEMORY - offset, VIRT + offset, offset)
        return struct.pack("=4Q", *(self.number() & (2**64 - 1) for _ in range(4)))

    def payload(self, kind: int) -> bytes:
        ring = self.random.choice((0, 1, 1, 2, 3, 255, 256, self.number() & 0xFFFF_FFFF))
        if kind == U64:
            return struct.pack(
                "=Q", sum(self.random.sample(FEATURES, 6)) if self.random.random() < 0.5 else self.number()
            )
        if kind == STATE:
            return struct.pack("=2I", ring, self.number() & 0xFFFF_FFFF)
        if kind == ADDR:
            at = VIRT + (ring & 1) * HALF if self.random.random() < 0.7 else self.number()
            places = [(at + area) & (2**64 - 1) for area in (AREAS[0], AREAS[2], AREAS[1])]
            return struct.pack("=2I4Q", ring, self.random.randrange(2), *places, self.number() & (2**64 - 1))
        if kind == TABLE:
            count = self.random.choice((0, 1, 1, 2, 8, 9, self.number() & 0xFFFF_FFFF))
            regions = b"".join(self.region() for _ in range(min(count, 8)))
            return struct.pack("=2I", count, 0) + regions
        if kind == REGION:
            return bytes(8) + self.region()
        if kind == LOG:
            return struct.pack("=2Q", self.number() & (2**64 - 1), self.number() & (2**64 - 1))
        return struct.pack("=Q", ring & 0x1FF) if kind == FD else b""

    def send(self, request: int, payload: bytes, fds: list[int], flags: int = 1) -> None:
        assert self.socket is not None
        header = struct.pack("=3I", request, flags, len(payload))
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([header + payload], control)
        self.done["messages"] += 1

    def send_random(self) -> None:
        """A message with at most a few things wrong with it."""
        chance = self.random.random
        request = self.random.choice(list(REQUESTS)) if chance() < 0.95 else self.random.getrandbits(32)
        payload = self.payload(REQUESTS.get(request, U64))
        fds: list[int] = []
        lingering = -1
        if request in (5, 6, 7, 12, 13, 14, 37) or chance() < 0.03:
            count = max(1, payload[0]) if request == 5 and payload[0] <= 8 else 1
            right = self.memory if request in (5, 6, 37) else os.eventfd(0)
            fds = [right if chance() < 0.7 else self.random.choice([*self.pool, self.flipped]) for _ in range(count)]
            if chance() < 0.02:
                fds *= self.random.choice((2, 9, 100, 250))
            if chance() < 0.002:
                lingering = self._lingering()
                fds = [*fds[:4], lingering]
        if chance() < 0.02:
            payload = payload[: self.random.randrange(len(payload) + 1)] + os.urandom(self.random.choice((0, 1, 600)))
        try:
            self.send(
                request,
                payload,
                fds[:253],
                self.random.choice((1, 1, 1, 9, 9, 9, 9, 9, 5, 0, 2, 0x11)) if chance() < 0.3 else 9,
            )
        finally:
            if request in (12, 13, 14) and fds and fds[0] not in (*self.pool, self.flipped, lingering):
                os.close(fds[0])
            if lingering >= 0:
                os.close(lingering)

    def read_replies(self) -> None:
        assert self.socket is not None
        while select.select([self.socket], [], [], 0)[0]:
            data, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
            for fd in fds:
                os.close(fd)
            if not data:
                raise ConnectionResetError

    # ---- rings ----

    def set_up(self, packed: bool) -> None:
        """Everything right, for once, so that rings run."""
        features = [1 << 30, 1 << 32, 1 << 28, *self.random.sample(FEATURES[:8], 3)]
        if packed:
            features.append(1 << 34)
        if self.random.random() < 0.5:
            features.append(1 << 29)
        assert self.view is not None
        self.view[:BUFFERS] = bytes(BUFFERS)
        self.indexes = [0, 0]
        self.send(16, struct.pack("=Q", 1 << 3 | 1 << 15 | 1 << 1), [])
        self.send(2, struct.pack("=Q", sum(set(features))), [])
        self.send(5, struct.pack("=2I4Q", 1, 0, GUEST, MEMORY, VIRT, 0), [self.memory])
        for ring in (0, 1):
            at = VIRT + ring * HALF
            self.send(8, struct.pack("=2I", ring, RING), [])
            self.send(10, struct.pack("=2I", ring, 0x8000 if packed else 0), [])
            self.send(9, struct.pack("=2I4Q", ring, 0, at, at + AREAS[2], at + AREAS[1], 0), [])
            for request in (12, 13, 14):
                fd = self.flipped if request != 12 and self.random.random() < 0.3 else os.eventfd(0)
                self.send(request, struct.pack("=Q", ring), [fd])
                if fd != self.flipped:
                    os.close(fd)
            self.send(18, struct.pack("=2I", ring, 1), [])
        self.done["set_up"] += 1

    def descriptor(self, ring: int, packed: bool) -> bytes:
        chance = self.random.random
        address = GUEST + BUFFERS + self.random.randrange((MEMORY - BUFFERS) // 2048) * 2048
        length = self.random.choice((72, 72, 1526, 12, 11, 0, 13, 65562))
        flags = 0 if ring else 2
        following = self.random.randrange(RING)
        if chance() < 0.1:
            address = self.random.choice((0, GUEST, GUEST + MEMORY - 1, 2**64 - 1, 2**63, GUEST + HALF + 0x10000))
        if chance() < 0.1:
            length = self.random.choice((0xFFFF_FFFF, 16, 16 * 1024, 17, 1 << 20))
        if chance() < 0.2:
            flags = self.random.getrandbits(3)
        if not packed:
            return struct.pack("<QIHH", address, length, flags, following if chance() < 0.95 else 0xFFFF)
        lap = 0x80 if self.random.random() < 0.7 else self.random.choice((0, 0x8000, 0x8080))
        return struct.pack("<QIHH", address, length, following if chance() < 0.98 else 0xFFFF, flags | lap)

    def scribble(self, packed: bool) -> None:
        """A ring's worth of descriptors, frames and indexes, of which most are right."""
        assert self.view is not None
        ring = self.random.randrange(2)
        base = ring * HALF
        for slot in range(RING):
            self.view[base + slot * 16 : base + slot * 16 + 16] = self.descriptor(ring, packed)
        for _ in range(32):  # frames, and tables of descriptors
            at = BUFFERS + self.random.randrange((MEMORY - BUFFERS) // 2048) * 2048
            offload = struct.pack(
                "<BBHHHHH", self.random.getrandbits(1), self.random.choice((0, 0, 1, 3, 4, 5, 0x81, 0xFF)),
                self.number() & 0xFFFF, self.random.choice((0, 1, 8, 256, 1448, 0xFFFF)),
                self.random.choice((0, 14, 34, 54, 0xFFFF)), self.random.choice((0, 6, 16, 0xFFFF)), 0,
            )  # fmt: skip
            addresses = (
                bytes([2, 0, 0, 0, 0, self.random.getrandbits(8)]) * 2 if self.random.random() < 0.8 else os.urandom(12)
            )
            kind = self.random.choice(
                (b"\x08\x00\x45\x00", b"\x86\xdd\x60\x00", b"\x81\x00\x00\x14\x08\x00", b"\x88\xb5")
            )
            frame = offload + addresses + kind + os.urandom(80)
            self.view[at : at + len(frame)] = frame
            table = BUFFERS + self.random.randrange((MEMORY - BUFFERS) // 2048) * 2048
            self.view[table : table + 256] = b"".join(self.descriptor(ring, packed) for _ in range(16))
        if not packed:
            avail = base + AREAS[1]
            step = self.random.choice((1, 16, 64, RING, RING, RING)) if self.random.random() < 0.97 else 0x7FFF
            heads = [self.random.randrange(RING if self.random.random() < 0.999 else 65536) for _ in range(RING)]
            struct.pack_into(f"<{RING}H", self.view, avail + 4, *heads)
            used = struct.unpack_from("<H", self.view, base + AREAS[2] + 2)[0]
            struct.pack_into("<HH", self.view, avail, self.random.getrandbits(1), (used + step) & 0xFFFF)
        self.done["scribbles"] += 1

    # ---- a life ----

    def connect(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(0.5)
        self.socket.connect(self.path)
        self.memory = os.memfd_create("hostile-guest")
        os.ftruncate(self.memory, MEMORY)
        self.view = mmap.mmap(self.memory, MEMORY)
        self.done["connections"] += 1

    def end(self) -> None:
        if self.socket is not None:
            self.socket.close()
        if self.view is not None:
            self.view.close()
        if self.memory >= 0:
            os.close(self.memory)
        self.socket, self.view, self.memory = None, None, -1

    def live(self, until: float) -> None:
        """One connection: any of these for a while, until somebody has enough."""
        packed = self.random.random() < 0.4
        kinds: list[tuple[Callable[[], None], float]] = [
            (self.send_random, self.random.choice((0.0, 0.3, 1.0))),
            (lambda: self.scribble(packed), self.random.choice((0.0, 1.0, 1.0))),
        ]
        if self.random.random() < 0.8:
            self.set_up(packed)
        rounds = self.random.choice((1, 5, 50, 200))
        for _ in range(rounds):
            if time.monotonic() > until:
                return
            for act, chance in kinds:
                if self.random.random() < chance:
                    act()
            if self.random.random() < 0.9:
                self.read_replies()
            if self.random.random() < 0.01:
                os.ftruncate(self.memory, 0x1000 * self.random.randrange(256))  # under the rings that run
                self.done["truncated"] += 1
                time.sleep(0.02)
                return  # we may not touch the rest ourselves
        if self.random.random() < 0.3:  # in the middle of a message
            assert self.socket is not None
            self.socket.send(struct.pack("=3I", 5, 1, 264)[: self.random.randrange(12)])

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                self.connect()
                self.live(until)
            except TimeoutError:
                self.done["not_read"] += 1  # the switch takes no more of ours for now
            except (BlockingIOError, BrokenPipeError, ConnectionError, FileNotFoundError):
                self.done["sent_away"] += 1
            finally:
                self.end()
            del self._kept[5:-40]  # lingering sockets end with their far sides


def main() -> None:
    path, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    os.nice(5)
    hostile = Hostile(path, seed)
    hostile.run(seconds)
    print(json.dumps(hostile.done), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
