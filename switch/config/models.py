# SPDX-License-Identifier: Apache-2.0
"""Every key of the configuration file: names, types, defaults, limits, and the rules between them.

The descriptions here are the ones in schema.json and in docs/configuration.md. A Config is immutable, and means the
same on every machine except where it leaves a choice to the machine (no `switch.workers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from switch.config import values
from switch.config.fields import (
    MAX_CPU,
    Affinity,
    Boolean,
    Conflict,
    Context,
    Device,
    DirectoryPath,
    FileMode,
    Group,
    Listen,
    MacAddress,
    Name,
    Section,
    SocketPath,
    Trunk,
    VlanId,
    duration_in,
    mappings,
    number_in,
    or_nothing,
    size_in,
)
from switch.config.machine import Machine
from switch.config.rules import whole_file_conflicts
from switch.config.specs import BridgeSpec, State, StaticFlow
from switch.datapath import DatapathOptions, PortSpec, VlanPolicy
from switch.errors import ConfigError, Fault

MAX_PORTS = 1024
MAX_WORKERS = 128
MAX_MACS = 1 << 20
DEFAULT_BRIDGE = "br0"
DEFAULT_CONTROL_SOCKET = "/run/switch/control.sock"


def _several(limit: int) -> Any:
    return Field(default=(), strict=False, max_length=limit)


# ---- switch, control, metrics ----


class WorkerSection(Section):
    """One polling thread, pinned to one CPU."""

    cpu: Annotated[int, number_in(0, MAX_CPU), Field(description="CPU that this worker has to itself")]


class MemorySection(Section):
    """The switch's own memory: rings of `virtiouser` ports and scratch space. Guests bring theirs."""

    hugepages: Literal["auto", "required", "off"] = Field(
        "auto",
        description="auto: huge pages if there are any, else normal pages and a warning; required: refuse to start "
        "without; off: normal pages",
    )
    size: Annotated[
        int, size_in(1 << 20, 1 << 40), Field(description='bytes, or with a unit of 1024: "64M", "1G"; 1M to 1T')
    ] = 64 << 20


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
            description="directory that keeps learned flows and run-time ports over a restart; absent: the "
            "daemon's default"
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


class ControlSection(Section):
    """The Unix socket that `swctl` and the HTTP API use. Its file mode and group are the access control."""

    socket: Annotated[SocketPath, Field(description="path of the control socket")] = DEFAULT_CONTROL_SOCKET
    mode: Annotated[FileMode, Field(description='permission bits of the socket, in quotes: "0660"')] = 0o660
    group: Annotated[
        Group | None, Field(description="group of the socket, by name or number; absent: the daemon's own")
    ] = None


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
    static: Annotated[tuple[StaticSection, ...], Field(description="entries that stay")] = _several(65536)
    move_damping: DampingSection = Field(DampingSection(), description="freezing of addresses that flap")


# ---- ports ----


class VlanSection(Section):
    """Which VLANs a port carries: `access` for one, untagged; `trunk` for several, tagged."""

    habits: ClassVar[Mapping[str, str]] = {
        "tag": "access: N",
        "trunks": "trunk: [N, ...]",
        "pvid": "native: N",
        "untagged": "access: N, or native: N on a trunk",
    }

    access: Annotated[
        VlanId | None, Field(description="the one VLAN of this port; its frames are untagged on the wire")
    ] = None
    trunk: Annotated[
        Trunk, Field(description='VLANs carried with a tag: a list such as [10, "20-29"], or "all" (the default)')
    ] = None
    native: Annotated[
        VlanId | None, Field(description="VLAN of untagged frames on a trunk; absent: they stay outside every VLAN")
    ] = None

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        if "access" in raw and "trunk" in raw:
            yield (
                ("trunk",),
                "access and trunk exclude each other: access makes the port an untagged member of one VLAN, "
                "trunk carries several with tags; keep one",
            )
        elif "access" in raw and "native" in raw:
            yield ("native",), "native belongs to a trunk: an access port's untagged frames are in its access VLAN"


class PortSection(Section):
    """What every kind of port has."""

    habits: ClassVar[Mapping[str, str]] = {
        "tag": "vlan: {access: N}",
        "trunks": "vlan: {trunk: [N, ...]}",
        "access": "vlan: {access: N}",
        "trunk": "vlan: {trunk: [N, ...]}",
        "native": "vlan: {native: N}",
        "path": "socket: PATH",
        "vhost_server_path": "socket: PATH",
        "n_rxq": "queues: N",
        "interface": "device: NAME",
        "dev": "device: NAME",
        "protected": "isolated: true",
        "server": "socket_owner: switch (we listen) or peer (the other side listens)",
        "client": "socket_owner: switch (we listen) or peer (the other side listens)",
        "mode": "socket_owner: switch or peer; for the permission bits of the socket: socket_mode",
        "pmd_rxq_affinity": "rx_affinity: {0: CPU, ...}",
    }

    name: Annotated[Name, Field(description="unique name")]
    bridge: Annotated[Name | None, Field(description="its bridge; may be absent when there is only one")] = None
    vlan: VlanSection = Field(VlanSection(), description="the VLANs it carries; absent: all of them")
    enabled: Annotated[Boolean, Field(description="false: no frame enters or leaves")] = True
    learning: Annotated[Boolean, Field(description="learn the source addresses of its frames")] = True
    flood: Annotated[
        Boolean,
        Field(description="receive frames to unknown unicast addresses; broadcast and multicast come always"),
    ] = True
    isolated: Annotated[Boolean, Field(description="exchange no frames with other isolated ports")] = False
    mac_limit: Annotated[
        int, number_in(0, MAX_MACS), Field(description="addresses learned here at most; 0: as the bridge")
    ] = 0
    mtu: Annotated[
        int,
        number_in(0, 65535, "bytes"),
        Field(description="bytes of L3 payload at most, announced to the peer; 0: no limit"),
    ] = 0
    rx_affinity: Annotated[
        Affinity, Field(description="receive queue -> CPU of the worker that polls it; others are spread evenly")
    ] = {}  # noqa: RUF012 pydantic copies defaults
    macs: Annotated[
        tuple[MacAddress, ...],
        Field(description="static addresses of this port, in the VLAN of its untagged frames"),
    ] = _several(4096)

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        mtu = raw.get("mtu", 0)
        if isinstance(mtu, int) and values.is_number(mtu) and 0 < mtu < 68:
            yield ("mtu",), f"must be 0 (no limit) or at least 68, not {mtu}"
        queues, pins = raw.get("queues", 1), raw.get("rx_affinity")
        if isinstance(queues, int) and values.is_number(queues) and queues > 0 and isinstance(pins, dict):
            for queue in pins:
                if str(queue).isdecimal() and int(queue) >= queues:
                    yield (
                        ("rx_affinity", queue),
                        f"there is no queue {queue}: queues is {queues}, so the last one is {queues - 1}",
                    )

    @classmethod
    def unknown_key(cls, key: str) -> str:
        owners = [kind for kind, section in PORT_KINDS.items() if key in section.model_fields]
        kind = next((kind for kind, section in PORT_KINDS.items() if section is cls), "")
        if owners and kind:
            return f"'{key}' is not a key of type '{kind}': only {' and '.join(owners)} ports have it"
        return super().unknown_key(key)


class _SocketPort(PortSection):
    """A port reached over a vhost-user socket."""

    socket: Annotated[
        SocketPath, Field(description="path of the vhost-user socket; relative paths start at this file's directory")
    ]
    queues: Annotated[int, number_in(1, 128), Field(description="queue pairs at most")] = 1
    packed: Annotated[Boolean, Field(description="use packed rings when the peer has them too")] = True


class VhostUserPort(_SocketPort):
    """A guest or container: we are the device (back-end), it is the virtio driver."""

    type: Literal["vhostuser"] = Field(description="kind of port")
    socket_owner: Literal["switch", "peer"] = Field(
        "switch",
        description="switch: we create the socket and listen; peer: the guest's side listens, we connect and "
        "reconnect for ever",
    )
    socket_mode: Annotated[
        FileMode | None, Field(description='permission bits of a socket that we create, in quotes: "0660"')
    ] = None
    socket_group: Annotated[Group | None, Field(description="group of a socket that we create")] = None
    offloads: Annotated[Boolean, Field(description="offer checksum and segmentation offloads")] = True
    mergeable: Annotated[Boolean, Field(description="offer receive buffers that join for large frames")] = True
    in_order: Annotated[Boolean, Field(description="offer in-order use of buffers")] = True

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        yield from super().conflicts(raw, context)
        if raw.get("socket_owner") == "peer":
            for key in ("socket_mode", "socket_group"):
                if key in raw:
                    yield (key,), "has no effect with socket_owner: peer: the peer creates the socket; remove it"


class VirtioUserPort(_SocketPort):
    """Another switch: we are the virtio driver (front-end), it is the vhost-user device."""

    type: Literal["virtiouser"] = Field(description="kind of port")
    socket_owner: Literal["switch", "peer"] = Field(
        "peer", description="peer: the other switch listens, we connect and reconnect for ever; switch: we listen"
    )
    mac: Annotated[MacAddress | None, Field(description="our own address; absent: none announced")] = None
    ring_size: Annotated[int, number_in(16, 32768), Field(description="entries of each ring, a power of two")] = 256

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        yield from super().conflicts(raw, context)
        entries = raw.get("ring_size")
        if isinstance(entries, int) and entries >= 16 and entries & (entries - 1):
            yield ("ring_size",), f"must be a power of two, not {entries}: try {1 << entries.bit_length() - 1}"


class TapPort(PortSection):
    """A kernel TAP interface: the host's own stack, or a guest that has one."""

    type: Literal["tap"] = Field(description="kind of port")
    device: Annotated[
        Device | None, Field(description="name of the interface, created if missing; absent: the kernel picks one")
    ] = None
    queues: Annotated[int, number_in(1, 128), Field(description="queue pairs")] = 1
    mac: Annotated[MacAddress | None, Field(description="address of the interface; absent: the kernel picks one")] = (
        None
    )


class AfPacketPort(PortSection):
    """Any network interface of the kernel, such as a physical NIC or a veth."""

    type: Literal["afpacket"] = Field(description="kind of port")
    device: Annotated[Device, Field(description="name of the interface")]
    queues: Annotated[int, number_in(1, 64), Field(description="sockets that share the load")] = 1


PortModel = Annotated[VhostUserPort | VirtioUserPort | TapPort | AfPacketPort, Field(discriminator="type")]

PORT_KINDS: dict[str, type[PortSection]] = {
    "vhostuser": VhostUserPort,
    "virtiouser": VirtioUserPort,
    "tap": TapPort,
    "afpacket": AfPacketPort,
}
PLANNED_KINDS = ("afxdp", "verbs", "vdpa", "vduse")
KIND_HABITS = {
    "dpdkvhostuser": "type: vhostuser with socket_owner: switch",
    "dpdkvhostuserclient": "type: vhostuser with socket_owner: peer",
    "vhost": "type: vhostuser",
    "internal": "type: tap",
    "system": "type: afpacket",
    "veth": "type: afpacket",
}

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
    control: ControlSection = Field(ControlSection(), description="the control socket")
    metrics: MetricsSection = Field(MetricsSection(), description="the Prometheus endpoint")
    bridges: Annotated[
        tuple[BridgeSection, ...],
        BeforeValidator(or_nothing),
        Field(description=f"learning domains; absent: one bridge named {DEFAULT_BRIDGE}"),
    ] = _several(256)
    ports: Annotated[
        tuple[PortModel, ...], BeforeValidator(or_nothing), Field(description="where frames enter and leave")
    ] = _several(MAX_PORTS)

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
            pin=given is not None or machine.cpus is None or len(machine.cpus) > 1,
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


def untagged_vlan(vlan: VlanSection) -> int:
    """The VLAN of a port's untagged frames; 0: none."""
    return vlan.access or vlan.native or 0


def vlan_policy(vlan: VlanSection) -> VlanPolicy:
    if vlan.access is not None:
        return VlanPolicy(access=vlan.access)
    return VlanPolicy(trunk=vlan.trunk, native=vlan.native or 0)


def port_spec(port: PortSection, bridge: str, machine: Machine | None = None) -> PortSpec:
    """A port of the file -> a port of the datapath."""
    fields = {key: getattr(port, key) for key in _SAME_IN_SPEC if key in type(port).model_fields}
    return PortSpec(
        **fields,
        bridge=bridge,
        vlan=vlan_policy(port.vlan),
        rx_affinity=dict(port.rx_affinity),
        socket_gid=gid_of(getattr(port, "socket_group", None), machine),
        device=getattr(port, "device", None) or "",
        mac=getattr(port, "mac", None) or 0,
    )


_SAME_IN_SPEC = (
    "name",
    "type",
    "enabled",
    "learning",
    "flood",
    "isolated",
    "mac_limit",
    "mtu",
    "socket",
    "socket_owner",
    "socket_mode",
    "queues",
    "packed",
    "offloads",
    "mergeable",
    "in_order",
    "ring_size",
)


def gid_of(group: str | None, machine: Machine | None = None) -> int | None:
    """Group number of a name that the file gives; None stays None."""
    if group is None:
        return None
    gid = (machine.gid_of if machine else Machine(None).gid_of)(group)
    if gid is None:
        raise ConfigError([Fault("", f"there is no group '{group}' on this machine any more: create it")])
    return gid
