# SPDX-License-Identifier: Apache-2.0
"""The shapes of the API's answers and requests: stable, documented in /openapi.json, shown by `swctl -o json`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FaultShape(Shape):
    path: str = Field(description="where in the configuration or request, such as ports[1].vlan.access")
    reason: str
    file: str = ""
    line: int = Field(0, description="from 1; 0: unknown")
    column: int = Field(0, description="from 1; 0: unknown")


class ErrorBody(Shape):
    kind: str = Field(
        description="config, port, fdb, missing, exists, not_built, request, unauthorized, forbidden, switch, internal"
    )
    message: str = Field(description="what was tried, on what, why it failed, what to do")
    faults: list[FaultShape] = Field(default_factory=list, description="of a configuration: every fault")


class ErrorShape(Shape):
    """Every error has this shape."""

    error: ErrorBody


class VlanShape(Shape):
    access: int | None = None
    trunk: list[int] | None = Field(None, description="VLANs carried with a tag; null: all")
    native: int = Field(0, description="VLAN of untagged frames on a trunk; 0: none")


class RatesShape(Shape):
    """Per second, over the last few seconds."""

    rx_frames: float = 0.0
    rx_bits: float = 0.0
    tx_frames: float = 0.0
    tx_bits: float = 0.0
    rx_drops: float = 0.0
    tx_drops: float = 0.0


class PortShape(Shape):
    """One row of the list of ports. rx enters the switch, tx leaves it."""

    name: str
    type: str
    bridge: str
    up: bool = Field(description="frames can flow")
    enabled: bool
    stage: str = Field(description="how far its set-up is, in the words of its kind")
    detail: str = Field(description="why it is not up and what to do; when up, what is unusual, mostly empty")
    origin: str = Field(description="file, or runtime when it was added beside the file")
    vlan: VlanShape
    address: str = Field(description="its socket or device")
    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int
    rx_drops: int
    tx_drops: int
    rates: RatesShape


class PortsShape(Shape):
    ports: list[PortShape]


class RingShape(Shape):
    name: str
    facts: dict[str, str]


class QueueShape(Shape):
    port: str
    direction: str = Field(description="rx or tx")
    queue: int
    worker: int = Field(description="index of the worker that polls it; -1: none, always -1 for tx")
    cpu: int = Field(description="CPU of that worker; -1: none")
    frames: int
    bytes: int
    notifications: int
    rate: float = Field(description="frames per second, over the last seconds")


class PortDetail(PortShape):
    """Everything about one port."""

    spec: dict[str, Any] = Field(description="the port as it should be, with the keys of the file")
    facts: dict[str, str] = Field(description="what its kind has to say: negotiated features, memory, remedy")
    counters: dict[str, int] = Field(description="totals that only its kind has")
    rings: list[RingShape]
    queues: list[QueueShape]
    drops: dict[str, dict[str, int]] = Field(description="direction -> reason -> frames; reasons that happened")
    replicated: int
    forwarded: int
    offered: int
    segmented: int


class WorkerShape(Shape):
    worker: int
    cpu: int
    thread_id: int
    load: float = Field(description="share of time in passes that moved frames, 0 to 1, over the last seconds")
    busy_seconds: float
    idle_seconds: float
    sleep_seconds: float
    loops: int
    stuck_seconds: int = Field(description="seconds without a pass over its queues, once they are five; 0: it polls")
    wakeups: int
    batches: int
    frames: int
    mean_batch: float
    batch_frames: list[int] = Field(description="batches of 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 frames")
    rx_queues: list[str]


class WorkersShape(Shape):
    workers: list[WorkerShape]


class BridgeShape(Shape):
    name: str
    ports: int
    ageing: int = Field(description="seconds; 0: never")
    mac_limit: int
    capacity: int
    entries: dict[str, int] = Field(description="owner -> count")
    events: dict[str, int] = Field(description="totals: learned, moved, aged, evicted, flushed, refused_*")
    events_lost: int


class BridgesShape(Shape):
    bridges: list[BridgeShape]


class RestartShape(Shape):
    key: str
    running: str
    wanted: str


class ConfigState(Shape):
    file: str
    hash: str
    last_apply_success: bool
    last_apply_time: float
    pending_restart: list[RestartShape] = Field(description="applied, but taken up only by a restart of the daemon")
    confirm_until: float | None = Field(description="an applied configuration is undone then unless confirmed")


class ShowShape(Shape):
    """What a person at 3 a.m. needs."""

    name: str
    version: str
    pid: int
    started: float
    uptime_seconds: float
    polling: str
    config: ConfigState
    warnings: list[str]
    ports: list[PortShape]
    workers: list[WorkerShape]
    bridges: list[BridgeShape]


class QueuesShape(Shape):
    queues: list[QueueShape]


class DropShape(Shape):
    port: str
    direction: str
    reason: str
    frames: int
    rate: float = Field(description="frames per second, over the last seconds")


class DropsShape(Shape):
    drops: list[DropShape]


class PortStatsShape(Shape):
    """receive + replicated = forwarded + drops of rx; offered + segmented = transmit + drops of tx."""

    port: str
    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int
    rx_drops: dict[str, int]
    tx_drops: dict[str, int]
    replicated: int
    forwarded: int
    offered: int
    segmented: int


class StatsShape(Shape):
    time: float
    plan_generation: int
    ports: list[PortStatsShape]
    workers: list[WorkerShape]
    bridges: list[BridgeShape]


class FlowShape(Shape):
    bridge: str
    vlan: int
    mac: str
    port: str = Field(description="empty: frames to this address are dropped")
    owner: str = Field(description="learned, static, external or held")
    age: int = Field(description="seconds since last seen; 0 for owners that do not age")


class FlowsShape(Shape):
    total: int = Field(description="how many matched; `flows` may hold fewer")
    flows: list[FlowShape]


class FlowRequest(Shape):
    mac: str = Field(description="52:54:00:12:34:56")
    port: str = Field("", description="empty: drop frames to this address (static only)")
    vlan: Annotated[int, Field(ge=0, le=4094)] = 0
    bridge: str | None = Field(None, description="may be absent when there is only one")
    owner: str = Field("static", description="static, or external for another control plane's entries")

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"mac": "52:54:00:12:34:56", "port": "vm1", "vlan": 10}]}
    )


class FlushRequest(Shape):
    bridge: str | None = Field(None, description="absent: every bridge")
    port: str | None = None
    vlan: int | None = None
    owner: str | None = Field(None, description="absent: learned and held ones")


class CountShape(Shape):
    count: int


class ChangedShape(Shape):
    """What an idempotent request did."""

    changed: bool


class EventShape(Shape):
    sequence: int = Field(description="rises by one per event; 0 marks a gap for a slow reader")
    time: float
    kind: str
    bridge: str = ""
    port: str = ""
    old_port: str = ""
    vlan: int | None = None
    mac: str | None = None
    detail: str = ""


class EventsShape(Shape):
    events: list[EventShape]


class LevelShape(Shape):
    level: str = Field(description="debug, info, warning or error", examples=["debug"])


class ConfigText(Shape):
    text: str = Field(description="the YAML")
    path: str = Field("<request>", description="its absolute path: stands in faults, and relative paths start there")
    exact: bool = Field(False, description="also remove ports that were added at run time and are not in it")


class ApplyText(ConfigText):
    confirm: float = Field(0.0, ge=0, le=86400, description="seconds within which it must be confirmed; 0: no need")


class StepShape(Shape):
    step: str
    subject: str
    impact: str = Field(description="none, or port when that port's frames are disturbed")
    text: str
    changes: list[dict[str, Any]]


class PlanShape(Shape):
    steps: list[StepShape]
    restart: list[RestartShape] = Field(description="what only a restart of the daemon can change")
    kept: list[str] = Field(description="ports added at run time that stay although the file does not name them")


class StepsShape(Shape):
    steps: list[StepShape]


class ValidShape(Shape):
    ports: int
    bridges: int
    hash: str


class RunningShape(ConfigState):
    yaml: str = Field(description="what runs, as a configuration file")


class ExplainRequest(Shape):
    frame: str = Field(description="the Ethernet frame in hex", examples=["ffffffffffff5254000000010806"])


class ExplainShape(Shape):
    port: str
    steps: list[str]
