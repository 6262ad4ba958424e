# SPDX-License-Identifier: Apache-2.0
"""The datapath as the control plane sees it. The only importer of the compiled module `switch._core`.

Everything here is plain values: the control plane and its tests need no compiled code. All calls are thread-safe and
release the GIL while they wait. MAC addresses are integers (48 bits, first byte on the wire highest), ports and bridges
are named, times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from switch.capture import Captured


@dataclass(frozen=True, slots=True)
class DatapathOptions:
    """What must be known before the datapath starts; cannot change while it runs."""

    workers: tuple[int, ...]  # one CPU number per worker thread; at least one
    polling: str = "adaptive"  # "adaptive" or "busy"
    hugepages: str = "auto"  # "auto", "required" or "off": for the switch's own memory
    memory_bytes: int = 64 << 20  # of the switch's own region, for its MAC tables
    huge_page_bytes: int = 2 << 20  # or 1 << 30
    numa_node: int = -1  # -1: wherever the kernel likes
    pin: bool = True  # False: leave worker threads unpinned (demo on a machine with one CPU)


@dataclass(frozen=True, slots=True)
class VlanPolicy:
    """access is not None: untagged member of that VLAN. Otherwise a trunk of `trunk` (None: every VLAN)."""

    access: int | None = None
    trunk: tuple[int, ...] | None = None
    native: int = 0  # VLAN of untagged frames on a trunk; 0: they stay untagged, VLAN 0


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A port as it should be. Only `policy` fields may change on a live port (set_port)."""

    name: str
    type: str
    bridge: str
    # policy: changeable while it runs
    vlan: VlanPolicy = field(default_factory=VlanPolicy)
    enabled: bool = True
    learning: bool = True
    flood: bool = True
    isolated: bool = False
    mac_limit: int = 0  # 0: only the bridge's
    mtu: int = 0  # 0: no limit
    rx_affinity: Mapping[int, int] = field(default_factory=dict)  # receive queue -> CPU of a worker
    # identity: a change means remove and add
    socket: str = ""
    socket_owner: str = "switch"  # or "peer"
    socket_mode: int | None = None
    socket_gid: int | None = None
    queues: int = 1
    device: str = ""
    mac: int = 0
    vhost: bool = False
    packed: bool = True
    offloads: bool = True
    mergeable: bool = True
    in_order: bool = True
    ring_size: int = 256
    steering: str = "all"  # verbs: "all", "leftovers" or addresses with commas between them
    fanout: str = "hash"  # or "qm"
    checksum: str = "auto"  # afxdp: or "fix", "trust"


@dataclass(frozen=True, slots=True)
class RingStatus:
    name: str  # "rx0", "tx0"
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PortStatus:
    """How a port stands now. `stage` and `facts` are the port kind's own words (docs/operating)."""

    name: str
    type: str
    bridge: str
    up: bool
    stage: str
    detail: str  # why it is not up and what to do; when up, what is unusual, mostly ""
    facts: Mapping[str, str]
    counters: Mapping[str, int]
    rings: Sequence[RingStatus]


@dataclass(frozen=True, slots=True)
class QueueStats:
    queue: int
    worker: int  # index of the worker that polls it; -1: nobody (not ready), always -1 for tx queues
    frames: int
    bytes: int
    notifications: int


@dataclass(frozen=True, slots=True)
class PortStats:
    """Totals since the port was added. rx enters the switch, tx leaves it.

    received + replicated == forwarded + sum(rx_drops); offered + segmented == transmitted + sum(tx_drops).
    """

    name: str
    rx: Sequence[QueueStats]
    tx: Sequence[QueueStats]
    rx_drops: Mapping[str, int]  # every reason of drop_reasons(), zeros included
    tx_drops: Mapping[str, int]
    replicated: int
    forwarded: int
    offered: int
    segmented: int


@dataclass(frozen=True, slots=True)
class WorkerStats:
    worker: int
    cpu: int
    thread_id: int
    busy_seconds: float  # in passes that moved frames
    idle_seconds: float  # polling, pausing and sleeping
    sleep_seconds: float  # the part of idle spent off the CPU
    loops: int
    wakeups: int  # returns from blocking sleep
    batches: int
    frames: int
    batch_frames: Sequence[int]  # batches with 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 frames
    rx_queues: Sequence[str]  # "vm1/0": port/queue polled by this worker


@dataclass(frozen=True, slots=True)
class BridgeStats:
    name: str
    entries: Mapping[str, int]  # owner -> count
    events: Mapping[str, int]  # "learned", "moved", "aged", "evicted", "flushed", "refused_port_limit", ...
    mac_limit: int
    capacity: int
    ageing: int
    events_lost: int


@dataclass(frozen=True, slots=True)
class Stats:
    """One consistent-enough snapshot: each counter is exact, counters of a running switch are moments apart."""

    time: float  # time.time() when it was taken
    ports: Sequence[PortStats]
    workers: Sequence[WorkerStats]
    bridges: Sequence[BridgeStats]
    plan_generation: int


@dataclass(frozen=True, slots=True)
class FdbEntry:
    bridge: str
    vlan: int
    mac: int
    port: str  # "" for a blackhole entry
    owner: str  # "learned", "static", "external", "held"
    age: int  # seconds since last seen, in steps; 0 for owners that do not age


@dataclass(frozen=True, slots=True)
class FdbQuery:
    """Which entries of a MAC table to list."""

    port: str = ""  # empty: at any
    vlan: int | None = None
    mac: int | None = None
    owner: str | None = None
    most: int | None = None  # the first so many by (VLAN, address)


EVERY_ENTRY = FdbQuery()


@dataclass(frozen=True, slots=True)
class FdbGroup:
    """Learned entries that differ in nothing but their address: a table of a million is kept so over a restart."""

    bridge: str
    vlan: int
    port: str
    age: int  # seconds since last seen, in steps
    macs: bytes  # six bytes an address


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    kind is fdb_learned, fdb_moved, fdb_aged, fdb_evicted, fdb_flushed, fdb_refused_port_limit, fdb_refused_bridge_limit
    or fdb_refused_owner (with bridge, vlan, mac, port, old_port), port_* (with port, detail), or queues_rebalanced. The
    control plane adds config_* and worker_stuck, worker_recovered (with detail).
    """

    time: float
    kind: str
    bridge: str = ""
    port: str = ""
    old_port: str = ""
    vlan: int = 0
    mac: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NicMemory:
    """Memory of the datapath that a device is to use; the counts are per queue."""

    address: int
    bytes: int
    page_bytes: int
    rx_slots: int
    tx_slots: int


@dataclass(frozen=True, slots=True)
class NicQueue:
    """A queue of a device by its address in this process, and what must be found there."""

    pointer: int
    number: int
    type: int
    state: int


@dataclass(frozen=True, slots=True)
class NicHandles:
    """Queues made on NicMemory, for the datapath to take over."""

    lkey: int
    max_inline: int
    rx_checksum: bool
    tx_checksum: bool
    tx_checksum_v6: bool
    max_tso: int  # payload bytes of a TCP segment that the device cuts; 0: it cuts none
    max_tso_header: int  # bytes of headers in front of it
    rx_work_queues: bool  # rx names work queues, not queue pairs
    rx: tuple[NicQueue, ...]
    tx: tuple[NicQueue, ...]
    facts: Mapping[str, str]


class Datapath(Protocol):
    """Errors: PortError for ports, FdbError for the MAC table, SwitchError otherwise. Nothing is half-applied."""

    def start(self) -> None:
        """Start workers and the control loop. May warn through `warnings()`."""

    def stop(self) -> None:
        """Close every port and join every thread. Idempotent."""

    def warnings(self) -> list[str]:
        """Sentences a person should read: huge pages missing and how to get them, CPU not isolated."""

    def add_bridge(self, name: str, ageing: int, mac_limit: int) -> None: ...
    def set_bridge(self, name: str, ageing: int, mac_limit: int) -> None: ...
    def del_bridge(self, name: str) -> None:
        """Refused while ports are in it."""

    def add_port(self, spec: PortSpec) -> None: ...
    def set_port(self, spec: PortSpec) -> None:
        """Replace the policy of the port of that name; identity fields must be unchanged."""

    def del_port(self, name: str) -> None: ...
    def ports(self) -> list[PortStatus]: ...
    def port(self, name: str) -> PortStatus: ...
    def stats(self) -> Stats: ...
    def worker_rounds(self) -> list[int]:
        """How often each worker has been round its queues, at least once a second also while it sleeps. Never waits."""

    def fdb(self, bridge: str, query: FdbQuery = EVERY_ENTRY) -> tuple[list[FdbEntry], int]:
        """The entries that match, in the order of (VLAN, address), and how many match in all."""

    def fdb_learned(self, bridge: str) -> list[FdbGroup]:
        """All learned entries; equal tables give equal lists."""

    def fdb_restore(self, group: FdbGroup) -> int:
        """Put learned entries back, with age 0, where the table has none and has room. Returns how many."""

    def fdb_set(self, bridge: str, vlan: int, mac: int, port: str, owner: str) -> None:
        """Add or replace. port "" makes a blackhole (static only)."""

    def fdb_del(self, bridge: str, vlan: int, mac: int) -> bool: ...
    def fdb_flush(self, bridge: str, port: str | None, vlan: int | None, owner: str | None) -> int:
        """Remove matching entries; owner None means learned and held only. Returns how many."""

    def fdb_release(self, bridge: str, vlan: int, mac: int) -> bool:
        """Turn a held entry back into a learned one."""

    def fdb_sweep(self) -> int:
        """Age the tables; called about once a second. Returns how many entries went."""

    def capture_start(self, port: str, direction: str, drops: bool, snaplen: int) -> int:
        """Copy what passes at `port` (direction rx, tx or both) until it is stopped; a number for the calls below."""

    def capture_read(self, capture: int, most: int) -> tuple[list[Captured], int, bool]:
        """Frames since the last call; how many were missed so far, for which there was no room; is the port there?"""

    def capture_stop(self, capture: int) -> None: ...

    def explain(self, port: str, frame: bytes) -> list[str]: ...

    # Ports whose device the control plane opens (switch.nic). Up: reserve, make queues, attach, let traffic in, link.
    # Down: detach, destroy the queues; only then reserve again or del_port.
    def nic_reserve(self, port: str, mtu: int) -> NicMemory: ...
    def nic_attach(self, port: str, handles: NicHandles) -> int:
        """Returns the descriptor of the device's events."""

    def nic_detach(self, port: str, why: str) -> None:
        """Returns when no worker uses the queues any more. Also says why there is no device."""

    def nic_link(self, port: str, up: bool, why: str) -> None: ...
    def nic_fault(self, port: str) -> str:
        """Why a worker gave up on the device; "" while it works."""

    def event_fd(self) -> int:
        """Readable when events wait."""

    def drain_events(self, most: int = 1024) -> list[Event]: ...


def drop_reasons() -> list[str]:
    """The closed set of drop reasons, in the order of the core."""
    from switch import _core

    return list(_core.drop_reasons())


def open_datapath(options: DatapathOptions) -> Datapath:
    """The real thing. Raises NotBuilt when the compiled module is missing."""
    from switch.native import NativeDatapath

    result: Any = NativeDatapath(options)
    return result  # type: ignore[no-any-return]
