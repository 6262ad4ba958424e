# SPDX-License-Identifier: Apache-2.0
"""A configuration file beside what was changed at run time: which ports stay, and what runs written as a file. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from switch.config import Config, port_from_spec
from switch.config.models import BridgeSection, StaticSection
from switch.config.values import format_mac
from switch.datapath import PortSpec
from switch.errors import ConfigError, Fault, PortError
from switch.plan import Change, State, StaticFlow

_AT_START_ONLY = (("control", ("socket", "mode", "group")), ("metrics", ("listen",)), ("switch", ("state_dir",)))


@dataclass(slots=True)
class Before:
    """What rollback returns to."""

    state: State
    config: Config
    origin: dict[str, str]
    deadline: float = 0.0  # wall clock; 0: no automatic rollback
    since: set[str] = field(default_factory=set)  # ports added or deleted by hand afterwards

    def wanted(self, running: State) -> State:
        """The state before, except that what somebody added or deleted by hand since stays so: a guest that came after
        the apply must not lose its port. PortError when both cannot stand together."""
        ports = [port for port in self.state.ports if port.name not in self.since]
        stay = [port for port in running.ports if port.name in self.since]
        check_shared(stay, ports)
        bridges = {bridge.name for bridge in self.state.bridges}
        homes = {port.bridge for port in stay} - bridges
        flows = [flow for flow in self.state.flows if flow.port not in self.since]
        return State(
            (*self.state.bridges, *(bridge for bridge in running.bridges if bridge.name in homes)),
            (*ports, *stay),
            with_flows(flows, [flow for flow in running.flows if flow.port in self.since]),
        )


def merge(running: State, wanted: State, runtime: Collection[str]) -> tuple[State, list[str]]:
    """`wanted`, and the running ports among `runtime` (names) that it does not name, with their flows; and the names of
    those. ConfigError or PortError when they cannot stand together."""
    named = {port.name for port in wanted.ports}
    kept = [port for port in running.ports if port.name in runtime and port.name not in named]
    bridges = {bridge.name for bridge in wanted.bridges}
    faults = [
        Fault(
            f"ports.{port.name}",
            f"was added at run time in bridge {port.bridge}, which this file does not have: delete the port, "
            "or apply with --exact",
        )
        for port in kept
        if port.bridge not in bridges
    ]
    if faults:
        raise ConfigError(faults)
    check_shared(kept, wanted.ports)
    names = {port.name for port in kept}
    flows = [flow for flow in running.flows if flow.port in names]
    return State(wanted.bridges, (*wanted.ports, *kept), with_flows(flows, wanted.flows)), sorted(names)


def carries(port: PortSpec, vlan: int) -> bool:
    """Whether an address can be at this port in this VLAN; 0: that of untagged frames which are in none."""
    policy = port.vlan
    untagged = policy.access or policy.native or 0
    if vlan == untagged:
        return True
    return bool(vlan) and policy.access is None and (policy.trunk is None or vlan in policy.trunk)


def fits(flow: StaticFlow, ports: Mapping[str, PortSpec]) -> bool:
    """Whether a file could say so: its port is there, in its bridge, and carries its VLAN."""
    port = ports.get(flow.port)
    return not flow.port or (port is not None and port.bridge == flow.bridge and carries(port, flow.vlan))


def moved(flow: StaticFlow, old: PortSpec, new: PortSpec) -> StaticFlow:
    """A flow of a port that changes: into its new bridge, and with the untagged frames into their new VLAN."""
    before, after = ((port.vlan.access or port.vlan.native or 0) for port in (old, new))
    # Of a port that takes no untagged frames any more, tagged ones may still reach the address where it was.
    stays = flow.vlan != before or (not after and new.vlan.trunk is not None)
    return replace(flow, bridge=new.bridge, vlan=flow.vlan if stays else after)


def check_pins(port: PortSpec, flows: Sequence[StaticFlow]) -> None:
    """Refuse a port that leaves its pinned addresses behind: nobody else may have been told to guard them."""
    left = [flow for flow in flows if flow.port == port.name and not carries(port, flow.vlan)]
    if left:
        what = ", ".join(f"{format_mac(flow.mac)} in VLAN {flow.vlan}" for flow in left[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise PortError(
            port.name,
            f"would not carry the VLAN of addresses that are pinned to it: {what}{more}; remove them first "
            f"(swctl fdb del {format_mac(left[0].mac)} --vlan {left[0].vlan}), or keep the VLAN",
        )


def check_workers(port: PortSpec, cpus: Collection[int]) -> None:
    """Refuse a queue that is pinned to a CPU without a worker."""
    for queue, cpu in port.rx_affinity.items():
        if cpu not in cpus:
            there = ", ".join(map(str, sorted(cpus)))
            raise PortError(port.name, f"rx_affinity {queue}: no worker runs on CPU {cpu}: they run on {there}")


def check_shared(present: Sequence[PortSpec], coming: Sequence[PortSpec]) -> None:
    """Refuse what two ports cannot share."""
    for what in ("socket", "device"):
        holder = {getattr(port, what): port.name for port in present if getattr(port, what)}
        for spec in coming:
            if (value := getattr(spec, what)) in holder:
                raise PortError(
                    spec.name, f"the {what} {value} belongs to port {holder[value]}; each port needs its own"
                )


def with_flows(flows: Sequence[StaticFlow], more: Sequence[StaticFlow]) -> tuple[StaticFlow, ...]:
    """Both, where `more` wins."""
    merged = {(flow.bridge, flow.vlan, flow.mac): flow for flow in (*flows, *more)}
    return tuple(merged.values())


def section_changes(old: Config, new: Config) -> list[Change]:
    """What the daemon takes up only when it starts."""
    changes = []
    for section, keys in _AT_START_ONLY:
        for key in keys:
            before, after = getattr(getattr(old, section), key), getattr(getattr(new, section), key)
            if before != after:
                changes.append(Change(f"{section}.{key}", before, after))
    return changes


def as_config(config: Config, running: State, more: Sequence[StaticFlow] = ()) -> Config:
    """`config` with the bridges, ports and flows that run."""
    damping = {bridge.name: bridge.move_damping for bridge in config.all_bridges()}
    bridges = []
    for bridge in running.bridges:
        static = tuple(
            StaticSection.model_construct(
                mac=flow.mac, vlan=flow.vlan or None, port=flow.port or None, blackhole=not flow.port
            )
            for flow in with_flows(running.flows, more)
            if flow.bridge == bridge.name
        )
        changes = {"ageing": bridge.ageing, "mac_limit": bridge.mac_limit, "static": static}
        if bridge.name in damping:
            changes["move_damping"] = damping[bridge.name]
        bridges.append(BridgeSection(name=bridge.name).model_copy(update=changes))
    ports = tuple(port_from_spec(spec).model_copy(update={"bridge": spec.bridge}) for spec in running.ports)
    return config.model_copy(update={"bridges": tuple(bridges), "ports": ports})
