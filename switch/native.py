# SPDX-License-Identifier: Apache-2.0
"""The compiled datapath behind the protocol of `switch.datapath`: plain values in, typed values and errors out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, astuple
from typing import Any, TypeVar

from switch.capture import Captured
from switch.datapath import (
    EVERY_ENTRY,
    BridgeStats,
    DatapathOptions,
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
from switch.errors import FdbError, NotBuilt, PortError, SwitchError

try:
    from switch import _core
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise NotBuilt(f"the compiled module switch._core is missing ({error}); install with `pip install .`") from error

T = TypeVar("T")


def _port_call(name: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except _core.CoreError as error:
        raise PortError(name, error.args[1], error.args[0]) from None


def _fdb_call(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except _core.CoreError as error:
        raise FdbError(f"{what}: {error.args[1]}") from None


def _switch_call(call: Callable[[], T]) -> T:
    try:
        return call()
    except _core.CoreError as error:
        raise SwitchError(error.args[1]) from None


def _port_status(view: dict[str, Any]) -> PortStatus:
    rings = [RingStatus(name, facts) for name, facts in view["rings"]]
    return PortStatus(**{**view, "rings": rings})


def _port_stats(view: dict[str, Any]) -> PortStats:
    queues = {way: [QueueStats(*queue) for queue in view[way]] for way in ("rx", "tx")}
    return PortStats(**{**view, **queues})


class NativeDatapath:
    """See `switch.datapath.Datapath` for what each call means."""

    def __init__(self, options: DatapathOptions) -> None:
        self._options = options
        cpus = list(options.workers) if options.pin else [-1] * len(options.workers)
        self._core = _core.Datapath(
            cpus, options.polling, options.hugepages, options.memory_bytes, options.huge_page_bytes, options.numa_node
        )

    def start(self) -> None:
        try:
            self._core.start()
        except _core.CoreError as error:
            hint = ""
            if "to CPU" in error.args[1]:
                hint = "; this process may use CPUs " + ",".join(map(str, sorted(os.sched_getaffinity(0))))
            raise SwitchError(error.args[1] + hint) from None

    def stop(self) -> None:
        self._core.stop()

    def warnings(self) -> list[str]:
        return list(self._core.warnings())

    def add_bridge(self, name: str, ageing: int, mac_limit: int) -> None:
        _switch_call(lambda: self._core.add_bridge(name, ageing, mac_limit))

    def set_bridge(self, name: str, ageing: int, mac_limit: int) -> None:
        _switch_call(lambda: self._core.set_bridge(name, ageing, mac_limit))

    def del_bridge(self, name: str) -> None:
        _switch_call(lambda: self._core.del_bridge(name))

    def add_port(self, spec: PortSpec) -> None:
        _port_call(spec.name, lambda: self._core.add_port(asdict(spec)))

    def set_port(self, spec: PortSpec) -> None:
        _port_call(spec.name, lambda: self._core.set_port(asdict(spec)))

    def del_port(self, name: str) -> None:
        _port_call(name, lambda: self._core.del_port(name))

    def ports(self) -> list[PortStatus]:
        return [_port_status(view) for view in self._core.ports()]

    def port(self, name: str) -> PortStatus:
        return _port_status(_port_call(name, lambda: self._core.port(name)))

    def stats(self) -> Stats:
        snapshot = self._core.stats()
        return Stats(
            time=time.time(),
            ports=[_port_stats(port) for port in snapshot["ports"]],
            workers=[WorkerStats(**worker) for worker in snapshot["workers"]],
            bridges=[BridgeStats(**bridge) for bridge in snapshot["bridges"]],
            plan_generation=snapshot["plan_generation"],
        )

    def worker_rounds(self) -> list[int]:
        return list(self._core.worker_rounds())

    def fdb(self, bridge: str, query: FdbQuery = EVERY_ENTRY) -> tuple[list[FdbEntry], int]:
        entries, matched = _fdb_call("list the MAC table", lambda: self._core.fdb(bridge, *astuple(query)))
        return [FdbEntry(bridge, *entry) for entry in entries], matched

    def fdb_learned(self, bridge: str) -> list[FdbGroup]:
        groups = _fdb_call("list the MAC table", lambda: self._core.fdb_learned(bridge))
        return [FdbGroup(bridge, *group) for group in groups]

    def fdb_restore(self, group: FdbGroup) -> int:
        what = f"restore {len(group.macs) // 6} learned MAC table entries"
        return _fdb_call(what, lambda: self._core.fdb_restore(group.bridge, group.vlan, group.port, group.macs))

    def fdb_set(self, bridge: str, vlan: int, mac: int, port: str, owner: str) -> None:
        _fdb_call("add a MAC table entry", lambda: self._core.fdb_set(bridge, vlan, mac, port, owner))

    def fdb_del(self, bridge: str, vlan: int, mac: int) -> bool:
        return bool(_fdb_call("delete a MAC table entry", lambda: self._core.fdb_del(bridge, vlan, mac)))

    def fdb_flush(self, bridge: str, port: str | None, vlan: int | None, owner: str | None) -> int:
        return int(_fdb_call("flush the MAC table", lambda: self._core.fdb_flush(bridge, port, vlan, owner)))

    def fdb_release(self, bridge: str, vlan: int, mac: int) -> bool:
        return bool(_fdb_call("release a MAC table entry", lambda: self._core.fdb_release(bridge, vlan, mac)))

    def fdb_sweep(self) -> int:
        return int(self._core.fdb_sweep())

    def capture_start(self, port: str, direction: str, drops: bool, snaplen: int) -> int:
        rx, tx = direction in ("rx", "both"), direction in ("tx", "both")
        return _port_call(port, lambda: self._core.capture_start(port, rx, tx, drops, snaplen))

    def capture_read(self, capture: int, most: int) -> tuple[list[Captured], int, bool]:
        frames, missed, attached = _switch_call(lambda: self._core.capture_read(capture, most))
        return [Captured(when, "rx" if rx else "tx", *rest) for when, rx, *rest in frames], missed, attached

    def capture_stop(self, capture: int) -> None:
        self._core.capture_stop(capture)

    def explain(self, port: str, frame: bytes) -> list[str]:
        return list(_port_call(port, lambda: self._core.explain(port, frame)))

    def nic_reserve(self, port: str, mtu: int) -> NicMemory:
        return NicMemory(**_port_call(port, lambda: self._core.nic_reserve(port, mtu)))

    def nic_attach(self, port: str, handles: NicHandles) -> int:
        queues = {way: [astuple(queue) for queue in getattr(handles, way)] for way in ("rx", "tx")}
        return int(_port_call(port, lambda: self._core.nic_attach(port, {**asdict(handles), **queues})))

    def nic_detach(self, port: str, why: str) -> None:
        _port_call(port, lambda: self._core.nic_detach(port, why))

    def nic_link(self, port: str, up: bool, why: str) -> None:
        _port_call(port, lambda: self._core.nic_link(port, up, why))

    def nic_fault(self, port: str) -> str:
        return str(_port_call(port, lambda: self._core.nic_fault(port)))

    def event_fd(self) -> int:
        return int(self._core.event_fd())

    def drain_events(self, most: int = 1024) -> list[Event]:
        return [Event(*event) for event in self._core.drain_events(most)]
