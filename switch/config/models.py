# SPDX-License-Identifier: Apache-2.0
"""Every key of the configuration file but those of `ports[]`: names, types, defaults, limits, rules between them.

The descriptions here are the ones in schema.json and in docs/configuration.md. A Config is immutable, and means the
same on every machine except where it leaves a choice to the machine (no `switch.workers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from switch.config import values
from switch.config.fields import (
    MAX_CPU,
    MAX_MACS,
    Address,
    Boolean,
    Conflict,
    Context,
    DirectoryPath,
    FileMode,
    FilePath,
    Group,
    Listen,
    MacAddress,
    Name,
    Section,
    SocketPath,
    VlanId,
    duration_in,
    mappings,
    number_in,
    or_nothing,
    several,
    size_in,
)
from switch.config.machine import Machine
from switch.config.ports import PORT_KINDS as PORT_KINDS
from switch.config.ports import PortModel as PortModel
from switch.config.ports import PortSection as PortSection
from switch.config.ports import VlanSection as VlanSection
from switch.config.ports import gid_of as gid_of
from switch.config.ports import port_spec as port_spec
from switch.config.ports import untagged_vlan as untagged_vlan
from switch.config.rules import whole_file_conflicts
from switch.config.specs import BridgeSpec, State, StaticFlow
from switch.datapath import DatapathOptions, PortSpec

MAX_PORTS = 1024
MAX_WORKERS = 128
DEFAULT_BRIDGE = "br0"
DEFAULT_CONTROL_SOCKET = "/run/switch/control.sock"


# ---- switch, control, metrics ----


class WorkerSection(Section):
    """One polling thread, pinned to one CPU."""

    cpu: Annotated[int, number_in(0, MAX_CPU), Field(description="CPU that this worker has to itself")]


class MemorySection(Section):
    """The switch's own memory: its MAC tables (1 M addresses take 17 MB). Guests bring theirs."""

    hugepages: Literal["auto", "required", "off"] = Field(
        "auto",
        description="auto: huge pages if there are any, else normal pages and a warning; required: refuse to start "
        "without; off: normal pages",
    )
    size: Annotated[
        int, size_in(1 << 20, 1 << 40), Field(description='bytes, or with a unit of 1024: "64M", "1G"; 1M to 1T')
    ] = 64 << 20
    page: Literal["2M", "1G"] = Field("2M", description="size of the huge pages; auto takes 2M pages when 1G is short")
    numa_node: Annotated[int, number_in(0, 1023)] | None = Field(
        None, description="take the memory from this node; absent: wherever the kernel likes"
    )


class SwitchSection(Section):
    """The switch as a whole. Changes here take effect when the daemon restarts."""

    habits: ClassVar[Mapping[str, str]] = {
        "cpus": "workers: [{cpu: N}, ...]",
        "cores": "workers: [{cpu: N}, ...]",
        "pmd_cpu_mask": "workers: [{cpu: N}, ...]",
        "hugepages": "memory: {hugepages: ...}",
    }

    name: Annotated[Name, Field(description="name in metrics and in `swctl show`")] = "sw0"
    polling: Literal["adaptive", "busy"] = Field(
        "adaptive",
        description="adaptive: an idle worker sleeps until frames come; busy: it never sleeps and takes its CPU whole",
    )
    workers: tuple[WorkerSection, ...] | None = Field(
        None,
        strict=False,
        max_length=MAX_WORKERS,
        json_schema_extra={"minItems": 1},
        description="the polling threads, one CPU each; absent: one worker on the last CPU the daemon may use",
    )
    memory: MemorySection = Field(MemorySection(), description="the switch's own memory")
    state_dir: Annotated[
        DirectoryPath | None,
        Field(
            description="directory that keeps learned flows and run-time ports over a restart; absent: "
            "$STATE_DIRECTORY (systemd), or where the control socket is"
        ),
    ] = None

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        if raw.get("workers") == []:
            yield ("workers",), "is empty: give at least one worker, or remove the key for one on the last CPU"
        first: dict[int, int] = {}
        allowed = context.machine.cpus
        for index, worker in mappings(raw.get("workers")):
            cpu = worker.get("cpu")
            if not isinstance(cpu, int) or not values.is_number(cpu) or cpu < 0:
                continue
            if cpu in first:
                yield ("workers", index, "cpu"), f"CPU {cpu} has a worker already (workers[{first[cpu]}]): one each"
            first.setdefault(cpu, index)
            if allowed is not None and cpu not in allowed:
                there = values.format_vlans(allowed)
                yield (
                    ("workers", index, "cpu"),
                    f"there is no CPU {cpu} for this process: it may use {', '.join(map(str, there))}",
                )


class TokenSection(Section):
    """A secret that opens the API over TCP: who presents it may read, or change everything."""

    name: Annotated[Name, Field(description="who that is, in the log and in `swctl events`")]
    file: Annotated[
        FilePath,
        Field(description="file with the token in one line, 20 characters or more; nobody else may read it"),
    ]
    access: Literal["read", "write"] = Field(
        "read", description="read: look, and /metrics; write: also change everything, and capture frames"
    )


class TcpSection(Section):
    """The API over TCP: with TLS, for whoever presents a token. Files are read at start and at every reload."""

    # `conflicts` says more of an absent token than "missing", so pydantic is not told that it is required.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].append("tokens"))

    habits: ClassVar[Mapping[str, str]] = {
        "address": 'listen: "ADDRESS:PORT"',
        "port": 'listen: "ADDRESS:PORT"',
        "cert": "certificate: FILE",
        "cert_file": "certificate: FILE",
        "certificate_file": "certificate: FILE",
        "tls_cert": "certificate: FILE",
        "key_file": "key: FILE",
        "tls_key": "key: FILE",
        "ca": "client_ca: FILE",
        "client_ca_file": "client_ca: FILE",
        "token": "tokens: [{name: NAME, file: FILE, access: read}]",
        "token_file": "tokens: [{name: NAME, file: FILE, access: read}]",
        "tls": "certificate: FILE and key: FILE; there is no TCP without TLS",
        "insecure": "certificate: FILE and key: FILE; there is no TCP without TLS",
    }

    listen: Annotated[
        Address, Field(description='"10.0.0.5:9481", "[::1]:9481" or ":9481" (every address of the machine)')
    ]
    certificate: Annotated[
        FilePath, Field(description="PEM file with the server's certificate, then those between it and its CA")
    ]
    key: Annotated[FilePath, Field(description="PEM file with its private key; nobody else may read it")]
    client_ca: Annotated[
        FilePath | None,
        Field(description="PEM file with the CAs of clients, who must then show a certificate beside the token"),
    ] = None
    tokens: Annotated[
        tuple[TokenSection, ...],
        Field(description="who may ask; at least one", max_length=64, strict=False, json_schema_extra={"minItems": 1}),
    ] = ()

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        if raw.get("tokens", ()) in (None, (), []):
            yield ("tokens",), "the API over TCP needs a token: write tokens: [{name: NAME, file: FILE, access: read}]"
        for key in ("name", "file"):
            first: dict[str, int] = {}
            for index, token in mappings(raw.get("tokens")):
                value = token.get(key)
                if isinstance(value, str) and first.setdefault(value, index) != index:
                    yield ("tokens", index, key), f"the {key} {values.show(value)} is taken by tokens[{first[value]}]"


class ControlSection(Section):
    """Where `swctl` and the HTTP API are served: a Unix socket, whose mode and group decide who may, and TCP."""

    habits: ClassVar[Mapping[str, str]] = {
        "listen": 'tcp: {listen: "ADDRESS:PORT", certificate: FILE, key: FILE, tokens: [...]}',
        "tls": 'tcp: {listen: "ADDRESS:PORT", certificate: FILE, key: FILE, tokens: [...]}',
    }

    socket: Annotated[SocketPath, Field(description="path of the control socket")] = DEFAULT_CONTROL_SOCKET
    mode: Annotated[FileMode, Field(description='permission bits of the socket, in quotes: "0660"')] = 0o660
    group: Annotated[
        Group | None, Field(description="group of the socket, by name or number; absent: the daemon's own")
    ] = None
    tcp: TcpSection | None = Field(None, description="the API over TCP; absent: not over TCP")


class MetricsSection(Section):
    """The Prometheus endpoint `/metrics`."""

    listen: Annotated[
        Listen,
        Field(description='"127.0.0.1:9480", "[::1]:9480", ":9480" (every address), or "off"'),
    ] = ("127.0.0.1", 9480)


# ---- bridges ----


class StaticSection(Section):
    """A MAC address that stays at one port: it does not age, and learning cannot move it."""

    mac: Annotated[MacAddress, Field(description='a station\'s address, in quotes: "52:54:00:12:34:56"')]
    vlan: Annotated[
        VlanId | None, Field(description="VLAN of the entry; absent: the one of the port's untagged frames")
    ] = None
    port: Annotated[Name | None, Field(description="name of a port of this bridge")] = None
    blackhole: Annotated[Boolean, Field(description="drop frames to this address instead of naming a port")] = False

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        if raw.get("blackhole") is True and "port" in raw:
            yield ("port",), "a blackhole has no port: keep either port or blackhole"
        elif raw.get("blackhole", False) is False and "port" not in raw:
            yield ("port",), "required key 'port' is missing (or blackhole: true, to drop frames to this address)"


class DampingSection(Section):
    """What to do with a MAC address that moves between ports too often (a loop, or two stations with one address)."""

    moves: Annotated[
        int,
        number_in(0, 1_000_000),
        Field(description="moves within `window` that freeze the address; 0: never freeze"),
    ] = 6
    window: Annotated[int, duration_in(1, 3600), Field(description="time over which moves are counted")] = 10
    hold: Annotated[int, duration_in(1, 86400), Field(description="how long the address stays frozen where it is")] = 10


class BridgeSection(Section):
    """A learning domain. Frames never pass from one bridge to another."""

    habits: ClassVar[Mapping[str, str]] = {
        "aging": "ageing",
        "mac_aging_time": "ageing",
        "mac_table_size": "mac_limit",
        "ports": "bridge: NAME at each port",
    }

    name: Annotated[Name, Field(description="unique name")]
    ageing: Annotated[
        int,
        duration_in(1, 1_000_000, "never"),
        Field(description='time after which an address not seen any more is forgotten: 300, "300s", "5m"; 0: never'),
    ] = 300
    mac_limit: Annotated[int, number_in(1, MAX_MACS), Field(description="addresses in the table at most")] = 65536
    static: Annotated[tuple[StaticSection, ...], Field(description="entries that stay")] = several(65536)
    move_damping: DampingSection = Field(DampingSection(), description="freezing of addresses that flap")

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        static, limit = raw.get("static"), raw.get("mac_limit", 65536)
        if isinstance(static, list) and isinstance(limit, int) and 0 < limit < len(static):
            yield ("mac_limit",), f"is {limit}, less than the {len(static)} addresses under static: raise it"


# ---- the whole ----


class Config(Section):
    """A configuration file. Build it with load_config or parse_config, which know places and the machine."""

    habits: ClassVar[Mapping[str, str]] = {
        **{key: f"switch: {{{key}: ...}}" for key in SwitchSection.model_fields},
        **{key: f"metrics: {{{key}: ...}}" for key in MetricsSection.model_fields},
        **{key: f"control: {{{key}: ...}}" for key in ControlSection.model_fields},
        "bridge": "bridges: [{name: NAME}]",
        "port": "ports: [...]",
    }

    version: Annotated[Literal[1], Field(description="version of this format")]
    switch: SwitchSection = Field(SwitchSection(), description="the switch as a whole")
    control: ControlSection = Field(ControlSection(), description="where swctl and the API are served")
    metrics: MetricsSection = Field(MetricsSection(), description="the Prometheus endpoint")
    bridges: Annotated[
        tuple[BridgeSection, ...],
        BeforeValidator(or_nothing),
        Field(description=f"learning domains; absent: one bridge named {DEFAULT_BRIDGE}"),
    ] = several(256)
    ports: Annotated[
        tuple[PortModel, ...], BeforeValidator(or_nothing), Field(description="where frames enter and leave")
    ] = several(MAX_PORTS)

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        for path, reason in whole_file_conflicts(raw, context):
            # pydantic puts the chosen kind after the position of a port, and readers of the faults take it out again.
            yield ((*path[:2], "port", *path[2:]) if path[0] == "ports" else path), reason

    def all_bridges(self) -> tuple[BridgeSection, ...]:
        """The bridges, the implied one included."""
        return self.bridges or (BridgeSection(name=DEFAULT_BRIDGE),)

    def bridge_of(self, port: PortSection) -> str:
        return port.bridge or self.all_bridges()[0].name

    def datapath_options(self, machine: Machine | None = None) -> DatapathOptions:
        """What the datapath must know before it starts; the one place where the machine fills a gap of the file."""
        machine = machine or Machine.here()
        given = self.switch.workers
        return DatapathOptions(
            workers=tuple(worker.cpu for worker in given) if given else (machine.default_cpu(),),
            polling=self.switch.polling,
            hugepages=self.switch.memory.hugepages,
            memory_bytes=self.switch.memory.size,
            huge_page_bytes=1 << 30 if self.switch.memory.page == "1G" else 2 << 20,
            numa_node=-1 if self.switch.memory.numa_node is None else self.switch.memory.numa_node,
            # With one CPU there is nothing to gain; a port that names it needs the worker to be there all the same.
            pin=bool(given or machine.cpus is None or len(machine.cpus) > 1 or any(p.rx_affinity for p in self.ports)),
        )

    def bridge_specs(self) -> list[BridgeSpec]:
        return [BridgeSpec(bridge.name, bridge.ageing, bridge.mac_limit) for bridge in self.all_bridges()]

    def port_specs(self, machine: Machine | None = None) -> list[PortSpec]:
        """The ports as the datapath wants them. Raises ConfigError if a group vanished since the file was read."""
        return [port_spec(port, self.bridge_of(port), machine) for port in self.ports]

    def static_flows(self) -> list[StaticFlow]:
        """Every flow that the file pins: `static` of bridges and `macs` of ports."""
        ports = {port.name: port for port in self.ports}
        flows = [
            StaticFlow(
                bridge.name,
                entry.vlan if entry.vlan is not None else untagged_vlan(ports[entry.port].vlan) if entry.port else 0,
                entry.mac,
                entry.port or "",
            )
            for bridge in self.all_bridges()
            for entry in bridge.static
        ]
        flows += [
            StaticFlow(self.bridge_of(port), untagged_vlan(port.vlan), mac, port.name)
            for port in self.ports
            for mac in port.macs
        ]
        return flows

    def state(self, machine: Machine | None = None) -> State:
        """What the file wants, in the form that switch.plan compares."""
        return State(tuple(self.bridge_specs()), tuple(self.port_specs(machine)), tuple(self.static_flows()))
