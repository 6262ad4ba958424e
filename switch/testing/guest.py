# SPDX-License-Identifier: Apache-2.0
"""Guest: sends and receives Ethernet frames through a vhost-user port of a switch, as a guest's virtio driver does."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import Any, Literal, Self, SupportsBytes

from switch.errors import NotBuilt, SwitchError

_SLICE = 0.1  # seconds between looks at pending signals while waiting


class GuestError(SwitchError):
    """The guest could not connect, send or be set up as asked; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Vnet:
    """The virtio-net header in front of a frame: what is left to be done to it.

    A TCP segment whose checksum the switch must finish::

        Vnet(flags=Vnet.NEEDS_CSUM, csum_start=34, csum_offset=16)
    """

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    NEEDS_CSUM = 1
    DATA_VALID = 2
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80


@dataclass(frozen=True, slots=True)
class Received:
    """A frame with what came along with it."""

    frame: bytes
    vnet: Vnet
    queue: int


def _core() -> Any:
    try:
        core = importlib.import_module("switch._core")
    except ImportError as error:
        raise NotBuilt("the compiled module switch._core is missing: install the package (pip install .)") from error
    return core


def feature_bits(features: int | Iterable[str]) -> int:
    """Virtio feature bits from a number or from names such as "mrg_rxbuf" and "ring_packed"."""
    if isinstance(features, int):
        return features
    core = _core()
    known = {core.feature_names(1 << bit): 1 << bit for bit in range(64)}
    bits = 0
    for name in features:
        if name not in known:
            raise GuestError(f"there is no virtio feature '{name}'; known are {', '.join(sorted(known))}")
        bits |= known[name]
    return bits


class Guest:
    """One guest. A context manager: connects on entry, disconnects on exit.

    ``owner`` says who made the socket: "switch" (it listens, the guest connects) or "guest" (the guest listens). The
    ring format and header options are demands: the guest refuses a switch that does not offer them. ``features``
    replaces them all by exactly these features, as a number or as names.

    The guest reconnects by itself when the switch restarts. Frames are bytes, or anything that ``bytes()`` takes, such
    as scapy packets::

        with Guest("/run/switch/vm1.sock", packed=True) as guest:
            guest.send(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.0.1"))
            reply = guest.recv(timeout=2.0)
    """

    def __init__(
        self,
        socket: str,
        *,
        owner: Literal["switch", "guest"] = "switch",
        queues: int = 1,
        packed: bool = False,
        mergeable: bool = True,
        in_order: bool = False,
        event_idx: bool = False,
        offloads: bool = False,
        legacy: bool = False,
        ring_size: int = 256,
        features: int | Iterable[str] | None = None,
        ready_timeout: float = 5.0,
    ) -> None:
        self.socket = socket
        self._ready_timeout = ready_timeout
        self._core = _core()
        self._guest = self._core.Guest(
            socket=str(socket),
            listen=owner == "guest",
            queues=queues,
            packed=packed,
            mergeable=mergeable,
            in_order=in_order,
            event_idx=event_idx,
            offloads=offloads,
            legacy=legacy,
            ring_size=ring_size,
            **({} if features is None else {"features": feature_bits(features)}),
        )

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to connect, without waiting. Entering the context does this and wait_ready()."""
        try:
            self._guest.start()
        except self._core.CoreError as error:
            raise GuestError(str(error.args[1])) from error
        return self

    def stop(self) -> None:
        """Disconnect, as a guest that is switched off. start() switches it on again."""
        self._guest.stop()

    def wait_ready(self, timeout: float | None = None) -> Self:
        """Return when frames can flow; GuestError says what is missing if they cannot in time (seconds)."""
        limit = self._ready_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while not self._guest.wait_ready(_SLICE):
            if time.monotonic() >= deadline:
                status = self._guest.status()
                raise GuestError(
                    f"guest on {self.socket} is not ready after {limit:g} s: {status['stage']}: {status['detail']}"
                )
        return self

    def __enter__(self) -> Self:
        self.start()
        try:
            return self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Frames ----------------------------------------------------------------------------------------------------------

    def send(
        self,
        frame: bytes | SupportsBytes,
        queue: int = 0,
        vnet: Vnet | None = None,
        timeout: float = 1.0,
    ) -> None:
        """Hand a frame to the switch on one of our transmit queues; waits for room in the ring, `timeout` at most."""
        header = astuple(vnet if vnet is not None else Vnet())
        try:
            self._guest.send(bytes(frame), queue, header, timeout)
        except self._core.CoreError as error:
            raise GuestError(f"guest on {self.socket}: {error.args[1]}") from error

    def recv(self, timeout: float = 1.0) -> bytes | None:
        """The oldest frame that arrived, or None when none does in time."""
        received = self.recv_with_header(timeout)
        return None if received is None else received.frame

    def recv_with_header(self, timeout: float = 1.0) -> Received | None:
        """As recv(), with virtio-net header and queue number."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            got = self._guest.receive(max(0.0, min(_SLICE, left)))
            if got is not None:
                return Received(got[0], Vnet(*got[1]), got[2])
            if left <= 0:
                return None

    def drain(self) -> list[bytes]:
        """All frames that have arrived and nobody has taken, oldest first. Does not wait."""
        frames = []
        while (frame := self.recv(timeout=0)) is not None:
            frames.append(frame)
        return frames

    def expect(self, frame: bytes | SupportsBytes, timeout: float = 2.0) -> Received:
        """Wait for exactly this frame, passing over others; AssertionError shows what came instead."""
        wanted = bytes(frame)
        others: list[bytes] = []
        deadline = time.monotonic() + timeout
        while (got := self.recv_with_header(max(0.0, deadline - time.monotonic()))) is not None:
            if got.frame == wanted:
                return got
            others.append(got.frame)
        came = "\n".join(f"  {_show(other)}" for other in others[:10]) or "  nothing"
        raise AssertionError(
            f"guest on {self.socket} did not receive\n  {_show(wanted)}\nwithin {timeout:g} s; it received\n{came}"
        )

    def expect_none(self, frame: bytes | SupportsBytes | None = None, timeout: float = 0.2) -> None:
        """Make sure that no frame (or not this one) arrives for `timeout` seconds."""
        unwanted = None if frame is None else bytes(frame)
        deadline = time.monotonic() + timeout
        while (got := self.recv(max(0.0, deadline - time.monotonic()))) is not None:
            if unwanted is None or got == unwanted:
                raise AssertionError(f"guest on {self.socket} received, but should not have\n  {_show(got)}")

    # Facts -----------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Frames can flow at this moment."""
        return self._guest.wait_ready(0.0) is True

    @property
    def features(self) -> frozenset[str]:
        """Names of the negotiated features; empty while not connected."""
        names = str(self._core.feature_names(self._guest.status()["features"]))
        return frozenset(names.split(",")) - {""}

    @property
    def queues(self) -> int:
        """Queue pairs in use."""
        return int(self._guest.status()["queue_pairs"])

    @property
    def counters(self) -> Mapping[str, int]:
        """tx_frames, tx_bytes, rx_frames, rx_bytes, kicks (notifications sent), dropped, times_ready (handshakes)."""
        status = self._guest.status()
        keys = ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "kicks", "dropped", "times_ready")
        return {key: int(status[key]) for key in keys}

    @property
    def stage(self) -> str:
        """How far the connection has come: waiting_for_peer, negotiating, setting_up_rings, running."""
        return str(self._guest.status()["stage"])

    @property
    def detail(self) -> str:
        """One sentence on why it is not running; empty when it is."""
        return str(self._guest.status()["detail"])

    @property
    def broken(self) -> str:
        """The virtio rule that the switch broke, if it did."""
        return str(self._guest.status()["broken"])


def _show(frame: bytes) -> str:
    head = frame[:64].hex(" ")
    return f"{len(frame)} bytes: {head}{' ...' if len(frame) > 64 else ''}"
