# SPDX-License-Identifier: Apache-2.0
"""Scalars of the configuration: text with a unit or a shape <-> number. A parser raises ValueError with a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:(?::[0-9A-Fa-f]{2}){5}|(?:-[0-9A-Fa-f]{2}){5})", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})", re.ASCII)

FIRST_VLAN, LAST_VLAN = 1, 4094


def show(value: object) -> str:
    """A value the way a person wrote it, short enough for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}...'"
    return str(value)[:60]


def is_number(value: object) -> bool:
    """A whole number; true and false are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool)


def parse_duration(value: object) -> int:
    """Seconds from 300, "300s", "5m", "1h" or "1d"."""
    if isinstance(value, int) and is_number(value):
        if value < 0:
            raise ValueError(f"{value} is not a duration: it cannot be negative")
        return value
    match = re.fullmatch(r"([0-9]{1,12})\s*([smhd]?)", value, re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{show(value)} is not a duration: write whole seconds, or "300s", "5m", "1h", "1d"')
    return int(match[1]) * _DURATION_UNITS[match[2] or "s"]


def format_duration(seconds: int) -> str:
    return f"{seconds}s"


def parse_size(value: object) -> int:
    """Bytes from 268435456 or "256M". Units are powers of 1024; "MiB" and "MB" mean the same here."""
    if isinstance(value, int) and is_number(value):
        if value < 0:
            raise ValueError(f"{value} is not a size: it cannot be negative")
        return value
    match = re.fullmatch(r"([0-9]{1,15})\s*([KMGT]?)(?:i?B)?", value, re.ASCII) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{show(value)} is not a size: write bytes, or "64K", "256M", "1G" (powers of 1024)')
    return int(match[1]) * _SIZE_UNITS[match[2]]


def format_size(size: int) -> str:
    for unit in ("T", "G", "M", "K"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


def parse_mac(value: object) -> int:
    """48 bits, first byte on the wire highest, from "52:54:00:12:34:56" or the same with dashes."""
    if not isinstance(value, str) or not _MAC.fullmatch(value):
        raise ValueError(f'{show(value)} is not a MAC address: write six pairs of hex digits, "52:54:00:12:34:56"')
    return int(value.replace(":", "").replace("-", ""), 16)


def parse_station_mac(value: object) -> int:
    """A MAC that a station can own: not a group address, not all zeros."""
    mac = parse_mac(value)
    if mac == 0:
        raise ValueError(f"{show(value)} is no station's address: all zeros")
    if mac >> 40 & 1:
        raise ValueError(
            f"{show(value)} is a multicast address (lowest bit of the first byte is set): a station has a unicast one"
        )
    return mac


def parse_steering(value: object) -> str:
    """What a NIC hands over: "all", "leftovers", or the addresses of a list with commas between them."""
    if value in ("all", "leftovers"):
        return str(value)
    if (isinstance(value, str) and ":" in value) or (isinstance(value, list) and value):
        macs = value if isinstance(value, list) else [part.strip() for part in value.split(",")]
        return ",".join(format_mac(parse_station_mac(mac)) for mac in macs)
    raise ValueError(f"must be all, leftovers, or a list of MAC addresses in quotes, not {show(value)}")


def format_mac(mac: int) -> str:
    return mac.to_bytes(6, "big").hex(":")


def parse_mode(value: object) -> int:
    """Permission bits from "0660". A number is refused: whether 660 means octal cannot be seen."""
    if not isinstance(value, str):
        raise ValueError(f'{show(value)} is not a file mode: write octal digits in quotes, "0660"')
    if not re.fullmatch(r"0?[0-7]{3}", value, re.ASCII):
        raise ValueError(f'{show(value)} is not a file mode: write octal digits, "0660"')
    return int(value, 8)


def format_mode(mode: int) -> str:
    return f"{mode:04o}"


def parse_vlan(value: object) -> int:
    if not isinstance(value, int) or not is_number(value) or not FIRST_VLAN <= value <= LAST_VLAN:
        raise ValueError(f"{show(value)} is not a VLAN: a number from {FIRST_VLAN} to {LAST_VLAN}")
    return value


def parse_vlan_range(value: object) -> range:
    """VLANs of one item of a trunk list: 10 or "10-20"."""
    if is_number(value):
        vlan = parse_vlan(value)
        return range(vlan, vlan + 1)
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{show(value)} is not a VLAN or a range of them: write 10 or "10-20"')
    first, last = parse_vlan(int(match[1])), parse_vlan(int(match[2]))
    if first > last:
        raise ValueError(f'{show(value)} runs backwards: write "{last}-{first}"')
    return range(first, last + 1)


def format_vlans(vlans: Iterable[int]) -> list[int | str]:
    """The shortest list that parse_vlan_range reads back: [10, "20-22"]."""
    runs: list[list[int]] = []
    for vlan in sorted(vlans):
        if runs and runs[-1][-1] + 1 == vlan:
            runs[-1].append(vlan)
        else:
            runs.append([vlan])
    result: list[int | str] = []
    for run in runs:
        if len(run) > 2:
            result.append(f"{run[0]}-{run[-1]}")
        else:
            result.extend(run)
    return result


def parse_listen(value: object) -> tuple[str, int] | None:
    """As parse_address; None of "off" and null."""
    if value is None or value == "off":
        return None
    return parse_address(value, ' or "off"')


def parse_address(value: object, otherwise: str = "") -> tuple[str, int]:
    """(host, port) of "127.0.0.1:9480", "[::1]:9480", "name:9480"; ("", port) of ":9480"."""
    shape = f'write "127.0.0.1:9480", "[::1]:9480", ":9480" (every address){otherwise}'
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not an address to listen on: {shape}")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})", value, re.ASCII)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{show(value)} is not an address to listen on: {shape}")
    return (match[1] or match[2] or "", int(match[3]))


def format_address(to: tuple[str, int]) -> str:
    return f"[{to[0]}]:{to[1]}" if ":" in to[0] else f"{to[0]}:{to[1]}"
