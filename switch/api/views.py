# SPDX-License-Identifier: Apache-2.0
"""From what the datapath and the control plane know to the shapes of the API."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from switch.api import models
from switch.config import config_hash, port_from_spec
from switch.config.values import format_mac
from switch.control import Control
from switch.datapath import BridgeStats, FdbEntry, PortSpec, PortStats, PortStatus, Stats, WorkerStats
from switch.metrics import version
from switch.plan import Change, Step
from switch.rates import PortRate, totals


def vlan_shape(spec: PortSpec) -> models.VlanShape:
    vlan = spec.vlan
    return models.VlanShape(
        access=vlan.access, trunk=None if vlan.trunk is None else list(vlan.trunk), native=vlan.native
    )


class Snapshot:
    """Everything one answer needs, taken once."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.stats: Stats = control.datapath.stats()
        self.specs = control.reconciler.ports
        self._stats = {port.name: port for port in self.stats.ports}
        self._rates = control.rates.ports(self.stats)
        self._loads = control.rates.loads(self.stats)
        self._stuck = control.stuck()
        self._cpus = {worker.worker: worker.cpu for worker in self.stats.workers}

    def _row(self, status: PortStatus) -> dict[str, Any]:
        spec = self.specs.get(status.name) or PortSpec(status.name, status.type, status.bridge)
        stats = self._stats.get(status.name)
        sums = dataclasses.asdict(totals(stats)) if stats else dict.fromkeys(models.RatesShape.model_fields, 0)
        if not stats:
            sums |= {"rx_bytes": 0, "tx_bytes": 0}
            sums = {key: value for key, value in sums.items() if not key.endswith("_bits")}
        return {
            "name": status.name,
            "type": status.type,
            "bridge": status.bridge,
            "up": status.up,
            "enabled": spec.enabled,
            "stage": status.stage,
            "detail": status.detail,
            "origin": self.control.origin(status.name),
            "vlan": vlan_shape(spec),
            "address": spec.socket or spec.device or status.facts.get("device", ""),
            **sums,
            "rates": dataclasses.asdict(self._rates.get(status.name, PortRate())),
        }

    def ports(self) -> list[models.PortShape]:
        rows = [models.PortShape(**self._row(status)) for status in self.control.datapath.ports()]
        return sorted(rows, key=lambda row: row.name)

    def port(self, name: str) -> models.PortDetail:
        spec = self.control.spec(name)
        status = self.control.datapath.port(name)
        stats = self._stats.get(name) or PortStats(name, (), (), {}, {}, 0, 0, 0, 0)
        return models.PortDetail(
            **self._row(status),
            spec=port_from_spec(spec).model_dump(mode="json"),
            facts=dict(status.facts),
            counters=dict(status.counters),
            rings=[models.RingShape(name=ring.name, facts=dict(ring.facts)) for ring in status.rings],
            queues=self._queues(stats, self.control.rates.queues(self.stats)),
            drops={
                direction: {reason: count for reason, count in drops.items() if count}
                for direction, drops in (("rx", stats.rx_drops), ("tx", stats.tx_drops))
            },
            replicated=stats.replicated,
            forwarded=stats.forwarded,
            offered=stats.offered,
            segmented=stats.segmented,
        )

    def _queues(self, stats: PortStats, rates: Mapping[tuple[str, str, int], float]) -> list[models.QueueShape]:
        return [
            models.QueueShape(
                port=stats.name,
                direction=direction,
                queue=queue.queue,
                worker=queue.worker,
                cpu=self._cpus.get(queue.worker, -1),
                frames=queue.frames,
                bytes=queue.bytes,
                notifications=queue.notifications,
                rate=rates.get((stats.name, direction, queue.queue), 0.0),
            )
            for direction, queues in (("rx", stats.rx), ("tx", stats.tx))
            for queue in queues
        ]

    def queues(self) -> list[models.QueueShape]:
        rates = self.control.rates.queues(self.stats)
        return [row for stats in self.stats.ports for row in self._queues(stats, rates)]

    def drops(self, port: str | None, everything: bool) -> list[models.DropShape]:
        rates = self.control.rates.drops(self.stats)
        rows = [
            models.DropShape(
                port=stats.name,
                direction=direction,
                reason=reason,
                frames=count,
                rate=rates.get((stats.name, direction, reason), 0.0),
            )
            for stats in self.stats.ports
            if port in (None, stats.name)
            for direction, drops in (("rx", stats.rx_drops), ("tx", stats.tx_drops))
            for reason, count in drops.items()
            if count or everything
        ]
        return sorted(rows, key=lambda row: (-row.rate, -row.frames, row.port, row.direction, row.reason))

    def port_stats(self) -> list[models.PortStatsShape]:
        return [
            models.PortStatsShape(
                port=stats.name,
                **{key: value for key, value in dataclasses.asdict(totals(stats)).items() if "drops" not in key},
                rx_drops=dict(stats.rx_drops),
                tx_drops=dict(stats.tx_drops),
                replicated=stats.replicated,
                forwarded=stats.forwarded,
                offered=stats.offered,
                segmented=stats.segmented,
            )
            for stats in self.stats.ports
        ]

    def workers(self) -> list[models.WorkerShape]:
        return [self._worker(worker) for worker in self.stats.workers]

    def _worker(self, worker: WorkerStats) -> models.WorkerShape:
        return models.WorkerShape(
            worker=worker.worker,
            cpu=worker.cpu,
            thread_id=worker.thread_id,
            load=self._loads.get(worker.worker, 0.0),
            busy_seconds=worker.busy_seconds,
            idle_seconds=worker.idle_seconds,
            sleep_seconds=worker.sleep_seconds,
            loops=worker.loops,
            stuck_seconds=self._stuck.get(worker.worker, 0),
            wakeups=worker.wakeups,
            batches=worker.batches,
            frames=worker.frames,
            mean_batch=worker.frames / worker.batches if worker.batches else 0.0,
            batch_frames=list(worker.batch_frames),
            rx_queues=list(worker.rx_queues),
        )

    def bridges(self) -> list[models.BridgeShape]:
        return [self._bridge(bridge) for bridge in self.stats.bridges]

    def _bridge(self, bridge: BridgeStats) -> models.BridgeShape:
        return models.BridgeShape(
            name=bridge.name,
            ports=sum(spec.bridge == bridge.name for spec in self.specs.values()),
            ageing=bridge.ageing,
            mac_limit=bridge.mac_limit,
            capacity=bridge.capacity,
            entries=dict(bridge.entries),
            events=dict(bridge.events),
            events_lost=bridge.events_lost,
        )

    def show(self) -> models.ShowShape:
        control = self.control
        return models.ShowShape(
            name=control.config.switch.name,
            version=version(),
            pid=os.getpid(),
            started=control.started,
            uptime_seconds=time.time() - control.started,
            polling=control.options.polling,
            config=models.ConfigState(**config_state(control)),
            warnings=control.warnings(),
            ports=self.ports(),
            workers=self.workers(),
            bridges=self.bridges(),
        )


def config_state(control: Control) -> dict[str, Any]:
    return {
        "file": str(control.path),
        "hash": config_hash(control.config),
        "last_apply_success": control.apply_success,
        "last_apply_time": control.apply_time,
        "pending_restart": restarts(control.pending_restart),
        "confirm_until": control.confirm_deadline,
    }


def restarts(changes: list[Change]) -> list[models.RestartShape]:
    return [
        models.RestartShape(key=change.field, running=str(change.old), wanted=str(change.new)) for change in changes
    ]


def steps(done: list[Step]) -> list[models.StepShape]:
    return [models.StepShape(**step.as_dict()) for step in done]


def flows_json(entries: list[FdbEntry], total: int) -> bytes:
    """FlowsShape as JSON. By hand: a table may hold a million entries."""
    rows = [
        {
            "bridge": entry.bridge,
            "vlan": entry.vlan,
            "mac": format_mac(entry.mac),
            "port": entry.port,
            "owner": entry.owner,
            "age": entry.age,
        }
        for entry in entries
    ]
    return json.dumps({"total": total, "flows": rows}, separators=(",", ":")).encode()
