# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: one table that describes every family, and a collector that fills it from one datapath snapshot.

Names, labels and meanings are a contract with dashboards and alerts. FAMILIES is the only place that says them: the
collector emits nothing that is not in it and docs/metrics.md is checked against it. Direction is the switch's: received
frames entered the switch, transmitted frames left it. No label ever carries a MAC or IP address.
"""

from __future__ import annotations

import contextlib
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from switch.datapath import Datapath, PortSpec, PortStats, PortStatus, Stats
from switch.errors import cannot_listen

# The destination's fault or state; every other reason of the core is the source's (core_cpp/stats/drop_reason.h).
TRANSMIT_REASONS = frozenset(
    {"ring_full", "buffer_too_small", "link_down", "mtu_exceeded", "offload_unsupported", "kernel_busy", "device_error"}
)

# Upper bounds of WorkerStats.batch_frames: 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64.
BATCH_BOUNDS = ("1", "3", "7", "15", "31", "63", "+Inf")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `name` is what a user sees for counters and infos, suffix included."""

    name: str
    kind: str  # counter, gauge, histogram, info
    labels: tuple[str, ...]
    help: str


def _family(name: str, kind: str, labels: str, help_text: str) -> Family:
    return Family(name, kind, tuple(labels.split()), help_text)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("switch_build_info", "info", "version python", "The version that runs; always 1."),
        _family("switch_start_time_seconds", "gauge", "", "When the daemon started, in seconds since 1970."),
        _family(
            "switch_restarts_total", "counter", "", "Starts of this daemon after its first, kept in the state file."
        ),
        _family("switch_plan_generation", "gauge", "", "Forwarding plans published to the workers since the start."),
        _family(
            "switch_port_up",
            "gauge",
            "port",
            "1 while the other side is there and queues run, 0 otherwise; of a disabled port too.",
        ),
        _family(
            "switch_port_enabled",
            "gauge",
            "port",
            "1 if frames may pass through the port, 0 if somebody disabled it.",
        ),
        _family(
            "switch_port_info",
            "info",
            "port type bridge device socket_owner",
            "What the port is; always 1. Join with `* on(port) group_left(type, bridge)`.",
        ),
        _family(
            "switch_port_receive_frames_total", "counter", "port queue", "Frames that entered the switch at this port."
        ),
        _family(
            "switch_port_receive_bytes_total",
            "counter",
            "port queue",
            "Bytes of Ethernet frames that entered the switch at this port, without FCS.",
        ),
        _family(
            "switch_port_transmit_frames_total", "counter", "port queue", "Frames that left the switch at this port."
        ),
        _family(
            "switch_port_transmit_bytes_total",
            "counter",
            "port queue",
            "Bytes of Ethernet frames that left the switch at this port, without FCS.",
        ),
        _family(
            "switch_port_notifications_total",
            "counter",
            "port direction queue",
            "Notifications (eventfd writes) that the switch sent to the port's peer.",
        ),
        _family(
            "switch_port_lines_far",
            "gauge",
            "port direction queue",
            "1 while cache lines between the guest and its worker take as long as from memory, because their CPUs "
            "share no last-level cache, 0 while they take less. Only of guests whose longer frames were looked at.",
        ),
        _family(
            "switch_port_drops_total",
            "counter",
            "port direction reason",
            "Frames lost, by the port and direction they were lost at and the one reason why.",
        ),
        _family(
            "switch_port_replicated_frames_total",
            "counter",
            "port",
            "Extra copies made of frames that entered at this port: flooding to k ports adds k - 1.",
        ),
        _family(
            "switch_port_forwarded_frames_total",
            "counter",
            "port",
            "Copies of frames that entered at this port and were handed to a destination port.",
        ),
        _family("switch_port_offered_frames_total", "counter", "port", "Frames handed to this port for transmission."),
        _family(
            "switch_port_segmented_frames_total",
            "counter",
            "port",
            "Extra frames made by software segmentation for this port: a frame cut in k adds k - 1.",
        ),
        _family(
            "switch_port_kind_events_total",
            "counter",
            "port event",
            "Totals that only this kind of port has, such as reconnects of a vhost-user socket.",
        ),
        _family("switch_fdb_entries", "gauge", "bridge owner", "Entries of the MAC table."),
        _family("switch_fdb_limit", "gauge", "bridge", "Entries that the MAC table may hold (mac_limit)."),
        _family(
            "switch_fdb_events_total",
            "counter",
            "bridge event",
            "Changes of the MAC table: learned, moved, aged, evicted, flushed and refusals by reason.",
        ),
        _family(
            "switch_fdb_events_lost_total",
            "counter",
            "bridge",
            "MAC table events that the control plane did not get to see.",
        ),
        _family("switch_worker_busy_seconds_total", "counter", "worker", "Time spent in passes that moved frames."),
        _family(
            "switch_worker_idle_seconds_total", "counter", "worker", "Time spent polling in vain, pausing and sleeping."
        ),
        _family("switch_worker_sleep_seconds_total", "counter", "worker", "The part of idle time spent off the CPU."),
        _family("switch_worker_wakeups_total", "counter", "worker", "Returns from blocking sleep."),
        _family("switch_worker_loops_total", "counter", "worker", "Passes over all queues that the worker polls."),
        _family(
            "switch_worker_stuck", "gauge", "worker", "1 while the worker has made no pass for five seconds or more."
        ),
        _family("switch_worker_batch_frames", "histogram", "worker", "Frames per non-empty receive batch."),
        _family(
            "switch_config_last_apply_success", "gauge", "", "1 if the last configuration was applied, 0 if refused."
        ),
        _family(
            "switch_config_last_apply_timestamp_seconds",
            "gauge",
            "",
            "When a configuration was last applied with success, in seconds since 1970.",
        ),
        _family("switch_config_hash_info", "info", "hash", "Hash of the configuration that runs; always 1."),
        _family(
            "switch_api_listening", "gauge", "", "1 while the API is served over TCP, 0 if it should be and is not."
        ),
        _family("switch_api_connections", "gauge", "", "Connections of the API over TCP that are open."),
        _family(
            "switch_api_refused_total",
            "counter",
            "reason",
            "Connections and requests that the API over TCP refused: token (none or a wrong one), access (may only "
            "read), tls, plaintext, timeout, limit.",
        ),
        _family(
            "switch_api_certificate_expiry_timestamp_seconds",
            "gauge",
            "",
            "When the certificate of the API over TCP expires, in seconds since 1970.",
        ),
    )
}


REFUSALS = ("token", "access", "tls", "plaintext", "timeout", "limit")
"""Why the API over TCP refuses somebody."""


@dataclass(frozen=True, slots=True)
class ApiFacts:
    """The API over TCP, where the configuration wants it."""

    listening: bool
    connections: int
    refused: Mapping[str, int]
    certificate_expires: float | None  # None: no certificate could be read


@dataclass(frozen=True, slots=True)
class ControlFacts:
    """What the control plane adds to the datapath's snapshot."""

    specs: Sequence[PortSpec] = ()
    start_time: float = 0.0
    restarts: int = 0
    apply_success: bool = True
    apply_time: float = 0.0
    config_hash: str = ""
    api: ApiFacts | None = None
    stuck: Mapping[int, int] = field(default_factory=dict)  # worker -> seconds without a round


def version() -> str:
    try:
        return metadata.version("switchd")
    except metadata.PackageNotFoundError:
        return "unknown"


class SwitchCollector:
    """Turns one snapshot into metric families at each scrape."""

    def __init__(self, datapath: Datapath, facts: Callable[[], ControlFacts]) -> None:
        self._datapath = datapath
        self._facts = facts

    def describe(self) -> list[Metric]:
        return []  # so that registering does not take a snapshot

    def collect(self) -> Iterator[Metric]:
        yield from render(self._datapath.stats(), self._datapath.ports(), self._facts())


class _Sheet:
    """The families of one scrape, made on first use from FAMILIES."""

    def __init__(self) -> None:
        self.families: dict[str, Metric] = {}
        for family in FAMILIES.values():
            self.families[family.name] = _make(family)

    def add(self, name: str, labels: Sequence[str], value: float) -> None:
        metric: Any = self.families[name]
        metric.add_metric(labels, value)

    def info(self, name: str, values: dict[str, str]) -> None:
        metric: Any = self.families[name]
        metric.add_metric([], values)

    def histogram(self, name: str, labels: Sequence[str], buckets: list[tuple[str, float]], total: float) -> None:
        metric: Any = self.families[name]
        metric.add_metric(labels, buckets=buckets, sum_value=total)


def _make(family: Family) -> Metric:
    if family.kind == "counter":
        return CounterMetricFamily(family.name.removesuffix("_total"), family.help, labels=family.labels)
    if family.kind == "info":
        return InfoMetricFamily(family.name.removesuffix("_info"), family.help)
    if family.kind == "histogram":
        return HistogramMetricFamily(family.name, family.help, labels=family.labels)
    return GaugeMetricFamily(family.name, family.help, labels=family.labels)


def render(stats: Stats, statuses: Sequence[PortStatus], facts: ControlFacts) -> list[Metric]:
    """All families of one snapshot, in the order of FAMILIES."""
    sheet = _Sheet()
    sheet.info("switch_build_info", {"version": version(), "python": platform.python_version()})
    sheet.add("switch_start_time_seconds", [], facts.start_time)
    sheet.add("switch_restarts_total", [], facts.restarts)
    sheet.add("switch_plan_generation", [], stats.plan_generation)
    sheet.add("switch_config_last_apply_success", [], 1 if facts.apply_success else 0)
    sheet.add("switch_config_last_apply_timestamp_seconds", [], facts.apply_time)
    sheet.info("switch_config_hash_info", {"hash": facts.config_hash})
    if facts.api:
        _api(sheet, facts.api)
    specs = {spec.name: spec for spec in facts.specs}
    for status in statuses:
        spec = specs.get(status.name)
        sheet.add("switch_port_up", [status.name], 1 if status.up else 0)
        sheet.add("switch_port_enabled", [status.name], 0 if spec and not spec.enabled else 1)
        sheet.info(
            "switch_port_info",
            {
                "port": status.name,
                "type": status.type,
                "bridge": status.bridge,
                "device": spec.device if spec else "",
                "socket_owner": spec.socket_owner if spec and spec.socket else "",
            },
        )
        for ring in status.rings:
            if far := ring.facts.get("far"):
                ends = [status.name, ring.name[:2], ring.name[2:]]  # "rx0", "tx0"
                sheet.add("switch_port_lines_far", ends, 1 if far == "yes" else 0)
        for event, count in sorted(status.counters.items()):
            sheet.add("switch_port_kind_events_total", [status.name, event], count)
    for port in stats.ports:
        _port(sheet, port)
    for bridge in stats.bridges:
        for owner, count in bridge.entries.items():
            sheet.add("switch_fdb_entries", [bridge.name, owner], count)
        for event, count in bridge.events.items():
            sheet.add("switch_fdb_events_total", [bridge.name, event], count)
        sheet.add("switch_fdb_limit", [bridge.name], bridge.mac_limit)
        sheet.add("switch_fdb_events_lost_total", [bridge.name], bridge.events_lost)
    for worker in stats.workers:
        label = [str(worker.worker)]
        sheet.add("switch_worker_busy_seconds_total", label, worker.busy_seconds)
        sheet.add("switch_worker_idle_seconds_total", label, worker.idle_seconds)
        sheet.add("switch_worker_sleep_seconds_total", label, worker.sleep_seconds)
        sheet.add("switch_worker_wakeups_total", label, worker.wakeups)
        sheet.add("switch_worker_loops_total", label, worker.loops)
        sheet.add("switch_worker_stuck", label, 1 if worker.worker in facts.stuck else 0)
        running = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip(BATCH_BOUNDS, worker.batch_frames, strict=True):
            running += count
            buckets.append((bound, running))
        sheet.histogram("switch_worker_batch_frames", label, buckets, worker.frames)
    return list(sheet.families.values())


def _api(sheet: _Sheet, api: ApiFacts) -> None:
    sheet.add("switch_api_listening", [], 1 if api.listening else 0)
    sheet.add("switch_api_connections", [], api.connections)
    for reason, count in api.refused.items():
        sheet.add("switch_api_refused_total", [reason], count)
    if api.certificate_expires is not None:
        sheet.add("switch_api_certificate_expiry_timestamp_seconds", [], api.certificate_expires)


def _port(sheet: _Sheet, port: PortStats) -> None:
    for prefix, direction, queues in (("receive", "rx", port.rx), ("transmit", "tx", port.tx)):
        for queue in queues:
            sheet.add(f"switch_port_{prefix}_frames_total", [port.name, str(queue.queue)], queue.frames)
            sheet.add(f"switch_port_{prefix}_bytes_total", [port.name, str(queue.queue)], queue.bytes)
            sheet.add("switch_port_notifications_total", [port.name, direction, str(queue.queue)], queue.notifications)
    for direction, drops in (("rx", port.rx_drops), ("tx", port.tx_drops)):
        for reason, count in drops.items():
            if count or (reason in TRANSMIT_REASONS) == (direction == "tx"):
                sheet.add("switch_port_drops_total", [port.name, direction, reason], count)
    sheet.add("switch_port_replicated_frames_total", [port.name], port.replicated)
    sheet.add("switch_port_forwarded_frames_total", [port.name], port.forwarded)
    sheet.add("switch_port_offered_frames_total", [port.name], port.offered)
    sheet.add("switch_port_segmented_frames_total", [port.name], port.segmented)


def make_registry(datapath: Datapath, facts: Callable[[], ControlFacts]) -> CollectorRegistry:
    """The registry behind /metrics: the switch's families and those of its process (process_*)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SwitchCollector(datapath, facts))
    ProcessCollector(registry=registry)
    return registry


class MetricsServer:
    """The HTTP listener for Prometheus, in a thread of its own so that a scrape never waits for the event loop."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server, self._thread = start_http_server(port, addr=host or "::", registry=registry)
        except OSError as error:
            raise cannot_listen("metrics", f"{shown}:{port}", "metrics.listen", error) from error
        self.url = f"http://{shown or 'localhost'}:{self._server.server_address[1]}/metrics"

    def close(self) -> None:
        # Wakes the thread, which would otherwise look only every half second whether it shall end.
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
