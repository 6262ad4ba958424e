# SPDX-License-Identifier: Apache-2.0
"""A station that sends every UDP datagram back to where it came from: python -m tests.interop.echo INTERFACE

Addresses and ports change places, so checksums stay right. Port 8 gets its answer in VLAN 5.
"""

from __future__ import annotations

import socket
import sys

UDP_IN_IPV4 = b"\x08\x00\x45"
TAGGED_PORT, TAG = (8).to_bytes(2, "big"), bytes.fromhex("81000005")


def answer(frame: bytes) -> bytes:
    """The datagram in `frame` as it goes back; empty if there is none."""
    if frame[12:15] != UDP_IN_IPV4 or frame[23] != socket.IPPROTO_UDP:
        return b""
    swapped = (
        frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36] + frame[38:]
    )
    return swapped[:12] + TAG + swapped[12:] if frame[36:38] == TAGGED_PORT else swapped


def main(interface: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as line:
        line.bind((interface, 0x0800))
        while True:
            frame, where = line.recvfrom(65536)
            if where[2] != socket.PACKET_OUTGOING and (reply := answer(frame)):
                line.send(reply)


if __name__ == "__main__":
    main(sys.argv[1])
