# SPDX-License-Identifier: Apache-2.0
"""Cases: what the guests are and what they send, spelled in a name.

A name is SIZE-RING[-WORD...], "64-split" or "1518-packed-inorder-4kpairs". Any combination may be asked for; MATRIX is
what `make bench` measures.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


class CaseError(ValueError):
    """The name means nothing; the message says which part."""


BUFFER_BYTES = 2048  # of a guest's receive buffer; without mergeable buffers one holds the largest frame

KINDS = {
    "rate": "frames a second, both ways, as many as go",
    "latency": "at fixed rates, at shares of the switch's own rate, with one frame per guest under way",
    "loop": "frames a second between DPDK's own guests (testpmd with virtio-user), in a closed loop",
    "idle": "CPU time of the idle switch, and how long the first frame takes then",
    "disturb": "latency and loss of others while the switch is asked and changed",
}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    size: int = 64  # bytes of a frame, without FCS
    packed: bool = False
    in_order: bool = False
    mergeable: bool = True
    pairs: int = 1  # MAC addresses per guest
    ports: int = 2  # with guests that send, in pairs
    idle: int = 0  # further ports, with connected guests that do nothing
    burst: int = 32
    ring: int = 256
    touch: str = "whole"  # what guests do with the bytes: traffic.h, TrafficTouch
    gso: int = 0  # bytes of a segment: frames are TCP for the other side to cut
    kind: str = "rate"  # what is measured: one of KINDS

    @property
    def window(self) -> int:
        """Most frames of a guest under way; 0: what the rings take.

        A ring of 256 holds 8 frames of 64 KB. As TCP would, guests keep to what the receiver has room for.
        """
        buffers = -(-self.size // BUFFER_BYTES) if self.mergeable else 1
        return 0 if buffers == 1 else max(1, self.ring // buffers * 3 // 4)

    @property
    def all_ports(self) -> int:
        return self.ports + self.idle

    @property
    def plain(self) -> Case | None:
        """What the cost of many addresses or of idle ports is told against: the same without. None: it has neither."""
        if self.pairs == 1 and self.idle == 0:
            return None
        return replace(self, pairs=1, idle=0)


def _count(text: str) -> int:
    units = {"": 1, "k": 1 << 10, "m": 1 << 20}
    return int(text[:-1]) * units[text[-1]] if text[-1] in "km" else int(text)


def parse_case(name: str) -> Case:
    parts = name.split("-")
    if len(parts) < 2 or not re.fullmatch(r"[0-9]+|tso", parts[0]) or parts[1] not in ("split", "packed"):
        raise CaseError(f"'{name}' is no case: it begins with a size or 'tso', then 'split' or 'packed': 64-split")
    size = 65226 if parts[0] == "tso" else int(parts[0])
    if not 60 <= size <= 65535:
        raise CaseError(f"'{name}': frames have 60 to 65535 bytes")
    case = Case(name, size=size, packed=parts[1] == "packed")
    if parts[0] == "tso":
        case = replace(case, gso=1448)
    for word in parts[2:]:
        case = _with_word(case, word)
    return case


def _with_word(case: Case, word: str) -> Case:
    plain: dict[str, dict[str, object]] = {
        "inorder": {"in_order": True},
        "nomrg": {"mergeable": False},
        "head": {"touch": "head"},
        "never": {"touch": "never"},
    }
    if word in KINDS:
        return replace(case, kind=word)
    if word in plain:
        return replace(case, **plain[word])  # type: ignore[arg-type]
    if found := re.fullmatch(r"([0-9]+[km]?)pairs", word):
        return replace(case, pairs=_count(found[1]))
    if found := re.fullmatch(r"([0-9]+)ports", word):
        if int(found[1]) < 2 or int(found[1]) % 2:
            raise CaseError(f"'{case.name}': ports send in pairs, so their number is even")
        return replace(case, ports=int(found[1]))
    if found := re.fullmatch(r"([0-9]+)idle", word):
        return replace(case, idle=int(found[1]))
    if found := re.fullmatch(r"burst([0-9]+)", word):
        return replace(case, burst=int(found[1]))
    if found := re.fullmatch(r"ring([0-9]+)", word):
        return replace(case, ring=int(found[1]))
    kinds = ", ".join(KINDS)
    raise CaseError(
        f"'{case.name}': '{word}' is none of inorder, nomrg, head, never, Npairs, Nports, Nidle, burstN, ringN, {kinds}"
    )


# From the base cases (64-split, 64-packed) each axis is varied alone.
MATRIX: tuple[str, ...] = (
    "64-split", "64-packed", "64-split-inorder", "64-packed-inorder", "64-split-nomrg", "64-packed-nomrg",
    "512-split", "512-packed", "1518-split", "1518-packed", "1518-split-head", "1518-packed-head",
    "9000-split", "9000-packed", "9000-split-nomrg", "tso-split", "tso-packed",
    "64-split-1kpairs", "64-packed-1kpairs", "64-split-4kpairs", "64-packed-4kpairs",
    "64-split-32kpairs", "64-split-512kpairs",
    "64-split-16ports", "64-split-64ports", "64-split-32idle", "64-packed-32idle",
    "64-split-burst4", "64-packed-burst4", "64-split-ring1024", "64-split-never", "64-packed-never",
    "64-split-loop", "64-packed-loop", "64-packed-inorder-loop", "1518-split-loop",
    "64-split-latency", "64-packed-latency",
    "64-split-idle", "64-split-disturb",
)  # fmt: skip
QUICK: tuple[str, ...] = (
    "64-split",
    "64-packed",
    "1518-split",
    "64-split-1kpairs",
    "64-split-latency",
    "64-split-idle",
)


def choose(patterns: Iterable[str], known: Iterable[str] = MATRIX) -> list[str]:
    """Names of `known` that match a pattern, and names that mean something by themselves."""
    chosen: dict[str, None] = {}
    names = list(known)
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            parse_case(pattern)
            matching = [pattern]
        chosen.update(dict.fromkeys(matching))
    return list(chosen)
