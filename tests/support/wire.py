# SPDX-License-Identifier: Apache-2.0
"""The kernel's end of an interface in a network namespace: a raw packet socket, with or without virtio-net headers."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import astuple

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from switch.testing.guest import Vnet
from tests.interop.netns import Netns, made_in

SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 8, 15, 23
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 0x10, 0x40
ETH_P_ALL = 0x0003
VNET = struct.Struct("=BBHHHH")


class Wire:
    """Frames of one interface, with the VLAN tags that the kernel takes out put back."""

    def __init__(self, netns: Netns, device: str, vnet: bool = False) -> None:
        self._vnet = vnet

        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.bind((device, ETH_P_ALL))
            return made

        self._socket = made_in(netns, make)
        for option in (PACKET_IGNORE_OUTGOING, PACKET_AUXDATA, *((PACKET_VNET_HDR,) if vnet else ())):
            self._socket.setsockopt(SOL_PACKET, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.settimeout(0.2)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: Packet | bytes, vnet: Vnet | None = None) -> None:
        header = VNET.pack(*astuple(vnet or Vnet())) if self._vnet else b""
        self._socket.send(header + bytes(frame))

    def receive_raw(self, timeout: float = 0.2) -> tuple[bytes, Vnet] | None:
        """The next frame and its header, None when none comes in time."""
        self._socket.settimeout(timeout or 1e-6)
        try:
            data, control, _, _ = self._socket.recvmsg(1 << 17, 256)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # told once; the socket lives on
                return None
            raise
        vnet, frame = (Vnet(*VNET.unpack_from(data)), data[VNET.size :]) if self._vnet else (Vnet(), data)
        for level, kind, aux in control:
            if level != SOL_PACKET or kind != PACKET_AUXDATA:
                continue
            status, tci, tpid = struct.unpack_from("=I12xHH", aux)
            if status & TP_STATUS_VLAN_VALID:
                tag = struct.pack("!HH", tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100, tci)
                frame = frame[:12] + tag + frame[12:]
                if vnet.flags & Vnet.NEEDS_CSUM:
                    fields = list(astuple(vnet))
                    fields[4] += 4  # csum_start
                    vnet = Vnet(*fields)
        return frame, vnet

    def receive(self) -> Packet | None:
        got = self.receive_raw()
        return None if got is None else Ether(got[0])

    def wait_for(self, wanted: Callable[[Packet], bool], seconds: float = 10.0) -> Packet:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            frame = self.receive()
            if frame is not None and wanted(frame):
                return frame
        raise AssertionError("the frame did not arrive")
