# SPDX-License-Identifier: Apache-2.0
"""The keys of `ports[]`: what every kind of port has, what each kind adds, and how a port becomes a PortSpec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from switch.config import values
from switch.config.fields import (
    MAX_MACS,
    Affinity,
    Boolean,
    Conflict,
    Context,
    Device,
    DeviceFile,
    DeviceName,
    FileMode,
    Group,
    MacAddress,
    Name,
    RdmaDevice,
    Section,
    SocketPath,
    Steering,
    Trunk,
    VlanId,
    number_in,
    several,
)
from switch.config.machine import Machine
from switch.datapath import PortSpec, VlanPolicy
from switch.errors import ConfigError, Fault


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


class VlanSection(Section):
    """Which VLANs a port carries: `access` for one, untagged; `trunk` for several, tagged."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {"required": ["access"], "anyOf": [{"required": ["trunk"]}, {"required": ["native"]}]}
        }
    )

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
        Field(
            description="MTU announced to the peer, in bytes of L3 payload; longer frames to it are dropped and "
            "counted; 0: no limit"
        ),
    ] = 0
    rx_affinity: Annotated[
        Affinity, Field(description="receive queue -> CPU of the worker that polls it; others are spread evenly")
    ] = {}  # noqa: RUF012 pydantic copies defaults
    macs: Annotated[
        tuple[MacAddress, ...],
        Field(description="static addresses of this port, in the VLAN of its untagged frames"),
    ] = several(4096)

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
            return f"'{key}' is not a key of type '{kind}': only {_listed(owners)} ports have it"
        return super().unknown_key(key)


class _SocketPort(PortSection):
    """A port reached over a vhost-user socket."""

    socket: Annotated[
        SocketPath, Field(description="path of the vhost-user socket; relative paths start at this file's directory")
    ]
    socket_mode: Annotated[
        FileMode | None, Field(description='permission bits of a socket that we create, in quotes: "0660"')
    ] = None
    socket_group: Annotated[Group | None, Field(description="group of a socket that we create")] = None
    queues: Annotated[int, number_in(1, 128), Field(description="queue pairs at most")] = 1
    packed: Annotated[Boolean, Field(description="use packed rings when the peer has them too")] = True
    offloads: Annotated[Boolean, Field(description="use checksum and segmentation offloads when the peer has them")] = (
        True
    )
    mergeable: Annotated[
        Boolean, Field(description="use receive buffers that join for large frames when the peer has them")
    ] = True
    in_order: Annotated[Boolean, Field(description="use buffers in order when the peer does too")] = True

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        yield from super().conflicts(raw, context)
        if raw.get("socket_owner", cls.model_fields["socket_owner"].default) == "peer":
            for key in ("socket_mode", "socket_group"):
                if key in raw:
                    yield (key,), "has no effect with socket_owner: peer: the peer creates the socket; remove it"


class VhostUserPort(_SocketPort):
    """A guest or container: we are the device (back-end), it is the virtio driver."""

    type: Literal["vhostuser"] = Field(description="kind of port")
    socket_owner: Literal["switch", "peer"] = Field(
        "switch",
        description="switch: we create the socket and listen; peer: the guest's side listens, we connect and "
        "reconnect for ever",
    )


class VirtioUserPort(_SocketPort):
    """Another switch: we are the virtio driver (front-end), it is the vhost-user device."""

    type: Literal["virtiouser"] = Field(description="kind of port")
    socket_owner: Literal["switch", "peer"] = Field(
        "peer", description="peer: the other switch listens, we connect and reconnect for ever; switch: we listen"
    )
    ring_size: Annotated[int, number_in(16, 32768), Field(description="entries of each ring, a power of two")] = 256

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        yield from super().conflicts(raw, context)
        yield from _ring_size_faults(raw)


def _ring_size_faults(raw: Mapping[str, Any]) -> Iterator[Conflict]:
    entries = raw.get("ring_size")
    if isinstance(entries, int) and 16 <= entries <= 32768 and entries & (entries - 1):
        yield ("ring_size",), f"must be a power of two, not {entries}: try {1 << entries.bit_length() - 1}"


class TapPort(PortSection):
    """A kernel TAP interface: the host's own stack, or a guest that has one."""

    type: Literal["tap"] = Field(description="kind of port")
    device: Annotated[
        Device | None, Field(description="name of the interface, created if missing; absent: the kernel picks one")
    ] = None
    queues: Annotated[int, number_in(1, 256), Field(description="queue pairs")] = 1
    mac: Annotated[MacAddress | None, Field(description="address of the interface; absent: the kernel picks one")] = (
        None
    )
    offloads: Annotated[Boolean, Field(description="use checksum and segmentation offloads of the kernel")] = True
    vhost: Annotated[
        Boolean,
        Field(
            description="let the kernel's vhost-net move the frames, without a system call for each; "
            "needs the module vhost_net"
        ),
    ] = False


class AfPacketPort(PortSection):
    """Any network interface of the kernel, such as a physical NIC or a veth."""

    type: Literal["afpacket"] = Field(description="kind of port")
    device: Annotated[Device, Field(description="name of the interface")]
    queues: Annotated[int, number_in(1, 256), Field(description="packet sockets that share the frames")] = 1
    fanout: Literal["hash", "qm"] = Field(
        "hash",
        description="how several queues share the frames: hash: by flow; qm: as the NIC spread them over its receive "
        "queues (give the port as many)",
    )
    offloads: Annotated[Boolean, Field(description="use checksum and segmentation offloads of the kernel")] = True


class VerbsPort(PortSection):
    """A NIC past the kernel: raw packet queue pairs of its RDMA device."""

    type: Literal["verbs"] = Field(description="kind of port")
    device: Annotated[RdmaDevice, Field(description="name of the RDMA device, such as mlx5_0")]
    queues: Annotated[int, number_in(1, 128), Field(description="queue pairs; the NIC spreads frames over them")] = 1
    offloads: Annotated[Boolean, Field(description="use checksum and segmentation offloads of the NIC")] = True
    steering: Annotated[
        Steering,
        Field(
            description='frames that the NIC hands over: "all" of them, "leftovers" that nobody else takes, or those '
            "to the MAC addresses of a list and to groups; the kernel's interface keeps the rest"
        ),
    ] = "all"


class _VdpaBusPort(PortSection):
    """A port on the kernel's vDPA bus."""

    ring_size: Annotated[
        int, number_in(16, 32768), Field(description="entries of each ring at most, a power of two")
    ] = 256
    packed: Annotated[Boolean, Field(description="use packed rings when the peer has them too")] = True
    offloads: Annotated[Boolean, Field(description="use checksum and segmentation offloads when the peer has them")] = (
        True
    )
    mergeable: Annotated[
        Boolean, Field(description="use receive buffers that join for large frames when the peer has them")
    ] = True

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        yield from super().conflicts(raw, context)
        yield from _ring_size_faults(raw)


class VdpaPort(_VdpaBusPort):
    """A device that speaks virtio itself, through vhost-vdpa: we are its driver."""

    type: Literal["vdpa"] = Field(description="kind of port")
    device: Annotated[DeviceFile, Field(description="its file, such as /dev/vhost-vdpa-0")]
    queues: Annotated[int, number_in(1, 128), Field(description="queue pairs; the device must have as many")] = 1
    in_order: Annotated[Boolean, Field(description="use buffers in order when the peer does too")] = True


class VdusePort(_VdpaBusPort):
    """A vDPA device of this machine that we serve (VDUSE): an interface of the host, or a virtual machine's device."""

    type: Literal["vduse"] = Field(description="kind of port")
    device: Annotated[DeviceName, Field(description="name of the device, made if missing")]
    mac: Annotated[MacAddress | None, Field(description="address of the device; absent: its driver picks one")] = None


class AfXdpPort(PortSection):
    """Queues of a network interface, past the kernel's network stack: a physical NIC, or a veth."""

    type: Literal["afxdp"] = Field(description="kind of port")
    device: Annotated[Device, Field(description="name of the interface")]
    queues: Annotated[
        int,
        number_in(1, 256),
        Field(
            description="receive queues of the interface to serve, from the first; frames of others stay with the host"
        ),
    ] = 1
    checksum: Literal["auto", "fix", "trust"] = Field(
        "auto",
        description="TCP and UDP checksums that look unfinished: fix finishes them; trust passes frames as they are; "
        "auto is fix where senders on the same machine reach the interface without a wire (veth, bridge, virtio_net)",
    )


PortModel = Annotated[
    VhostUserPort | VirtioUserPort | TapPort | AfPacketPort | VerbsPort | VdpaPort | VdusePort | AfXdpPort,
    Field(discriminator="type"),
]

PORT_KINDS: dict[str, type[PortSection]] = {
    "vhostuser": VhostUserPort,
    "virtiouser": VirtioUserPort,
    "tap": TapPort,
    "afpacket": AfPacketPort,
    "verbs": VerbsPort,
    "vdpa": VdpaPort,
    "vduse": VdusePort,
    "afxdp": AfXdpPort,
}
KIND_HABITS = {
    "dpdkvhostuser": "type: vhostuser with socket_owner: switch",
    "dpdkvhostuserclient": "type: vhostuser with socket_owner: peer",
    "vhost": "type: vhostuser",
    "internal": "type: tap",
    "system": "type: afpacket",
    "veth": "type: afpacket",
    "af_xdp": "type: afxdp",
    "netdev_afxdp": "type: afxdp",
    "xdp": "type: afxdp",
}


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
    "vhost",
    "packed",
    "offloads",
    "mergeable",
    "in_order",
    "ring_size",
    "steering",
    "fanout",
    "checksum",
)


def gid_of(group: str | None, machine: Machine | None = None) -> int | None:
    """Group number of a name that the file gives; None stays None."""
    if group is None:
        return None
    gid = (machine.gid_of if machine else Machine(None).gid_of)(group)
    if gid is None:
        raise ConfigError([Fault("", f"there is no group '{group}' on this machine any more: create it")])
    return gid
