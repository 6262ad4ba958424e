# SPDX-License-Identifier: Apache-2.0
"""The policy of MAC learning flows: who may own one, for how long, and what happens when one will not stay put.

Theory of operation. A flow is (bridge, VLAN, MAC) -> port with an owner. The datapath learns by itself inside the
limits that each port and bridge was given; this module governs what happens afterwards:

- Static and external flows are set here and remembered, so that they can be saved and set again when their port
  returns.
- Move damping. A MAC that moved `moves` times within `window` seconds is *held* at the port it left first
  (its home) for `hold` seconds: the datapath then refuses to move it, so a loop or a thief costs no more than the moves
  it took to notice. The hold ends by itself and the flow is an ordinary learned one again.
- Ageing is a sweep of the datapath's tables once a second.
- History: the last changes of each bridge, to answer "where was this MAC".

Everything a guest can cause is bounded: the moves that are tracked, the holds, the history, and how many of the holds
are announced one by one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from switch.config.values import format_mac
from switch.datapath import Datapath, Event, FdbGroup, FdbQuery
from switch.errors import FdbError, SwitchError

log = logging.getLogger("switch.learning")

FlowKey = tuple[str, int, int]  # bridge, VLAN, MAC


@dataclass(frozen=True, slots=True)
class Damping:
    """`moves` moves within `window` seconds hold a flow for `hold` seconds; 0 moves: never."""

    moves: int = 6
    window: float = 10.0
    hold: float = 10.0


_DEFAULT = Damping()

_MOST_ANNOUNCED = 64  # holds, of all bridges, within so many seconds; how many more there were is logged
_ANNOUNCE_WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow somebody set: owner "static" or "external"; port "" drops frames to that MAC (static only)."""

    bridge: str
    vlan: int
    mac: int
    port: str
    owner: str = "static"

    @property
    def key(self) -> FlowKey:
        return (self.bridge, self.vlan, self.mac)


@dataclass(slots=True)
class _Moves:
    times: deque[float] = field(default_factory=deque)
    home: str = ""  # the port it left first within the window
    ports: list[str] = field(default_factory=list)


class Learning:
    """Governs the flows of every bridge. Used from the event loop's thread only."""

    def __init__(
        self,
        datapath: Datapath,
        damping: Mapping[str, Damping] | None = None,
        *,
        emit: Callable[[Event], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        history: int = 10_000,
        tracked: int = 16_384,
    ) -> None:
        self._datapath = datapath
        self._damping = dict(damping or {})
        self._emit = emit
        self._clock = clock
        self._wall = wall
        self._history_size = history
        self._tracked = tracked
        self._moves: OrderedDict[FlowKey, _Moves] = OrderedDict()
        self._holds: dict[FlowKey, float] = {}
        self._silent: set[FlowKey] = set()  # held, and not announced
        self._announced = 0  # since `_announced_since`
        self._announced_since = clock()
        self._left_out = 0
        self._history: dict[str, deque[Event]] = {}
        self._flows: dict[FlowKey, Flow] = {}

    def set_damping(self, damping: Mapping[str, Damping]) -> None:
        """Replace the rules, by bridge. Holds that stand run out as they were announced."""
        self._damping = dict(damping)

    # ---- events ----

    def observe(self, events: Iterable[Event]) -> None:
        """Take note of what the datapath reports; hold what moves too often."""
        for event in events:
            if not event.kind.startswith("fdb_"):
                continue
            self._remember(event)
            if event.kind == "fdb_moved":
                self._moved(event)

    def tick(self) -> None:
        """Once a second: age the tables and end the holds that are over."""
        self._datapath.fdb_sweep()
        now = self._clock()
        for key in [key for key, until in self._holds.items() if until <= now]:
            del self._holds[key]
            bridge, vlan, mac = key
            if self._datapath.fdb_release(bridge, vlan, mac) and key not in self._silent:
                self._announce(Event(self._wall(), "fdb_move_released", bridge=bridge, vlan=vlan, mac=mac))
        self._silent.intersection_update(self._holds)
        if now - self._announced_since >= _ANNOUNCE_WINDOW:
            self._announced, self._announced_since = 0, now
            if self._left_out:
                log.warning("%d more addresses moved too often and were held", self._left_out)
            self._left_out = 0

    def history(self, bridge: str | None = None, mac: int | None = None, limit: int = 1000) -> list[Event]:
        """Changes of the MAC tables, oldest first; the newest `limit` of them."""
        rings = [self._history.get(bridge, deque())] if bridge else list(self._history.values())
        found = [event for ring in rings for event in ring if mac is None or event.mac == mac]
        if len(rings) > 1:
            found.sort(key=lambda event: event.time)
        return found[-limit:] if limit else []

    @property
    def held(self) -> list[FlowKey]:
        return list(self._holds)

    def _remember(self, event: Event) -> None:
        ring = self._history.get(event.bridge)
        if ring is None:
            ring = self._history[event.bridge] = deque(maxlen=self._history_size)
        ring.append(event)

    def _announce(self, event: Event) -> None:
        self._remember(event)
        self._emit(event)

    def _moved(self, event: Event) -> None:
        key = (event.bridge, event.vlan, event.mac)
        damping = self._damping.get(event.bridge, _DEFAULT)
        if key in self._holds or not damping.moves:
            return  # moved before the hold took effect, or never to be held
        moves = self._moves.get(key)
        if moves is None:
            moves = self._moves[key] = _Moves(home=event.old_port)
            while len(self._moves) > self._tracked:
                self._moves.popitem(last=False)
        else:
            self._moves.move_to_end(key)
        while moves.times and not event.time - damping.window < moves.times[0] <= event.time + 1:
            moves.times.popleft()  # out of the window; or ahead of it, as the clock was set back
        if not moves.times:
            moves.home, moves.ports = event.old_port, []
        moves.times.append(event.time)
        for port in (event.old_port, event.port):
            if port not in moves.ports and len(moves.ports) < 8:
                moves.ports.append(port)
        if len(moves.times) >= damping.moves:
            del self._moves[key]
            self._hold(key, moves, damping.hold)

    def _hold(self, key: FlowKey, moves: _Moves, seconds: float) -> None:
        bridge, vlan, mac = key
        if len(self._holds) >= self._tracked:
            return
        others = [port for port in moves.ports if port != moves.home]
        span = moves.times[-1] - moves.times[0]
        rate = f" ({(len(moves.times) - 1) / span:.1f} moves a second)" if span > 0 else ""
        detail = (
            f"{format_mac(mac)} in VLAN {vlan} moved {len(moves.times)} times in {span:.1f} s{rate} between "
            f"{moves.home} and {', '.join(others)}; held at {moves.home} for {seconds:g} s. "
            "Look for a loop, or for two guests with one MAC."
        )
        try:
            self._datapath.fdb_set(bridge, vlan, mac, moves.home, "held")
        except SwitchError as error:
            log.info("cannot hold %s at %s: %s", format_mac(mac), moves.home, error)
            return
        self._holds[key] = self._clock() + seconds
        if self._announced >= _MOST_ANNOUNCED:  # two guests that make up addresses must not wash other news away
            self._left_out += 1
            self._silent.add(key)
            return
        self._announced += 1
        log.warning("bridge %s: %s", bridge, detail)
        other = others[0] if others else ""
        self._announce(
            Event(
                self._wall(), "fdb_move_damped", bridge, moves.home, old_port=other, vlan=vlan, mac=mac, detail=detail
            )
        )

    # ---- flows that somebody set ----

    @property
    def flows(self) -> list[Flow]:
        """Static and external flows, those whose port is away included."""
        return list(self._flows.values())

    def add(self, flow: Flow) -> None:
        """Set or replace a flow. FdbError says why it was refused."""
        check_flow(flow)
        self._datapath.fdb_set(flow.bridge, flow.vlan, flow.mac, flow.port, flow.owner)
        self._flows[flow.key] = flow
        self._holds.pop(flow.key, None)

    @contextlib.contextmanager
    def moving(self, moves: Sequence[tuple[Flow, Flow]]) -> Iterator[None]:
        """Flows whose port changes inside the `with`: what they were becomes what they will be, unless that fails."""
        for old, _ in moves:
            del self._flows[old.key]
        try:
            yield
        except BaseException:
            for old, _ in moves:
                with contextlib.suppress(SwitchError):  # a port that is lost has none
                    self.add(old)
            raise
        for old, new in moves:
            if old.bridge == new.bridge:
                self._datapath.fdb_del(*old.key)
            try:
                self.add(new)
            except SwitchError as error:
                log.warning("flow %s of port %s is forgotten: %s", format_mac(new.mac), new.port, error)

    def forget(self, bridge: str, vlan: int, mac: int) -> None:
        """Whoever else governs this flow from now on: it stands, and is not remembered here."""
        self._flows.pop((bridge, vlan, mac), None)

    def delete(self, bridge: str, vlan: int, mac: int) -> bool:
        """Remove a flow of any owner; False when there was none."""
        remembered = self._flows.pop((bridge, vlan, mac), None)
        self._holds.pop((bridge, vlan, mac), None)
        return self._datapath.fdb_del(bridge, vlan, mac) or remembered is not None

    def flush(self, bridge: str, port: str | None = None, vlan: int | None = None, owner: str | None = None) -> int:
        """Remove learned and held flows, or those of `owner`. Returns how many went."""
        if owner not in (None, "learned", "static", "external", "held"):
            raise FdbError(f"cannot flush flows of owner {owner!r}: owners are learned, static, external and held")
        count = self._datapath.fdb_flush(bridge, port, vlan, owner)
        if owner in ("static", "external"):
            for flow in list(self._flows.values()):
                if (
                    (flow.bridge, flow.owner) == (bridge, owner)
                    and port in (None, flow.port)
                    and vlan in (None, flow.vlan)
                ):
                    del self._flows[flow.key]
        if owner in (None, "held"):
            live = {key for key in self._holds if key[0] == bridge and vlan in (None, key[1])}
            entries, _ = self._datapath.fdb(bridge, FdbQuery(owner="held"))
            held = {(bridge, entry.vlan, entry.mac) for entry in entries}
            for key in live - held:
                del self._holds[key]
        return count

    def port_added(self, port: str) -> None:
        """Set the remembered flows of a port that came (back)."""
        for flow in [flow for flow in self._flows.values() if flow.port == port]:
            try:
                self._datapath.fdb_set(flow.bridge, flow.vlan, flow.mac, flow.port, flow.owner)
            except SwitchError as error:
                # Its port is in another bridge now. Kept, it would be saved as if it were set.
                log.warning("flow %s of port %s is forgotten: %s", format_mac(flow.mac), port, error)
                del self._flows[flow.key]

    def port_deleted(self, port: str) -> None:
        """The port is gone for good: forget its flows (the datapath has dropped its entries)."""
        for flow in [flow for flow in self._flows.values() if flow.port == port]:
            del self._flows[flow.key]

    def bridge_deleted(self, bridge: str) -> None:
        for key in [key for key in self._flows if key[0] == bridge]:
            del self._flows[key]
        for key in [key for key in self._holds if key[0] == bridge]:
            del self._holds[key]
        self._history.pop(bridge, None)

    # ---- persistence ----

    def restore_flows(self, flows: Iterable[Flow]) -> int:
        """Set saved static and external flows; what is refused is logged and dropped. Returns how many stand."""
        count = 0
        for flow in flows:
            try:
                self.add(flow)
                count += 1
            except SwitchError as error:
                log.warning(
                    "saved %s flow %s -> %s not restored: %s", flow.owner, format_mac(flow.mac), flow.port, error
                )
        return count

    def restore_learned(self, groups: Iterable[FdbGroup], away: float, ageing: dict[str, int]) -> int:
        """Put learned flows back that would not have aged during `away` seconds and whose port exists. `ageing` is
        seconds by bridge, 0 for never."""
        ports = {status.name: status.bridge for status in self._datapath.ports()}
        count = 0
        for group in groups:
            limit = ageing.get(group.bridge)
            if limit is None or ports.get(group.port) != group.bridge or (limit and group.age + away >= limit):
                continue
            try:
                count += self._datapath.fdb_restore(group)
            except SwitchError as error:
                log.warning("%s", error)
        return count


def check_flow(flow: Flow) -> None:
    """Refuse what no switch could mean."""
    what = f"cannot add flow {format_mac(flow.mac)}"
    if flow.owner not in ("static", "external"):
        raise FdbError(f"{what}: owner {flow.owner!r} is not one that can be set; use static or external")
    if not 0 < flow.mac < 1 << 48:
        raise FdbError(f"{what}: not a MAC address of a host")
    if flow.mac >> 40 & 1:
        raise FdbError(f"{what}: a group address is never looked up in the MAC table; give a unicast address")
    if not 0 <= flow.vlan <= 4094:
        raise FdbError(f"{what}: VLAN {flow.vlan} is outside 0..4094")
    if not flow.port and flow.owner != "static":
        raise FdbError(f"{what}: only a static flow can drop frames; name a port")
