# SPDX-License-Identifier: Apache-2.0
"""A learning VLAN switch in plain Python: the rules of docs/switching.md and nothing else.

It takes frames as bytes, one at a time, and says who gets them and with which bytes, or why nobody does. It is
written to be read: one dictionary, no caches, no batches. Where the real switch is free to choose (which of several
equally old entries is evicted) the caller chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

TAG = b"\x81\x00"
BLACKHOLE = ""  # port of an entry that drops

Key = tuple[int, bytes]  # VLAN, MAC


@dataclass(frozen=True)
class Port:
    """access is not None: untagged member of that VLAN. Otherwise a trunk of `trunk` (None: every VLAN)."""

    name: str
    access: int | None = None
    trunk: frozenset[int] | None = None
    native: int = 0
    enabled: bool = True
    learning: bool = True
    flood: bool = True
    isolated: bool = False
    mac_limit: int = 0

    @property
    def untagged(self) -> int:
        return self.native if self.access is None else self.access

    def carries(self, vlan: int) -> bool:
        if vlan == self.untagged:
            return True
        return self.access is None and vlan != 0 and (self.trunk is None or vlan in self.trunk)

    @property
    def plain(self) -> bool:
        return self.access is None and self.trunk is None and self.native == 0


@dataclass(frozen=True)
class Entry:
    port: str
    owner: str  # "learned", "static", "external", "held"
    seen: float  # when the source was last seen


@dataclass(frozen=True)
class Outcome:
    """What became of one frame: either deliveries, or the reason of the drop (a name of the core's DropReason)."""

    deliveries: Mapping[str, bytes] = field(default_factory=dict)
    drop: str = ""


def reserved(mac: bytes) -> bool:
    """Link-local protocols of IEEE 802.1, Cisco and Extreme."""
    if mac[:5] == b"\x01\x80\xc2\x00\x00":
        return mac[5] < 16
    if mac[:3] == b"\x01\x00\x0c":
        tail = mac[3:].hex()
        return tail in {"000000", "cccccc", "cccccd", "cdcdcd"} or (tail[:5] == "ccccc" and tail[5] in "01234567")
    return mac[:3] == b"\x00\xe0\x2b" and mac[3:] in {b"\x00\x00\x00", b"\x00\x00\x04", b"\x00\x00\x06"}


def first_of(candidates: list[Key]) -> Key:
    return candidates[0]


class LearningSwitch:
    def __init__(self, ports: list[Port], mac_limit: int = 8192, ageing: float = 300) -> None:
        self.ports = {port.name: port for port in ports}
        self.mac_limit = mac_limit
        self.ageing = ageing
        self.now = 0.0
        self.table: dict[Key, Entry] = {}

    # ---- what a person does

    def set_port(self, port: Port) -> None:
        self.ports[port.name] = port

    def remove_port(self, name: str) -> None:
        del self.ports[name]
        self.table = {key: entry for key, entry in self.table.items() if entry.port != name}

    def set_entry(self, vlan: int, mac: bytes, port: str, owner: str = "static") -> None:
        self.table[vlan, mac] = Entry(port, owner, self.now)

    def remove_entry(self, vlan: int, mac: bytes) -> bool:
        return self.table.pop((vlan, mac), None) is not None

    def flush(self, port: str | None = None, vlan: int | None = None) -> None:
        """Forget learned and held entries that match."""
        self.table = {
            key: entry
            for key, entry in self.table.items()
            if entry.owner not in {"learned", "held"} or port not in {None, entry.port} or vlan not in {None, key[0]}
        }

    def age(self) -> None:
        """Forget what was not seen for the ageing time. (The real switch may take one epoch longer.)"""
        self.table = {
            key: entry
            for key, entry in self.table.items()
            if entry.owner != "learned" or self.ageing == 0 or self.now - entry.seen < self.ageing
        }

    # ---- what a frame does

    def receive(self, name: str, frame: bytes, choose: Callable[[list[Key]], Key] = first_of) -> Outcome:
        """`choose` picks which of the given entries is evicted if one must go."""
        port = self.ports[name]
        if len(frame) < 14:
            return Outcome(drop="frame_too_short")
        if not port.enabled:
            return Outcome(drop="port_disabled")
        destination, source = frame[:6], frame[6:12]
        tagged = frame[12:14] == TAG
        if tagged and len(frame) < 18:
            return Outcome(drop="vlan_malformed")
        tci = int.from_bytes(frame[14:16], "big") if tagged else 0
        vlan, priority = tci & 0xFFF, tci & 0xF000
        if vlan == 0:
            vlan = port.untagged
        elif port.access is not None or not port.carries(vlan):
            return Outcome(drop="vlan_not_allowed")
        if reserved(destination):
            return Outcome(drop="reserved_mac")
        if source == bytes(6):
            return Outcome(drop="source_zero")
        if source[0] & 1:
            return Outcome(drop="source_multicast")
        if port.learning:
            self.learn(vlan, source, port, choose)

        untagged = frame[:12] + frame[16:] if tagged else frame
        with_tag = untagged[:12] + TAG + (priority | vlan).to_bytes(2, "big") + untagged[12:]
        transparent = all(other.plain for other in self.ports.values())

        def leaving(to: Port) -> bytes:
            if transparent:
                return frame
            return untagged if vlan == to.untagged else with_tag

        group = bool(destination[0] & 1)
        known = None if group else self.table.get((vlan, destination))
        if known is not None and known.port in {BLACKHOLE, name, *self.ports}:
            if known.port == BLACKHOLE:
                return Outcome(drop="blackhole")
            if known.port == name:
                return Outcome(drop="hairpin")
            to = self.ports[known.port]
            if not to.enabled:
                return Outcome(drop="port_disabled")
            if not to.carries(vlan):
                return Outcome(drop="vlan_not_allowed")
            if port.isolated and to.isolated:
                return Outcome(drop="isolated")
            return Outcome({to.name: leaving(to)})

        reachable = [
            to
            for to in self.ports.values()
            if to.name != name and to.enabled and to.carries(vlan) and not (port.isolated and to.isolated)
        ]
        willing = [to for to in reachable if group or to.flood]
        if not willing:
            return Outcome(drop="flood_disabled" if reachable else "no_destination")
        return Outcome({to.name: leaving(to) for to in willing})

    def learn(self, vlan: int, mac: bytes, port: Port, choose: Callable[[list[Key]], Key]) -> str:
        """What happened: "known", "learned", "moved" or "refused"."""
        known = self.table.get((vlan, mac))
        if known is not None and known.port == port.name:
            if known.owner == "learned":
                self.table[vlan, mac] = Entry(port.name, "learned", self.now)
            return "known"
        if known is not None and known.owner != "learned":
            return "refused"
        if port.mac_limit and len(self.learned_at(port.name)) >= port.mac_limit:
            return "refused"
        if known is None and len(self.table) >= self.mac_limit:
            candidates = self.may_evict(port.name)
            if self.mac_limit == 0 or not candidates:
                return "refused"
            del self.table[choose(candidates)]
        self.table[vlan, mac] = Entry(port.name, "learned", self.now)
        return "learned" if known is None else "moved"

    def learned_at(self, port: str) -> list[Key]:
        return [key for key, entry in self.table.items() if entry.owner == "learned" and entry.port == port]

    def may_evict(self, preferred: str) -> list[Key]:
        """Learned entries of the port that holds most (the learning one on a tie), oldest first."""
        counts = {name: len(self.learned_at(name)) for name in self.ports}
        most = max(counts.values(), default=0)
        if most == 0:
            return []
        busiest = [preferred] if counts[preferred] == most else [name for name in counts if counts[name] == most]
        keys = [key for name in busiest for key in self.learned_at(name)]
        return sorted(keys, key=lambda key: self.table[key].seen)
