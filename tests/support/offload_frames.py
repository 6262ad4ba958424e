# SPDX-License-Identifier: Apache-2.0
"""Frames that leave work to others (a checksum, segmentation), and what must come of them when the work is done.

Everything expected is made by scapy, packet by packet, and not by cutting the large frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from switch.testing.guest import Vnet

SEQUENCE = 0xFFFFF000  # so that sequence numbers wrap within a large frame
ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


@dataclass(frozen=True)
class Case:
    """One kind of frame. `gso`: payload bytes of a segment, 0: only the checksum is open."""

    name: str
    ip: int
    layer4: str
    payload: int
    gso: int = 0
    ecn: bool = False
    hop_by_hop: bool = False
    tunnel: str = ""  # "vxlan", "vxlan-sum": with an outer UDP checksum, "gre": with GRE's, and no Ethernet inside
    tags: str = ""  # "q": 802.1Q, "ad": 802.1ad, "": none

    @property
    def needs(self) -> frozenset[str]:
        """What whoever takes it unfinished must be able to do."""
        needs = {"csum"}
        if self.gso:
            needs.add("uso" if self.layer4 == "udp" else f"tso{self.ip}")
        if self.ecn:
            needs.add("ecn")
        return frozenset(needs)

    @property
    def passes(self) -> bool:
        """Whether virtio-net's header can say what is to be done. It has no word for tunnels around large segments."""
        return not (self.gso and self.tunnel)


CASES = [
    Case("csum-tcp4", 4, "tcp", 101),
    Case("csum-udp6", 6, "udp", 33),
    Case("csum-inside-vxlan", 4, "tcp", 77, tunnel="vxlan"),
    Case("tso4", 4, "tcp", 4001, gso=1000),
    Case("tso4-64k", 4, "tcp", 60000, gso=1400),
    Case("tso4-ecn", 4, "tcp", 3000, gso=1300, ecn=True),
    Case("tso6", 6, "tcp", 4001, gso=999),
    Case("tso6-hop-by-hop", 6, "tcp", 2500, gso=1200, hop_by_hop=True),
    Case("uso4", 4, "udp", 4001, gso=1000),
    Case("uso6", 6, "udp", 2400, gso=1200),
]
TUNNEL_CASES = [
    Case("csum-inside-vxlan-sum", 4, "udp", 78, tunnel="vxlan-sum"),
    Case("tso4-inside-vxlan", 4, "tcp", 4001, gso=1000, tunnel="vxlan"),
    Case("tso4-inside-vxlan-sum", 4, "tcp", 3001, gso=1000, tunnel="vxlan-sum", tags="q"),
    Case("tso4-inside-gre", 4, "tcp", 2600, gso=1300, tunnel="gre", tags="ad"),
    Case("uso4-inside-vxlan-sum", 4, "udp", 2001, gso=1000, tunnel="vxlan-sum"),
]
ALL_CASES = [replace(case, tags=tags) for case in CASES for tags in ("", "q", "ad")] + TUNNEL_CASES


def _packet(case: Case, payload: bytes, number: int, flags: str) -> Packet:
    """Segment `number` of the case, with correct checksums."""
    source, destination = ADDRESSES[case.ip]
    packet: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if case.tags == "q":
        packet /= Dot1Q(vlan=10, prio=5)
    elif case.tags == "ad":
        packet /= Dot1AD(vlan=20)
    network: Packet
    layer4: Packet
    if case.ip == 4:
        network = IP(src=source, dst=destination, id=1000 + number, tos=2 if case.ecn else 0, ttl=9)
    else:
        network = IPv6(src=source, dst=destination, hlim=9, tc=2 if case.ecn else 0)
        if case.hop_by_hop:
            network /= IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")])
    if case.tunnel:
        packet /= network
        if case.tunnel == "gre":
            packet /= GRE(chksum_present=1, key_present=1, key=5)
        else:
            packet /= UDP(sport=1234, dport=4789, chksum=0 if case.tunnel == "vxlan" else None) / VXLAN(vni=77)
            packet /= Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04")
        network = IP(src=source, dst=destination, id=1000 + number, ttl=9)
    if case.layer4 == "udp":
        layer4 = UDP(sport=4000, dport=4001)
    else:
        sequence = (SEQUENCE + number * case.gso) % (1 << 32)
        layer4 = TCP(sport=4000, dport=4001, seq=sequence, ack=7, flags=flags, options=[("Timestamp", (1, 2))])
    return packet / network / layer4 / Raw(payload)


def _payload(case: Case) -> bytes:
    return bytes((7 * i + i // 251) % 256 for i in range(case.payload))


def _fold(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@cache
def unfinished(case: Case) -> tuple[bytes, Vnet]:
    """The frame as its sender hands it over: the checksum field holds the sum of the pseudo-header."""
    first = "CPFA" if case.ecn else "PFA"
    packet = _packet(case, _payload(case), 0, first)
    layer = UDP if case.layer4 == "udp" else TCP
    inner = packet.lastlayer().underlayer
    assert isinstance(inner, layer)
    length = len(bytes(inner))
    frame = bytearray(bytes(packet))
    start, offset = len(frame) - length, 6 if layer is UDP else 16
    addresses = frame[start - 8 : start] if case.ip == 4 else _ipv6_addresses(case, frame)
    pseudo = bytes(addresses) + struct.pack("!II", length, 17 if layer is UDP else 6)
    struct.pack_into("!H", frame, start + offset, _fold(pseudo))
    kind = Vnet.GSO_NONE
    if case.gso:
        tcp = Vnet.GSO_TCPV4 if case.ip == 4 else Vnet.GSO_TCPV6
        kind = (Vnet.GSO_UDP_L4 if layer is UDP else tcp) | (Vnet.GSO_ECN if case.ecn else 0)
    headers = start + (8 if layer is UDP else 32)
    return bytes(frame), Vnet(Vnet.NEEDS_CSUM, kind, headers if case.gso else 0, case.gso, start, offset)


def _ipv6_addresses(case: Case, frame: bytearray) -> bytes:
    begin = 14 + (4 if case.tags else 0) + 8
    return bytes(frame[begin : begin + 32])


@cache
def finished(case: Case) -> list[bytes]:
    """The frames that a wire may carry instead."""
    payload = _payload(case)
    first = "CPFA" if case.ecn else "PFA"
    if not case.gso:
        return [bytes(_packet(case, payload, 0, first))]
    parts = [payload[at : at + case.gso] for at in range(0, len(payload), case.gso)]
    frames = []
    for number, part in enumerate(parts):
        flags = ("C" if case.ecn and number == 0 else "") + ("PF" if number + 1 == len(parts) else "") + "A"
        frames.append(bytes(_packet(case, part, number, flags)))
    return frames


def addressed(frame: bytes, destination: bytes, source: bytes) -> bytes:
    """The frame between other stations."""
    return destination + source + frame[12:]


def completed(frame: bytes, vnet: Vnet) -> bytes:
    """The frame with its open checksum filled in, as whoever takes it would."""
    whole = bytearray(frame)
    total = _fold(bytes(whole[vnet.csum_start :])) ^ 0xFFFF
    struct.pack_into("!H", whole, vnet.csum_start + vnet.csum_offset, total or 0xFFFF)
    return bytes(whole)
