# SPDX-License-Identifier: Apache-2.0
"""A Datapath that only remembers: for unit tests of the control plane, where no frame moves."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace

from switch.capture import Captured
from switch.datapath import (
    EVERY_ENTRY,
    BridgeStats,
    Event,
    FdbEntry,
    FdbGroup,
    FdbQuery,
    NicHandles,
    NicMemory,
    PortSpec,
    PortStats,
    PortStatus,
    QueueStats,
    RingStatus,
    Stats,
    WorkerStats,
)
from switch.errors import FdbError, PortError, SwitchError

RX_REASONS = ("malformed_descriptor", "vlan_not_allowed", "hairpin", "port_disabled")
TX_REASONS = ("ring_full", "link_down", "device_error")
POLICY = ("vlan", "enabled", "learning", "flood", "isolated", "mac_limit", "mtu", "rx_affinity")


class MemoryDatapath:
    """Keeps bridges, ports and flows as the real datapath would and records every call in `calls`.

    `refuse` maps a port name to the reason for which add_port and set_port of it fail.
    """

    def __init__(self, workers: tuple[int, ...] = (0,)) -> None:
        self.workers = workers
        self.started = False
        self.bridges: dict[str, tuple[int, int]] = {}
        self.specs: dict[str, PortSpec] = {}
        self.flows: dict[tuple[str, int, int], FdbEntry] = {}
        self.passing: list[Captured] = []  # what a capture will see
        self.missed = 0
        self.capturing = ""
        self.capture_ends = True  # when nothing is left to see, as if the port were deleted
        self.counters: dict[str, PortStats] = {}
        self.refuse: dict[str, str] = {}
        self.down: dict[str, str] = {}
        self.notes: dict[str, str] = {}  # of ports that are up
        self.calls: list[tuple[str, str]] = []
        self.sweeps = 0
        self.nics: dict[str, NicHandles] = {}
        self.nic_faults: dict[str, str] = {}
        self.nic_event_fd = -1
        self.rounds = [0 for _ in workers]
        self.stuck: set[int] = set()  # workers that make no rounds any more
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def emit(self, *events: Event) -> None:
        with self._lock:
            self._events += events
            os.eventfd_write(self._event_fd, 1)

    def close(self) -> None:
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1

    # ---- the protocol ----

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.started = False
        self.specs.clear()

    def warnings(self) -> list[str]:
        return ["no huge pages: normal pages are used; set vm.nr_hugepages"]

    def add_bridge(self, name: str, ageing: int, mac_limit: int) -> None:
        self.calls.append(("add_bridge", name))
        if name in self.bridges:
            raise SwitchError(f"bridge {name} exists already")
        self.bridges[name] = (ageing, mac_limit)

    def set_bridge(self, name: str, ageing: int, mac_limit: int) -> None:
        self.calls.append(("set_bridge", name))
        if name not in self.bridges:
            raise SwitchError(f"no bridge {name}")
        self.bridges[name] = (ageing, mac_limit)

    def del_bridge(self, name: str) -> None:
        self.calls.append(("del_bridge", name))
        users = [spec.name for spec in self.specs.values() if spec.bridge == name]
        if users:
            raise SwitchError(f"bridge {name} still has ports: {', '.join(users)}")
        if self.bridges.pop(name, None) is None:
            raise SwitchError(f"no bridge {name}")

    def add_port(self, spec: PortSpec) -> None:
        self.calls.append(("add_port", spec.name))
        if spec.name in self.refuse:
            raise PortError(spec.name, self.refuse[spec.name])
        if spec.name in self.specs:
            raise PortError(spec.name, "exists already")
        if spec.bridge not in self.bridges:
            raise PortError(spec.name, f"there is no bridge {spec.bridge}")
        self.specs[spec.name] = spec

    def set_port(self, spec: PortSpec) -> None:
        self.calls.append(("set_port", spec.name))
        if spec.name in self.refuse:
            raise PortError(spec.name, self.refuse[spec.name])
        old = self._spec(spec.name)
        if replace(spec, **{name: getattr(old, name) for name in POLICY}) != old:
            raise PortError(spec.name, "identity fields cannot change on a live port")
        self.specs[spec.name] = spec

    def del_port(self, name: str) -> None:
        self.calls.append(("del_port", name))
        self._spec(name)
        del self.specs[name]
        self.flows = {key: entry for key, entry in self.flows.items() if entry.port != name}

    def ports(self) -> list[PortStatus]:
        return [self.port(name) for name in self.specs]

    def port(self, name: str) -> PortStatus:
        spec = self._spec(name)
        detail = self.down.get(name, "")
        return PortStatus(
            name=name,
            type=spec.type,
            bridge=spec.bridge,
            up=not detail,
            stage="waiting_for_peer" if detail else "running",
            detail=detail or self.notes.get(name, ""),
            facts={"socket": spec.socket} if spec.socket else {},
            counters={"reconnects": 0},
            rings=[
                RingStatus("rx0", {"size": "256", "far": "yes"}),
                RingStatus("tx0", {"size": "256", "far": "no"}),
                RingStatus("tx1", {}),
            ],
        )

    def stats(self) -> Stats:
        return Stats(
            time=time.time(),
            ports=[self.counters.get(name) or idle_port(name) for name in self.specs],
            workers=[
                WorkerStats(
                    index, cpu, 1000 + index, 1.5, 8.5, 4.0, 1000, 10, 3, 70, (1, 1, 0, 0, 0, 0, 1), ("vm1/0",)
                )
                for index, cpu in enumerate(self.workers)
            ],
            bridges=[
                BridgeStats(
                    name,
                    {owner: sum(entry.bridge == name and entry.owner == owner for entry in self.flows.values())
                     for owner in ("learned", "static", "external", "held")},
                    {"learned": 5, "moved": 1},
                    mac_limit,
                    mac_limit * 4 // 3,
                    ageing,
                    0,
                )
                for name, (ageing, mac_limit) in self.bridges.items()
            ],
            plan_generation=7,
        )  # fmt: skip

    def worker_rounds(self) -> list[int]:
        self.rounds = [rounds + (index not in self.stuck) for index, rounds in enumerate(self.rounds)]
        return self.rounds

    def capture_start(self, port: str, direction: str, drops: bool, snaplen: int) -> int:
        self.calls.append(("capture_start", f"{port} {direction}{' drops' if drops else ''} {snaplen}"))
        self.capturing = port
        return 1

    def capture_read(self, capture: int, most: int) -> tuple[list[Captured], int, bool]:
        found, self.passing = self.passing[:most], self.passing[most:]
        return found, self.missed, self.capturing in self.specs and not self.capture_ends

    def capture_stop(self, capture: int) -> None:
        self.calls.append(("capture_stop", str(capture)))

    def fdb(self, bridge: str, query: FdbQuery = EVERY_ENTRY) -> tuple[list[FdbEntry], int]:
        self._bridge(bridge)
        found = [
            entry
            for entry in self.flows.values()
            if entry.bridge == bridge
            and query.port in ("", entry.port)
            and query.vlan in (None, entry.vlan)
            and query.mac in (None, entry.mac)
            and query.owner in (None, entry.owner)
        ]
        found.sort(key=lambda entry: (entry.vlan, entry.mac))
        return found[: query.most], len(found)

    def fdb_learned(self, bridge: str) -> list[FdbGroup]:
        return [
            FdbGroup(bridge, entry.vlan, entry.port, entry.age, entry.mac.to_bytes(6, "big"))
            for entry in self.fdb(bridge, FdbQuery(owner="learned"))[0]
        ]

    def fdb_restore(self, group: FdbGroup) -> int:
        macs = [int.from_bytes(group.macs[at : at + 6], "big") for at in range(0, len(group.macs), 6)]
        missing = [mac for mac in macs if (group.bridge, group.vlan, mac) not in self.flows]
        for mac in missing:
            self.fdb_set(group.bridge, group.vlan, mac, group.port, "learned")
        return len(missing)

    def fdb_set(self, bridge: str, vlan: int, mac: int, port: str, owner: str) -> None:
        self.calls.append(("fdb_set", f"{port} {owner}"))
        self._bridge(bridge)
        if port and port not in self.specs:
            raise FdbError(f"cannot add a MAC table entry: no port {port}")
        if port and self.specs[port].bridge != bridge:
            raise FdbError(f"add a MAC table entry: port {port} is in bridge {self.specs[port].bridge}, not {bridge}")
        self.flows[bridge, vlan, mac] = FdbEntry(bridge, vlan, mac, port, owner, 0)

    def fdb_del(self, bridge: str, vlan: int, mac: int) -> bool:
        self._bridge(bridge)
        return self.flows.pop((bridge, vlan, mac), None) is not None

    def fdb_flush(self, bridge: str, port: str | None, vlan: int | None, owner: str | None) -> int:
        self._bridge(bridge)
        owners = (owner,) if owner else ("learned", "held")
        gone = [
            key
            for key, entry in self.flows.items()
            if entry.bridge == bridge
            and port in (None, entry.port)
            and vlan in (None, entry.vlan)
            and entry.owner in owners
        ]
        for key in gone:
            del self.flows[key]
        return len(gone)

    def fdb_release(self, bridge: str, vlan: int, mac: int) -> bool:
        self.calls.append(("fdb_release", bridge))
        entry = self.flows.get((bridge, vlan, mac))
        if entry is None or entry.owner != "held":
            return False
        self.flows[bridge, vlan, mac] = replace(entry, owner="learned")
        return True

    def fdb_sweep(self) -> int:
        self.sweeps += 1
        return 0

    def explain(self, port: str, frame: bytes) -> list[str]:
        self._spec(port)
        return [f"{len(frame)} bytes enter at {port}", "destination unknown: flooded"]

    def nic_reserve(self, port: str, mtu: int) -> NicMemory:
        self.calls.append(("nic_reserve", port))
        self._spec(port)
        return NicMemory(0x10000, mtu * 2048, 4096, 1024, 1024)

    def nic_attach(self, port: str, handles: NicHandles) -> int:
        self.calls.append(("nic_attach", port))
        self.nics[port] = handles
        return self.nic_event_fd

    def nic_detach(self, port: str, why: str) -> None:
        self.calls.append(("nic_detach", port))
        self.nics.pop(port, None)
        self.down[port] = why

    def nic_link(self, port: str, up: bool, why: str) -> None:
        self.calls.append(("nic_up" if up else "nic_down", port))

    def nic_fault(self, port: str) -> str:
        return self.nic_faults.get(port, "")

    def event_fd(self) -> int:
        return self._event_fd

    def drain_events(self, most: int = 1024) -> list[Event]:
        with self._lock:
            taken, self._events = self._events[:most], self._events[most:]
            if not self._events:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._event_fd)
            return taken

    def _bridge(self, name: str) -> None:
        if name not in self.bridges:
            raise FdbError(f"no bridge {name}")

    def _spec(self, name: str) -> PortSpec:
        if name not in self.specs:
            raise PortError(name, "there is no such port")
        return self.specs[name]


def idle_port(name: str) -> PortStats:
    return PortStats(
        name=name,
        rx=(QueueStats(0, 0, 0, 0, 0),),
        tx=(QueueStats(0, -1, 0, 0, 0),),
        rx_drops=dict.fromkeys(RX_REASONS + TX_REASONS, 0),
        tx_drops=dict.fromkeys(RX_REASONS + TX_REASONS, 0),
        replicated=0,
        forwarded=0,
        offered=0,
        segmented=0,
    )
