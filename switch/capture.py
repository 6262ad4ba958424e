# SPDX-License-Identifier: Apache-2.0
"""Frames of a port while they pass: as objects, as pcapng (draft-ietf-opsawg-pcapng) and as lines for people.

Nothing here touches a running switch: the daemon's stream and `swctl capture` both use it.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from dataclasses import dataclass
from typing import Any

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6  # block types
ETHERNET = 1  # link type
END, COMMENT = 0, 1  # options of every block
APPLICATION, NAME, RESOLUTION, FLAGS, LOST, QUEUE = 4, 2, 9, 2, 5, 6  # options of one kind of block each
INBOUND, OUTBOUND = 1, 2  # in FLAGS

VLAN_TAGS = (0x8100, 0x88A8)
TYPES = {0x0806: "ARP", 0x88CC: "LLDP", 0x8847: "MPLS", 0x8863: "PPPoE", 0x8864: "PPPoE", 0x88F7: "PTP"}
PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 58: "ICMPv6", 89: "OSPF", 112: "VRRP", 132: "SCTP"}


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame at a port. Direction is the switch's: rx enters it."""

    time_ns: int  # since 1970
    direction: str  # rx or tx
    queue: int
    dropped: str  # the reason; empty: it was not
    length: int
    data: bytes  # may be less than `length`

    def as_dict(self) -> dict[str, Any]:
        return {
            "time": self.time_ns / 1e9, "time_ns": self.time_ns, "direction": self.direction, "queue": self.queue,
            "dropped": self.dropped, "length": self.length, "data": self.data.hex(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, item: dict[str, Any]) -> Captured:
        return cls(
            item["time_ns"], item["direction"], item["queue"], item["dropped"], item["length"],
            bytes.fromhex(item["data"]),
        )  # fmt: skip


# ---- pcapng ----


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def file_header(port: str) -> bytes:
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(APPLICATION, b"switchd") + _option(END, b"")
    interface = struct.pack("<HHI", ETHERNET, 0, 0) + _option(NAME, port.encode())
    interface += _option(RESOLUTION, b"\x09") + _option(END, b"")  # nanoseconds
    return _block(SECTION, section) + _block(INTERFACE, interface)


def packet(frame: Captured) -> bytes:
    """The direction is a flag; the reason for which a frame was dropped is its comment."""
    body = struct.pack("<5I", 0, *_time(frame.time_ns), len(frame.data), frame.length) + _padded(frame.data)
    if frame.dropped:
        body += _option(COMMENT, f"dropped: {frame.dropped}".encode())
    body += _option(FLAGS, struct.pack("<I", INBOUND if frame.direction == "rx" else OUTBOUND))
    return _block(PACKET, body + _option(QUEUE, struct.pack("<I", frame.queue)) + _option(END, b""))


def statistics(missed: int) -> bytes:
    """How many frames passed and are not in the file."""
    body = struct.pack("<3I", 0, *_time(time.time_ns())) + _option(LOST, struct.pack("<Q", missed))
    return _block(STATISTICS, body + _option(END, b""))


def _time(nanoseconds: int) -> tuple[int, int]:
    return nanoseconds >> 32, nanoseconds & 0xFFFFFFFF


# ---- for people ----


def line(frame: Captured) -> str:
    """Time, direction, addresses, VLAN, what it is, length, and why it was dropped."""
    seconds, rest = divmod(frame.time_ns, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    words = f"{clock}.{rest // 1000:06d} {frame.direction} {describe(frame.data)}, {frame.length} bytes"
    return f"{words}  [dropped: {frame.dropped}]" if frame.dropped else words


def describe(data: bytes) -> str:
    if len(data) < 14:
        return "cut off"
    words = [f"{data[6:12].hex(':')} > {data[:6].hex(':')}"]
    at = 12
    while len(data) >= at + 6 and _u16(data, at) in VLAN_TAGS:
        words.append(f"vlan {_u16(data, at + 2) & 0xFFF}")
        at += 4
    kind = _u16(data, at)
    words.append(_ip(data[at + 2 :], kind) or TYPES.get(kind) or (f"type 0x{kind:04x}" if kind >= 0x600 else "LLC"))
    return ", ".join(words)


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _ip(packet: bytes, kind: int) -> str:
    """Empty: not IP, or cut off."""
    if kind == 0x0800 and len(packet) >= 20:
        addresses, protocol, header = (packet[12:16], packet[16:20]), packet[9], (packet[0] & 15) * 4
        later = _u16(packet, 6) & 0x1FFF != 0
    elif kind == 0x86DD and len(packet) >= 40:
        addresses, protocol, header, later = (packet[8:24], packet[24:40]), packet[6], 40, False
    else:
        return ""
    source, destination = (str(ipaddress.ip_address(address)) for address in addresses)
    if protocol in (6, 17, 132) and len(packet) >= header + 4 and not later:
        source += f":{_u16(packet, header)}" if kind == 0x0800 else f".{_u16(packet, header)}"
        destination += f":{_u16(packet, header + 2)}" if kind == 0x0800 else f".{_u16(packet, header + 2)}"
    name = PROTOCOLS.get(protocol, f"protocol {protocol}")
    return f"{source} > {destination} {name}{' fragment' if later else ''}"
